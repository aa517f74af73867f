"""An exported encoder: two graphs, a tokenizer and a manifest, and the folders that they go to."""

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lookwire_export import graph, manifest
from lookwire_export.checkpoint import Checkpoint, ExportError
from lookwire_export.tokenizer import tokenizer_json
from lookwire_export.towers import towers

MAX_BATCH = 64
LENGTHS = (8, 16, 24, 32, 48)
"""A batch of texts is padded to the first of these that fits, or to the context length."""


@dataclass(frozen=True)
class ExportedEncoder:
    """Everything that is written for one encoder."""

    name: str
    image_graph: bytes
    text_graph: bytes
    tokenizer: bytes
    manifest: dict[str, Any]

    @classmethod
    def of(cls, checkpoint: Checkpoint, name: str, precision: str) -> "ExportedEncoder":
        """Exports a checkpoint; the manifest has no parity record yet."""
        if not re.fullmatch(r"[a-z0-9][a-z0-9_-]*", name):
            raise ExportError(f"{name!r} is no name for a model: use small letters, digits, - and _")
        image, text = towers(checkpoint)
        image_graph = graph.image_graph(image, checkpoint.model.visual.image_size[0], precision)
        text_graph = graph.text_graph(text, checkpoint.model.context_length, precision)
        tokenizer = tokenizer_json(checkpoint.tokenizer).encode()
        contents = {"image": image_graph, "text": text_graph, "tokenizer": tokenizer}
        digests = {part: manifest.digest(content) for part, content in contents.items()}
        rules = manifest.manifest(checkpoint, name, precision, digests)
        return cls(name, image_graph, text_graph, tokenizer, rules)

    def with_parity(self, record: dict[str, Any]) -> "ExportedEncoder":
        """Returns the encoder with the record of its comparison."""
        return replace(self, manifest=self.manifest | {"parity": record})

    @property
    def models(self) -> tuple[str, str, str]:
        """The three folders, the encoder's own last."""
        return f"{self.name}-image", f"{self.name}-text", self.name

    def write(self, root: Path) -> None:
        """Writes the three models into the folder."""
        image, text, encoder = (root / model for model in self.models)
        size, dimension = self.manifest["image"]["size"], self.manifest["dimension"]
        context_length = self.manifest["text"]["context_length"]
        _write(
            image / "config.pbtxt", IMAGE_CONFIG.format(name=image.name, max_batch=MAX_BATCH, size=size, d=dimension)
        )
        _write(image / "1" / "model.onnx", self.image_graph)
        lengths = ",".join(str(length) for length in (*(n for n in LENGTHS if n < context_length), context_length))
        _write(
            text / "config.pbtxt", TEXT_CONFIG.format(name=text.name, max_batch=MAX_BATCH, d=dimension, lengths=lengths)
        )
        _write(text / "1" / "model.onnx", self.text_graph)
        _write(encoder / "config.pbtxt", ENCODER_CONFIG.format(name=self.name, max_batch=MAX_BATCH, d=dimension))
        _write(encoder / "1" / "tokenizer.json", self.tokenizer)
        _write(encoder / "1" / "manifest.json", manifest.serialised(self.manifest))


def _write(file: Path, content: str | bytes) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content.encode() if isinstance(content, str) else content)


IMAGE_CONFIG = """\
name: "{name}"
backend: "onnxruntime"
max_batch_size: {max_batch}
input [ {{ name: "pixels" data_type: TYPE_UINT8 dims: [ {size}, {size}, 3 ] }} ]
output [ {{ name: "embedding" data_type: TYPE_FP32 dims: [ {d} ] }} ]
dynamic_batching {{ }}
"""

TEXT_CONFIG = """\
name: "{name}"
backend: "onnxruntime"
max_batch_size: {max_batch}
input [ {{ name: "input_ids" data_type: TYPE_INT32 dims: [ -1 ] }} ]
output [ {{ name: "embedding" data_type: TYPE_FP32 dims: [ {d} ] }} ]
dynamic_batching {{ }}
parameters {{ key: "length_buckets" value {{ string_value: "{lengths}" }} }}
parameters {{ key: "pad_value" value {{ string_value: "0" }} }}
"""

ENCODER_CONFIG = """\
name: "{name}"
backend: "encoder"
max_batch_size: {max_batch}
input [
  {{ name: "TEXT" data_type: TYPE_STRING dims: [ 1 ] optional: true }},
  {{ name: "IMAGE" data_type: TYPE_STRING dims: [ 1 ] optional: true }}
]
output [ {{ name: "EMBEDDING" data_type: TYPE_FP32 dims: [ {d} ] }} ]
"""
