"""ONNX graphs with nothing learnt in them, for the models that the programs and tests of others ask for."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

Dims = Sequence[int | str]


def add_sub(path: Path, batch: Dims, dims: Dims) -> None:
    """OUTPUT0 = INPUT0 + INPUT1 and OUTPUT1 = INPUT0 - INPUT1, float32."""
    shape = [*batch, *dims]
    nodes = [helper.make_node("Add", ["INPUT0", "INPUT1"], ["OUTPUT0"])]
    nodes.append(helper.make_node("Sub", ["INPUT0", "INPUT1"], ["OUTPUT1"]))
    save(path, nodes, {"INPUT0": shape, "INPUT1": shape}, {"OUTPUT0": shape, "OUTPUT1": shape})


def identity(path: Path, dims: Dims) -> None:
    """OUTPUT0 = INPUT0, float32."""
    save(path, [helper.make_node("Identity", ["INPUT0"], ["OUTPUT0"])], {"INPUT0": dims}, {"OUTPUT0": dims})


def classifier(path: Path, classes: int) -> None:
    """A stand-in for densenet: fixed weights on the mean colour of a [1, 3, 224, 224] image, float32."""
    weights = np.random.default_rng(0).standard_normal((classes, 3, 1, 1), dtype=np.float32)
    nodes = [helper.make_node("GlobalAveragePool", ["data_0"], ["mean"])]
    nodes.append(helper.make_node("Conv", ["mean", "weights"], ["fc6_1"]))
    constants = [numpy_helper.from_array(weights, "weights")]
    save(path, nodes, {"data_0": [1, 3, 224, 224]}, {"fc6_1": [1, classes, 1, 1]}, constants)


def save(
    path: Path,
    nodes: Sequence[NodeProto],
    inputs: dict[str, Dims],
    outputs: dict[str, Dims],
    constants: Sequence[TensorProto] = (),
) -> None:
    """Writes a checked float32 graph, in an IR version that onnxruntime reads."""
    given, made = (
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, list(dims)) for name, dims in side.items()]
        for side in (inputs, outputs)
    )
    graph = helper.make_graph(nodes, path.parent.parent.name, given, made, initializer=constants)
    model = helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 17)])
    onnx.checker.check_model(model, full_check=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, path)
