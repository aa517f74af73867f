"""How the weights of a graph are stored: as they are, as halves, or as 8-bit integers that are computed with.

In bf16 they are stored as they are, and computed with in bfloat16 (openvino.py).
"""

import difflib
import logging
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnxruntime.quantization import QuantType, quantize_dynamic

from lookwire_export import graph
from lookwire_export.manifest import DATA
from lookwire_export.reference import ExportError

PRECISIONS = ("fp32", "fp16", "int8", "bf16")
SMALL = 4096
"""Weights of fewer values than this stay float32: they weigh nothing."""


def store_half(model: ir.Model) -> None:
    """Stores the large weights in half precision, each followed by a Cast, so that the computation stays in float32.

    The convolution of the pixels is left alone: its weights were divided by the std in float32 and are no half values.
    """
    for value in _large_weights(model):
        if not any(_takes_pixels(use.node, model.graph) for use in value.uses()):
            _halve(model.graph, value)


def _takes_pixels(node: ir.Node, graph: ir.Graph) -> bool:
    """Whether a node is a convolution of the graph's input, which only its layout, type and range were changed of."""
    if node.op_type != "Conv":
        return False
    value = node.inputs[0]
    while (producer := value.producer()) is not None and producer.op_type in ("Transpose", "Cast", "Sub", "Mul"):
        value = producer.inputs[0]
    return value in graph.inputs


def _large_weights(model: ir.Model) -> list[ir.Value]:
    """Returns the weights that are worth storing as halves, but for those with values that no half can hold."""
    weights = [weight for weight in model.graph.initializers.values() if weight.dtype == ir.DataType.FLOAT]
    return [weight for weight in weights if weight.const_value.size >= SMALL and _fits(weight.const_value.numpy())]


def _fits(values: NDArray[np.float32]) -> bool:
    """Whether every value is within the range of halves, or infinite as in masks."""
    return bool((np.isinf(values) | (np.abs(values) <= np.finfo(np.float16).max)).all())


def _is_table(value: ir.Value) -> bool:
    """Whether a weight is only ever looked up in, row by row."""
    return all(use.node.op_type == "Gather" and use.idx == 0 for use in value.uses())


def _halve(graph: ir.Graph, value: ir.Value) -> None:
    """Stores one weight as halves. Rows of a table are cast after they were looked up, anything else before it is used."""
    halves = [use.node.outputs[0] for use in value.uses()] if _is_table(value) else [value]
    value.const_value = ir.tensor(value.const_value.numpy().astype(np.float16), name=value.name)
    value.dtype = ir.DataType.FLOAT16
    for half in halves:
        _cast(graph, half)


def _cast(graph: ir.Graph, halves: ir.Value) -> None:
    """Puts a Cast to float32 between a value and all that uses it."""
    users = list(halves.uses())
    cast = ir.node("Cast", [halves], attributes={"to": ir.DataType.FLOAT}, name=f"{halves.name}.cast")
    cast.outputs[0].dtype, cast.outputs[0].shape = ir.DataType.FLOAT, halves.shape
    halves.dtype = ir.DataType.FLOAT16
    for use in users:
        use.node.replace_input_with(use.idx, cast.outputs[0])
    producer = halves.producer()
    if producer is None:
        graph.insert_before(graph[0], cast)
    else:
        graph.insert_after(producer, cast)


def layers(file: Path) -> list[str]:
    """Returns the names of the layers that int8 computes in integers, in the order of the graph: products with constant
    weights.
    """
    model = ir.load(file)
    return [
        node.name or ""
        for node in model.graph
        if node.op_type == "MatMul" and node.inputs[1] is not None and node.inputs[1].name in model.graph.initializers
    ]


def require_layers(names: Iterable[str], known: Sequence[str]) -> None:
    """Raises ExportError for a name that is no layer's; says which ones are like it."""
    for name in names:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=4, cutoff=0.4) or known[:4]
            raise ExportError(f"there is no layer {name!r} to keep in fp32; there are {', '.join(close)}, ...")


def quantize(fp32_file: Path, int8_file: Path, keep_fp32: Sequence[str] = ()) -> None:
    """Writes a float32 graph with its layers in 8-bit integers: weights once and for all, one scale a column; what they
    are multiplied by as it comes, one scale a batch (onnxruntime.quantization.quantize_dynamic).

    The layers named in keep_fp32 stay float32. Tables that rows are looked up in are stored as halves. Raises ExportError
    for a name that is no layer's.
    """
    require_layers(keep_fp32, layers(fp32_file))
    raw = int8_file.parent / ".int8" / "model.onnx"
    shutil.rmtree(raw.parent, ignore_errors=True)
    raw.parent.mkdir(parents=True)
    with _quiet():
        quantize_dynamic(
            fp32_file,
            raw,
            op_types_to_quantize=["MatMul"],
            per_channel=True,
            weight_type=QuantType.QInt8,
            nodes_to_exclude=list(keep_fp32),
            use_external_data_format=fp32_file.with_name(DATA).exists(),
            extra_options={"MatMulConstBOnly": True},
        )
    model = ir.load(raw)
    for value in filter(_is_table, _large_weights(model)):
        _halve(model.graph, value)
    graph.save(model, int8_file)
    shutil.rmtree(raw.parent)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps quantize_dynamic from advising, on the root logger, to prepare what the exporter has prepared already."""
    root = logging.getLogger()

    def is_other(record: logging.LogRecord) -> bool:
        return "run pre-processing before quantization" not in record.getMessage()

    root.addFilter(is_other)
    try:
        yield
    finally:
        root.removeFilter(is_other)
