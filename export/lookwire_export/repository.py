"""Writes an encoder into a model repository so that a reader finds the old one, the new one, or none."""

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from lookwire_export import manifest
from lookwire_export.checkpoint import Checkpoint
from lookwire_export.encoder import ExportedEncoder
from lookwire_export.manifest import Figure

Gate = Callable[[Checkpoint, ExportedEncoder, Path], Sequence[Figure]]
"""Measures an encoder that stands, ungated, in a repository of its own; raises ExportError if it does not pass."""


def publish(checkpoint: Checkpoint, encoder: ExportedEncoder, repo: Path, gate: Gate) -> list[Figure]:
    """Writes the encoder beside its destination, gates it there, and moves it into place; returns the gate's figures.

    If the gate refuses, the repository is as it was. The towers move first and the encoder last: its manifest names the
    towers' hashes, so that a server never serves it with others.
    """
    repo.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".export-", dir=repo) as folder:
        staging, replaced = Path(folder, "new"), Path(folder, "old")
        encoder.write(staging)
        figures = list(gate(checkpoint, encoder, staging))
        encoder.with_parity(manifest.parity(checkpoint, figures)).write(staging)
        replaced.mkdir()
        for model in encoder.models:
            if (repo / model).exists():
                (repo / model).rename(replaced / model)
            (staging / model).rename(repo / model)
    return figures
