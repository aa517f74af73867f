"""Writes a tower as an ONNX graph that any batch size fits, and any text length where the tower allows it."""

import ast
import os
import shutil
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx_ir as ir
import torch

from lookwire_export.manifest import DATA
from lookwire_export.reference import ExportError

OPSET = 18
OUTPUT = "embedding"
IR_VERSION = 10
"""What onnxruntime 1.22 reads."""
ALIGNMENT = 65536
"""Large weights in a file of their own begin at multiples of this, as older versions of onnxruntime map no others."""
SCOPES = "pkg.torch.onnx.name_scopes"
"""Where the exporter notes the modules that a node comes from, outermost first, and last the node's own name."""
ONE_FILE_BYTES = 1_800_000_000
"""Up to this a graph is one file: protobuf's limit is 2 GiB, and above it the weights are to be mapped anyway."""


def image_graph(tower: Any, size: int) -> ir.Model:
    """Returns the image tower's graph, for pixels uint8 [batch, size, size, 3]; ExportError if there is no way."""
    pixels = torch.zeros(2, size, size, 3, dtype=torch.uint8)
    return _graph(tower, "image", "pixels", pixels, {0: torch.export.Dim("batch")})


def text_graph(tower: Any, context_length: int) -> ir.Model:
    """Returns the text tower's graph, for input_ids int32 [batch, length]; ExportError if there is no way.

    The length is any up to context_length for a tower with padding "longest", and context_length otherwise.
    """
    shape = {0: torch.export.Dim("batch")}
    if tower.padding == "longest":
        shape[1] = torch.export.Dim("length", max=context_length)
    ids = torch.zeros(2, 5 if 1 in shape else context_length, dtype=torch.int32)
    return _graph(tower, "text", "input_ids", ids, shape)


def save(model: ir.Model, file: Path) -> None:
    """Writes a graph as `file`, and its weights as model.onnx.data beside it where they are too many for one file.

    Both come into being by renaming, the graph last, so that a graph that is there is whole.
    """
    partial = file.parent / ".partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    external = DATA if weight_bytes(model) > ONE_FILE_BYTES else None
    if external is None:
        ir.external_data.load_to_model(model)
    ir.save(model, partial / file.name, external_data=external, alignment=ALIGNMENT)
    for name in filter(None, (external, file.name)):
        os.replace(partial / name, file.parent / name)
    partial.rmdir()


def weight_bytes(model: ir.Model) -> int:
    """Returns how many bytes the weights of a graph take."""
    return sum(value.const_value.nbytes for value in model.graph.initializers.values())


def _graph(tower: Any, prefix: str, name: str, example: Any, shape: Mapping[int, Any]) -> ir.Model:
    try:
        with torch.no_grad():
            program = torch.onnx.export(
                tower,
                (example,),
                input_names=[name],
                dynamic_shapes={name: shape},
                opset_version=OPSET,
                dynamo=True,
                external_data=False,
                verbose=False,
            )
    except torch.onnx.OnnxExporterError as error:
        raise ExportError(f"the {prefix} tower cannot be written as an ONNX graph: {_reason(error)}") from error
    model = program.model
    fixed = [axis for axis in shape if isinstance(model.graph.inputs[0].shape[axis], int)]
    if fixed:
        raise ExportError(
            f"the {prefix} tower cannot be written as an ONNX graph for any batch: the exporter found that axis {fixed[0]} of "
            f"{name} must be {model.graph.inputs[0].shape[fixed[0]]}"
        )
    model.ir_version = IR_VERSION
    _name_output(model.graph)
    _name_layers(model.graph, prefix)
    return model


def _reason(error: BaseException) -> str:
    """Returns the first line of what an error was caused by in the first place; the exporter's own is advice for its makers."""
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"


def _name_output(graph: ir.Graph) -> None:
    """Names the output; what the exporter called so, after torch's operator of that name, is called otherwise."""
    values = [*graph.initializers.values(), *(value for node in graph for value in node.outputs)]
    for value in values:
        if value.name == OUTPUT:
            value.name = f"{OUTPUT}.inner"
    graph.outputs[0].name = OUTPUT


def _name_layers(graph: ir.Graph, prefix: str) -> None:
    """Gives every product with constant weights the name of its layer, such as image.blocks.3.mlp.c_fc, and its weights
    that name too. What else the exporter notes about nodes, such as paths of source files, is dropped.
    """
    seen: Counter[str] = Counter()
    for node in graph:
        scopes = ast.literal_eval(node.metadata_props.get(SCOPES, "[]"))
        node.metadata_props.clear()
        weight = node.inputs[1] if node.op_type == "MatMul" else None
        if weight is None or weight.name not in graph.initializers:
            continue
        layer = f"{prefix}.{scopes[-2] if len(scopes) > 1 and scopes[-2] else weight.name}"
        seen[layer] += 1
        node.name = layer if seen[layer] == 1 else f"{layer}.{seen[layer]}"
        if not weight.name.startswith(f"{prefix}."):
            weight.name = f"{node.name}.weight"
