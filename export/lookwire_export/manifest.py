"""`manifest.json`: all that decides an encoder's vectors and scores, in the form that the server reads."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lookwire_export.reference import ImageRules, Reference

DATA = "model.onnx.data"
"""Beside model.onnx: the weights that do not fit into the graph's own file."""


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


def manifest(
    reference: Reference,
    name: str,
    precision: str,
    text_tower: Any,
    files: Mapping[str, Path],
    fp32_layers: Sequence[str],
) -> dict[str, Any]:
    """Returns the manifest without a parity record; `files` are the graphs "image" and "text", and "tokenizer"."""
    image, text = reference.image, reference.text
    return {
        "schema_version": 2,
        "name": name,
        "description": f"{reference.library.split()[0]} {reference.architecture}",
        "dimension": reference.dimension,
        "precision": precision,
        "fp32_layers": list(fp32_layers),
        "towers": {tower: _tower(f"{name}-{tower}", files[tower]) for tower in ("image", "text")},
        "image": _image(image),
        "text": {
            "tokenizer": files["tokenizer"].name,
            "tokenizer_sha256": digest(files["tokenizer"]),
            "clean": text.clean,
            "context_length": text.context_length,
            "pad_id": text.pad_id,
            "padding": text_tower.padding,
            "pooling": text_tower.pooling,
            "causal": text_tower.causal,
            "replace": [list(pair) for pair in text.replace],
        },
        "activation": reference.activation,
        "score": "softmax" if reference.logit_bias is None else "sigmoid",
        "logit_scale": reference.logit_scale,
        "logit_bias": reference.logit_bias,
        "parity": None,
    }


def parity(reference: Reference, figures: Sequence[Figure]) -> dict[str, Any]:
    """Returns the record of a comparison with the reference."""
    return {
        "reference": reference.library,
        "checkpoint_sha256": reference.sha256,
        "passed": all(figure.holds for figure in figures),
        "figures": [figure.record() for figure in figures],
    }


def serialised(manifest: dict[str, Any]) -> str:
    """Returns the file's text."""
    return json.dumps(manifest, indent=2) + "\n"


def digest(file: Path) -> str:
    """Returns the SHA-256 of a file in hexadecimal."""
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def _image(rules: ImageRules) -> dict[str, Any]:
    """Returns the rules; "exact" is what a manifest that says nothing of `decode` means."""
    said = asdict(rules) | {"mean": list(rules.mean), "std": list(rules.std), "exif_orientation": "ignored"}
    if rules.decode == "exact":
        del said["decode"]
    return said


def _tower(model: str, graph: Path) -> dict[str, Any]:
    data = graph.with_name(DATA)
    return {
        "model": model,
        "version": 1,
        "sha256": digest(graph),
        "data_sha256": digest(data) if data.exists() else None,
    }
