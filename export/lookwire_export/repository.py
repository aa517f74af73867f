"""Puts an encoder into a model repository so that a reader finds the old one, the new one, or none."""

import fcntl
import hashlib
import json
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from lookwire_export import manifest
from lookwire_export.encoder import ExportedEncoder, Progress, export
from lookwire_export.manifest import Figure
from lookwire_export.reference import ExportError, Reference

Gate = Callable[[Reference, ExportedEncoder, Progress], Sequence[Figure]]
"""Measures an encoder that stands, without a parity record, in a folder of its own; raises ExportError if it fails."""
LIBRARIES = ("lookwire", "onnx", "onnxruntime", "onnxscript", "torch")
"""What writes a graph, beside the reference's own library."""
BYTES = {"fp32": 4.4, "fp16": 2.2, "int8": 8.8}
"""What an export takes on disk for each weight, its workings included: an int8 export keeps the float32 graphs until its end."""


def publish(
    reference: Reference,
    name: str,
    precision: str,
    repo: Path,
    gate: Gate,
    *,
    keep_fp32: Sequence[str] = (),
    replace: bool = False,
    progress: Progress = lambda _: None,
) -> list[Figure]:
    """Exports into a hidden folder of the repository, gates it there, and moves it into place; returns the gate's figures.

    A folder that a stopped export of the same thing has left is continued. If the gate refuses, or the disk does, the
    repository is as it was. The towers move first and the encoder last: its manifest names the towers' hashes, so that a
    server never serves it with others. Raises ExportError.
    """
    require_free(repo, name, replace=replace)
    staging = repo / f".export-{name}-{key(reference, precision, keep_fp32)}"
    with _staged(repo, staging, name):
        _require_space(reference, precision, staging)
        encoder = export(reference, name, precision, staging, keep_fp32=keep_fp32, progress=progress)
        figures = list(gate(reference, encoder, progress))
        encoder.with_parity(manifest.parity(reference, figures))
        _tidy(encoder.models, staging)
        _move(encoder.models, staging, repo)
    return figures


def require_free(repo: Path, name: str, *, replace: bool) -> None:
    """Raises ExportError if no model can have the name, or the repository has it already and is to keep it."""
    if not re.fullmatch(r"[a-z0-9][a-z0-9_-]*", name):
        raise ExportError(f"{name!r} is no name for a model: use small letters, digits, - and _")
    found = next((model for model in (name, f"{name}-image", f"{name}-text") if (repo / model).exists()), None)
    if found and not replace:
        raise ExportError(f"{repo / found} exists: give another --name, or --replace to put this export in its place")


def key(reference: Reference, precision: str, keep_fp32: Sequence[str]) -> str:
    """Returns a hash of all that decides an export: weights, rules, precision, libraries.

    What the configuration makes of the weights (its activation, its heads) shows in the vectors of a text and of an image.
    """
    image = torch.linspace(-2, 2, 3 * reference.image.size**2).reshape(1, 3, reference.image.size, -1)
    vectors = (reference.encode_image(image), reference.encode_text(reference.tokenize(["a red dress, size 38"])))
    decisive: dict[str, Any] = {
        "checkpoint": reference.sha256,
        "vectors": [hashlib.sha256(vector.numpy().tobytes()).hexdigest() for vector in vectors],
        "image": asdict(reference.image),
        "text": asdict(reference.text),
        "scores": [reference.logit_scale, reference.logit_bias],
        "precision": [precision, sorted(keep_fp32)],
        "libraries": [reference.library, *(version(library) for library in LIBRARIES)],
    }
    return hashlib.sha256(json.dumps(decisive).encode()).hexdigest()[:16]


@contextmanager
def _staged(repo: Path, staging: Path, name: str) -> Iterator[None]:
    """Keeps the staging folder for this process; it outlives a stopped export, but neither its end nor its failure."""
    try:
        repo.mkdir(parents=True, exist_ok=True)
        for folder in (
            folder for folder in repo.iterdir() if re.fullmatch(rf"\.export-{name}-[0-9a-f]{{16}}", folder.name)
        ):
            with _locked(folder, name):
                if folder != staging:
                    shutil.rmtree(folder)
        staging.mkdir(exist_ok=True)
        with _locked(staging, name):
            try:
                yield
            except (ExportError, OSError):
                shutil.rmtree(staging)
                raise
            shutil.rmtree(staging)
    except OSError as error:
        raise ExportError(
            f"{repo} cannot be written: {error.strerror or error}; it is as it was before the export"
        ) from error


@contextmanager
def _locked(folder: Path, name: str) -> Iterator[None]:
    with (folder / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ExportError(
                f"another export of {name} is at work in {folder}: wait for its end, or stop it"
            ) from error
        yield


def _require_space(reference: Reference, precision: str, staging: Path) -> None:
    weights = sum(weight.numel() for weight in reference.model.state_dict().values())
    there = sum(file.stat().st_size for file in staging.rglob("*") if file.is_file())
    needed, free = weights * BYTES.get(precision, 0) - there, shutil.disk_usage(staging).free
    if needed > free:
        raise ExportError(
            f"{staging.parent} has {free / 1e6:.0f} MB of free space, and the export takes about {needed / 1e6:.0f} MB: make"
            " room, or give another --repo"
        )


def _tidy(models: Sequence[str], staging: Path) -> None:
    """Removes what a write that was stopped has left in the models' folders, under a hidden name."""
    for model in models:
        for leftover in list((staging / model).rglob(".*")):
            if leftover.is_dir():
                shutil.rmtree(leftover)
            else:
                leftover.unlink(missing_ok=True)


def _move(models: Sequence[str], staging: Path, repo: Path) -> None:
    """Moves the models into place in their order, and what stood there away; all or none."""
    replaced = staging / ".replaced"
    replaced.mkdir(exist_ok=True)
    moves = [
        (source, target)
        for model in models
        for source, target in ((repo / model, replaced / model), (staging / model, repo / model))
        if source.parent == staging or source.exists()
    ]
    done: list[tuple[Path, Path]] = []
    try:
        for source, target in moves:
            source.rename(target)
            done.append((source, target))
    except BaseException:
        for source, target in reversed(done):
            target.rename(source)
        raise
