"""Writes a tower as an ONNX graph that any batch size fits, and any text length where the tower allows it."""

import ast
import os
import shutil
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch

from lookwire_export.manifest import DATA, digest
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
DIGESTS = ".sha256"
"""Beside model.onnx: a line with the digest and the name of each file that was written whole."""


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

    What was there goes. The files' digests are written last: see is_whole.
    """
    partial = file.parent / ".partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    external = DATA if weight_bytes(model) > ONE_FILE_BYTES else None
    if external is None:
        ir.external_data.load_to_model(model)
    ir.save(model, partial / file.name, external_data=external, alignment=ALIGNMENT)
    (partial / DIGESTS).write_text(_digests(partial / file.name))
    for name in (DIGESTS, DATA, file.name):
        (file.parent / name).unlink(missing_ok=True)
    for name in filter(None, (external, file.name, DIGESTS)):
        settle(partial / name, file.parent / name)
    partial.rmdir()


def is_whole(file: Path) -> bool:
    """Whether a graph, and its weights where they are in a file of their own, are there as they were written."""
    digests = file.with_name(DIGESTS)
    return file.exists() and digests.exists() and digests.read_text() == _digests(file)


def settle(partial: Path, file: Path) -> None:
    """Gives a written file its name once its content is on the disk; a loss of power leaves no name without it."""
    _sync(partial)
    os.replace(partial, file)
    _sync(file.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def weight_bytes(model: ir.Model) -> int:
    """Returns how many bytes the weights of a graph take."""
    return sum(value.const_value.nbytes for value in model.graph.initializers.values())


def _digests(file: Path) -> str:
    files = [each for each in (file, file.with_name(DATA)) if each.exists()]
    return "".join(f"{digest(each)}  {each.name}\n" for each in files)


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
    _split_products(model.graph)
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


def _split_products(graph: ir.Graph) -> None:
    """Writes each Gemm with constant weights, x W^T + b, as a MatMul and an Add, so that it is a layer like all others."""
    for node in list(graph):
        if node.op_type != "Gemm" or node.inputs[1].name not in graph.initializers or not _is_plain(node):
            continue
        x, weight, *bias = node.inputs
        values = weight.const_value.numpy()
        if node.attributes.get_int("transB", 0):
            values = np.ascontiguousarray(values.T)
        matrix = ir.Value(name=f"{weight.name}.columns", const_value=ir.tensor(values))
        matrix.dtype, matrix.shape = weight.dtype, ir.Shape(values.shape)
        graph.register_initializer(matrix)
        split = [ir.node("MatMul", [x, matrix], metadata_props=dict(node.metadata_props))]
        if bias and bias[0] is not None:
            split.append(ir.node("Add", [split[0].outputs[0], bias[0]]))
        output = split[-1].outputs[0]
        split[0].outputs[0].dtype, split[0].outputs[0].shape = node.outputs[0].dtype, node.outputs[0].shape
        ir.convenience.replace_nodes_and_values(graph, node, [node], split, node.outputs, [output])
        if not weight.uses():
            graph.initializers.pop(weight.name)


def _is_plain(gemm: ir.Node) -> bool:
    """Whether neither factor is scaled and the first is not transposed."""
    attributes = gemm.attributes
    scales = attributes.get_float("alpha", 1.0), attributes.get_float("beta", 1.0)
    return scales == (1.0, 1.0) and not attributes.get_int("transA", 0)


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
