"""Loads an open_clip model from a local file; nothing is ever fetched."""

import difflib
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import open_clip

CONFIGS = Path(__file__).parent / "configs"
GARMENTS = "lookwire-garments"
"""The packaged architecture of the bundled encoder."""

open_clip.add_model_config(CONFIGS)


class ExportError(Exception):
    """The export cannot be done, with the reason in words for the person who asked."""


@dataclass(frozen=True)
class Checkpoint:
    """An open_clip model in float32 with its own image transform and tokenizer: the reference."""

    architecture: str
    model: Any
    preprocess: Any
    tokenizer: Any
    file: Path | None

    @property
    def config(self) -> dict[str, Any]:
        """open_clip's own configuration of the architecture."""
        config: dict[str, Any] = open_clip.get_model_config(self.architecture)
        return config


def create(architecture: str) -> Checkpoint:
    """Returns the architecture with random weights."""
    return _open(architecture, None)


def load(architecture: str, file: Path) -> Checkpoint:
    """Returns the architecture with the weights of a safetensors or torch file."""
    if not file.is_file():
        raise ExportError(f"There is no checkpoint at {file}: give a safetensors file or a torch state dict.")
    return _open(architecture, file)


def _open(architecture: str, file: Path | None) -> Checkpoint:
    known = open_clip.list_models()
    if architecture not in known:
        close = difflib.get_close_matches(architecture, known, n=4, cutoff=0.4)
        hint = f" Did you mean {', '.join(close)}?" if close else ""
        raise ExportError(f"open_clip has no architecture {architecture!r}.{hint}")
    logging.getLogger().setLevel(logging.ERROR)  # open_clip warns on the root logger that no weights were downloaded
    try:
        model, _, preprocess = open_clip.create_model_and_transforms(
            architecture, pretrained=str(file) if file else None, precision="fp32", pretrained_hf=False
        )
    except RuntimeError as error:
        raise ExportError(f"{file} does not fit {architecture}: {error}") from error
    model.eval()
    return Checkpoint(architecture, model, preprocess, open_clip.get_tokenizer(architecture), file)
