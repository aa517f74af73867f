"""Writes a tower as an ONNX graph that any batch size and any text length fit."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import torch
from onnx import numpy_helper

from lookwire_export.towers import ImageTower, TextTower

OPSET = 18
IR_VERSION = 10
"""What onnxruntime 1.22 reads."""
PRECISIONS = ("fp32", "fp16")
SMALL = 4096
"""Initialisers of fewer values than this stay float32: they weigh nothing."""


def image_graph(tower: ImageTower, size: int, precision: str) -> bytes:
    """Returns the image tower's graph, for pixels uint8 [batch, size, size, 3]."""
    pixels = torch.zeros(2, size, size, 3, dtype=torch.uint8)
    return _export(tower, "pixels", pixels, {0: torch.export.Dim("batch")}, precision)


def text_graph(tower: TextTower, context_length: int, precision: str) -> bytes:
    """Returns the text tower's graph, for input_ids int32 [batch, length] with length up to context_length."""
    ids = torch.zeros(2, 5, dtype=torch.int32)
    shape = {0: torch.export.Dim("batch"), 1: torch.export.Dim("length", max=context_length)}
    return _export(tower, "input_ids", ids, shape, precision)


def _export(tower: Any, name: str, example: Any, shape: Mapping[int, Any], precision: str) -> bytes:
    with torch.no_grad():
        program = torch.onnx.export(
            tower,
            (example,),
            input_names=[name],
            output_names=["embedding"],
            dynamic_shapes={name: shape},
            opset_version=OPSET,
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    model = program.model_proto
    model.ir_version = IR_VERSION
    if precision == "fp16":
        _store_half(model)
    onnx.checker.check_model(model, full_check=True)
    serialised: bytes = model.SerializeToString()
    return serialised


def _store_half(model: Any) -> None:
    """Stores the large initialisers in half precision, each followed by a Cast, so that the computation stays float32.

    The patch convolution is left alone: its weights were divided by the std in float32 and are no half values.
    """
    graph, casts = model.graph, []
    for initializer in graph.initializer:
        values = numpy_helper.to_array(initializer)
        if values.dtype != np.float32 or values.size < SMALL or initializer.name.startswith("patch."):
            continue
        name = initializer.name
        initializer.CopyFrom(numpy_helper.from_array(values.astype(np.float16), f"{name}.half"))
        casts.append(
            onnx.helper.make_node("Cast", [f"{name}.half"], [name], name=f"{name}.cast", to=onnx.TensorProto.FLOAT)
        )
    nodes = [*casts, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
