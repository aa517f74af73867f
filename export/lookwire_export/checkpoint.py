"""Loads an open_clip model from a local file; nothing is ever fetched."""

import difflib
import hashlib
import logging
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import open_clip
import torch
from safetensors import SafetensorError

GARMENTS = "lookwire-garments"
"""The packaged architecture of the bundled encoder."""

open_clip.add_model_config(Path(__file__).parent / "configs")


class ExportError(Exception):
    """The export cannot be done; the message tells the person who asked why."""


@dataclass(frozen=True)
class Checkpoint:
    """An open_clip model in float32 with its own image transform and tokenizer: the reference of an export."""

    architecture: str
    model: Any
    preprocess: Any
    tokenizer: Any
    sha256: str
    """Of the file; empty for random weights."""

    @property
    def is_half(self) -> bool:
        """Whether every weight is a half-precision value, so that storing it as one loses nothing."""
        return all(torch.equal(weight, weight.half().float()) for weight in self.model.state_dict().values())


def create(architecture: str) -> Checkpoint:
    """Returns the architecture with random weights."""
    return _open(architecture, None)


def load(architecture: str, file: Path) -> Checkpoint:
    """Returns the architecture with the weights of a safetensors file or torch state dict."""
    if not file.is_file():
        raise ExportError(f"there is no checkpoint at {file}: give a safetensors file or a torch state dict")
    return _open(architecture, file)


def _open(architecture: str, file: Path | None) -> Checkpoint:
    _require_offline(architecture)
    logging.disable(logging.WARNING)  # open_clip warns on the root logger that no weights were fetched
    try:
        model, _, preprocess = open_clip.create_model_and_transforms(
            architecture, pretrained=str(file) if file else None, precision="fp32", load_weights=file is not None
        )
    except (RuntimeError, AssertionError, KeyError, pickle.UnpicklingError, SafetensorError) as error:
        raise ExportError(f"{file} holds no weights for {architecture}: {error}") from error
    finally:
        logging.disable(logging.NOTSET)
    sha256 = hashlib.sha256(file.read_bytes()).hexdigest() if file else ""
    return Checkpoint(architecture, model.eval(), preprocess, open_clip.get_tokenizer(architecture), sha256)


def _require_offline(architecture: str) -> None:
    """Refuses what open_clip does not know, and what it would build from parts that it fetches."""
    known = open_clip.list_models()
    if architecture not in known:
        close = difflib.get_close_matches(architecture, known, n=4, cutoff=0.4)
        hint = f"; did you mean {', '.join(close)}?" if close else ""
        raise ExportError(f"open_clip has no architecture {architecture!r}{hint}")
    config = open_clip.get_model_config(architecture)
    if "timm_model_name" in config["vision_cfg"]:
        raise ExportError(f"{architecture} has an image tower of timm; only open_clip's VisionTransformer is supported")
    if {"hf_model_name", "hf_tokenizer_name"} & set(config["text_cfg"]):
        raise ExportError(
            f"{architecture} takes its text tower or tokenizer from Hugging Face; only open_clip's are supported"
        )
