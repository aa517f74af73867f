"""`manifest.json`: all that decides an encoder's vectors and scores, in the form that the server reads."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import open_clip
import torch
from open_clip.transformer import QuickGELU

from lookwire_export.checkpoint import Checkpoint, ExportError


@dataclass(frozen=True)
class Figure:
    """One measurement of the export gate and its bound; exactly one of `at_least` and `at_most` is set."""

    name: str
    value: float
    at_least: float | None = None
    at_most: float | None = None

    @property
    def holds(self) -> bool:
        """Whether the value keeps its bound; not-a-number keeps none."""
        if self.at_least is not None:
            return self.value >= self.at_least
        return self.at_most is not None and self.value <= self.at_most

    @property
    def bound(self) -> str:
        """The bound in words."""
        return f"at least {self.at_least}" if self.at_least is not None else f"at most {self.at_most}"

    def record(self) -> dict[str, float | str]:
        """Returns the figure without the bound that it does not have."""
        return {key: value for key, value in asdict(self).items() if value is not None}


def manifest(checkpoint: Checkpoint, name: str, precision: str, digests: dict[str, str]) -> dict[str, Any]:
    """Returns the manifest without a parity record; `digests` are the SHA-256 of "image", "text" and "tokenizer"."""
    model = checkpoint.model
    return {
        "schema_version": 1,
        "name": name,
        "description": f"open_clip {checkpoint.architecture}",
        "dimension": model.text_projection.shape[1],
        "precision": precision,
        "towers": {
            tower: {"model": f"{name}-{tower}", "version": 1, "sha256": digests[tower]} for tower in ("image", "text")
        },
        "image": _image_rules(checkpoint),
        "text": {
            "tokenizer": "tokenizer.json",
            "tokenizer_sha256": digests["tokenizer"],
            "clean": "lower",
            "context_length": model.context_length,
            "bos_id": checkpoint.tokenizer.sot_token_id,
            "eos_id": checkpoint.tokenizer.eot_token_id,
            "pad_id": 0,
            "pooling": "eos",
            "causal": True,
        },
        "activation": _activation(model),
        "score": "softmax" if model.logit_bias is None else "sigmoid",
        "logit_scale": model.logit_scale.exp().item(),
        "logit_bias": None if model.logit_bias is None else model.logit_bias.item(),
        "parity": None,
    }


def parity(checkpoint: Checkpoint, figures: Sequence[Figure]) -> dict[str, Any]:
    """Returns the record of a comparison with the reference."""
    return {
        "reference": f"open_clip {open_clip.__version__}, torch {torch.__version__}",
        "checkpoint_sha256": checkpoint.sha256,
        "passed": all(figure.holds for figure in figures),
        "figures": [figure.record() for figure in figures],
    }


def serialised(manifest: dict[str, Any]) -> str:
    """Returns the file's text."""
    return json.dumps(manifest, indent=2) + "\n"


def digest(content: bytes) -> str:
    """Returns the SHA-256 in hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def _image_rules(checkpoint: Checkpoint) -> dict[str, Any]:
    rules = open_clip.get_model_preprocess_cfg(checkpoint.model)
    if rules["resize_mode"] not in ("shortest", "squash"):
        raise ExportError(f"{checkpoint.architecture} resizes by {rules['resize_mode']!r}; supported: shortest, squash")
    return {
        "size": checkpoint.model.visual.image_size[0],
        "resize": rules["resize_mode"],
        "interpolation": "bilinear" if rules["interpolation"] == "bilinear" else "bicubic",
        "mean": list(rules["mean"]),
        "std": list(rules["std"]),
        "convert_rgb": "after_resize",
        "exif_orientation": "ignored",
    }


def _activation(model: Any) -> str:
    activation = model.transformer.resblocks[0].mlp.gelu
    if isinstance(activation, QuickGELU):
        return "quick_gelu"
    return "gelu" if activation.approximate == "none" else "gelu_tanh"
