"""An exported encoder: two graphs, a tokenizer and a manifest, in the folders that a server reads."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lookwire_export import graph, manifest, openvino
from lookwire_export.precision import PRECISIONS, layers, quantize, require_layers, store_half
from lookwire_export.reference import ExportError, Reference
from lookwire_export.towers import image_tower, text_tower

Progress = Callable[[str], None]
"""Is told what is being done, in a short phrase each time."""
MAX_BATCH = 64
MAX_BATCH_TOKENS = 1024
"""Of a batch of texts that may be cut, padding included: ViT-B/32 runs as fast from 256 on, and 1,024 take 0.4 s on 2 cores."""


@dataclass(frozen=True)
class ExportedEncoder:
    """What an export wrote: three models in the folder `root`, laid out as in a model repository."""

    name: str
    root: Path
    manifest: dict[str, Any]

    @property
    def models(self) -> tuple[str, str, str]:
        """The three folders, the encoder's own last."""
        return f"{self.name}-image", f"{self.name}-text", self.name

    @property
    def image_graph(self) -> Path:
        """The image tower's file."""
        return self.graph("image")

    @property
    def text_graph(self) -> Path:
        """The text tower's file."""
        return self.graph("text")

    def graph(self, tower: str) -> Path:
        """The file of a tower, "image" or "text"."""
        return self.root / f"{self.name}-{tower}" / "1" / "model.onnx"

    @property
    def manifest_file(self) -> Path:
        """The file of the manifest."""
        return self.root / self.name / "1" / "manifest.json"

    @property
    def fp32(self) -> "ExportedEncoder":
        """The encoder before its layers became integers, in a folder of its own; only an int8 export has it."""
        encoder = replace(self, root=_fp32_root(self.root))
        return replace(encoder, manifest=json.loads(encoder.manifest_file.read_text(encoding="utf-8")))

    def with_parity(self, record: dict[str, Any]) -> "ExportedEncoder":
        """Writes the record of a comparison into manifest.json; returns the encoder with it."""
        encoder = replace(self, manifest=self.manifest | {"parity": record})
        encoder.write_manifest()
        return encoder

    def write_manifest(self) -> None:
        """Writes manifest.json as it stands here."""
        _write(self.manifest_file, manifest.serialised(self.manifest))


def export(
    reference: Reference,
    name: str,
    precision: str,
    root: Path,
    *,
    keep_fp32: Sequence[str] = (),
    progress: Progress = lambda _: None,
) -> ExportedEncoder:
    """Writes a reference as the encoder `name`; its manifest has no parity record yet, and is written last.

    `precision` is "fp32", "fp16", "int8" or "bf16". An int8 export leaves the layers in `keep_fp32` in float32, and is made
    from an fp32 export that it keeps. The graphs of bf16 are those of fp32, but for the width of attention over texts (LANES);
    the towers' configs have OpenVINO execute them. A graph that is there already, and whole, is kept, so that an export that
    was stopped goes on. Raises ExportError.
    """
    if not re.fullmatch(r"[a-z0-9][a-z0-9_-]*", name):
        raise ExportError(f"{name!r} is no name for a model: use small letters, digits, - and _")
    if precision not in PRECISIONS:
        raise ExportError(f"there is no precision {precision!r}; there are {', '.join(PRECISIONS)}")
    if keep_fp32 and precision != "int8":
        raise ExportError(f"layers are kept in fp32 in an int8 export only, and this is {precision}")
    if precision == "bf16":
        openvino.core()
    encoder = ExportedEncoder(name, root, {})
    text = text_tower(reference, openvino.LANES if precision == "bf16" else 1)
    files = {"image": encoder.image_graph, "text": encoder.text_graph}
    if precision == "int8":
        exact = export(reference, name, "fp32", _fp32_root(root), progress=progress)
        _write_int8(exact, files, keep_fp32, progress)
    else:
        makers: dict[str, Callable[[], Any]] = {
            "image": lambda: graph.image_graph(image_tower(reference), reference.image.size),
            "text": lambda: graph.text_graph(text, reference.text.context_length),
        }
        try:
            _write_floats(files, makers, precision == "fp16", progress)
        except ExportError as error:
            raise ExportError(f"{reference.architecture}: {error}") from error
    files["tokenizer"] = root / name / "1" / "tokenizer.json"
    _write(files["tokenizer"], reference.text.tokenizer)
    _write_configs(encoder, reference, text.padding, ACCELERATOR_CONFIG if precision == "bf16" else "")
    encoder = replace(encoder, manifest=manifest.manifest(reference, name, precision, text, files, keep_fp32))
    encoder.write_manifest()
    return encoder


def _write_floats(
    files: Mapping[str, Path], makers: Mapping[str, Callable[[], Any]], half: bool, progress: Progress
) -> None:
    """Writes the graphs that are not there yet, or not whole."""
    for tower, make in makers.items():
        if graph.is_whole(files[tower]):
            continue
        progress(f"{tower} graph")
        model = make()
        if half:
            store_half(model)
        graph.save(model, files[tower])


def _write_int8(
    exact: ExportedEncoder, files: Mapping[str, Path], keep_fp32: Sequence[str], progress: Progress
) -> None:
    """Writes the graphs of integers from those in float32."""
    known = {tower: layers(exact.graph(tower)) for tower in files}
    require_layers(keep_fp32, [layer for of_tower in known.values() for layer in of_tower])
    for tower, file in files.items():
        if not graph.is_whole(file):
            progress(f"{tower} graph in int8")
            quantize(exact.graph(tower), file, [layer for layer in keep_fp32 if layer in known[tower]])


def _fp32_root(root: Path) -> Path:
    return root / ".fp32"


def _write_configs(encoder: ExportedEncoder, reference: Reference, padding: str, more: str) -> None:
    """Writes the three configs; those of the towers have `more` at their end."""
    image, text, own = encoder.models
    values = {"max_batch": MAX_BATCH, "d": reference.dimension}
    config = IMAGE_CONFIG.format(name=image, size=reference.image.size, **values)
    _write(encoder.root / image / "config.pbtxt", config + more)
    length = reference.text.context_length
    if padding == "max_length":
        config = TEXT_CONFIG.format(name=text, length=length, **values)
    else:
        config = TEXT_CONFIG.format(name=text, length=-1, **values)
        config += PADDING_CONFIG.format(tokens=MAX_BATCH_TOKENS, pad=reference.text.pad_id)
    _write(encoder.root / text / "config.pbtxt", config + more)
    _write(encoder.root / own / "config.pbtxt", ENCODER_CONFIG.format(name=own, **values))


def _write(file: Path, content: str) -> None:
    """Writes a text file under another name and renames it once it is on the disk."""
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f".{file.name}")
    partial.write_text(content, encoding="utf-8")
    graph.settle(partial, file)


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
input [ {{ name: "input_ids" data_type: TYPE_INT32 dims: [ {length} ] }} ]
output [ {{ name: "embedding" data_type: TYPE_FP32 dims: [ {d} ] }} ]
dynamic_batching {{ }}
"""

PADDING_CONFIG = """\
parameters {{ key: "max_batch_tokens" value {{ string_value: "{tokens}" }} }}
parameters {{ key: "pad_value" value {{ string_value: "{pad}" }} }}
"""

ACCELERATOR_CONFIG = """\
optimization {
  execution_accelerators {
    cpu_execution_accelerator [ { name: "openvino" parameters { key: "precision_mode" value: "bf16" } } ]
  }
}
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
