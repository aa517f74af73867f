"""Small ONNX models for tests of the server."""

from pathlib import Path

import onnx
from onnx import TensorProto, helper


def save_scale(path: Path, factor: float, *, dims: int = 4, batch: int | str = "batch") -> None:
    """Writes a graph: y = x * factor, FP32 of shape [batch, dims]."""
    tensors = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [batch, dims]) for name in ("x", "y")]
    graph = helper.make_graph(
        [helper.make_node("Mul", ["x", "factor"], ["y"])],
        "scale",
        tensors[:1],
        tensors[1:],
        [helper.make_tensor("factor", TensorProto.FLOAT, [], [factor])],
    )
    model = helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 17)])
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, path)


SCALE = """
backend: "onnxruntime" max_batch_size: 8
input [{ name: "x" data_type: TYPE_FP32 dims: [4] }]
output [{ name: "y" data_type: TYPE_FP32 dims: [4] }]
"""


def write_scale(root: Path, name: str, factors: dict[int, float], config: str = SCALE) -> None:
    """Writes a model whose versions multiply by their factors."""
    for version, factor in factors.items():
        save_scale(root / name / str(version) / "model.onnx", factor)
    (root / name).mkdir(parents=True, exist_ok=True)
    (root / name / "config.pbtxt").write_text(config)
