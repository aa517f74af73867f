"""Model repositories that tests write, served in the test's process with every backend that needs no encoder."""

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

from lookwire_server.metrics import Metrics
from lookwire_server.models.backends.ensemble import EnsembleBackend
from lookwire_server.models.backends.identity import IdentityBackend
from lookwire_server.models.backends.onnxruntime import OnnxRuntimeBackend
from lookwire_server.models.backends.python import PythonBackend
from lookwire_server.models.model import Request, Tensor
from lookwire_server.models.repository import ControlMode, Repository

FLOAT = TensorProto.FLOAT
STRING = TensorProto.STRING
INT64 = TensorProto.INT64
Shape = Sequence[int | str]


def write(root: Path, name: str, config: str | None = None, version: int = 1, **files: str) -> Path:
    """Writes a model and returns its folder; `files` are sources for the version folder, `model` for model.py."""
    folder = root / name
    (folder / str(version)).mkdir(parents=True, exist_ok=True)
    if config is not None:
        (folder / "config.pbtxt").write_text(config)
    for file, source in files.items():
        (folder / str(version) / f"{file}.py").write_text(source)
    return folder


def graph(
    nodes: Sequence[tuple[str, Sequence[str], Sequence[str]]],
    inputs: Mapping[str, tuple[int, Shape]],
    outputs: Mapping[str, tuple[int, Shape]],
    constants: Mapping[str, Tensor] | None = None,
) -> onnx.ModelProto:
    """An ONNX model of these nodes (operator, inputs, outputs), tensors being (type, shape)."""
    model: onnx.ModelProto = helper.make_model(
        helper.make_graph(
            [helper.make_node(operator, list(takes), list(makes)) for operator, takes, makes in nodes],
            "graph",
            [helper.make_tensor_value_info(name, *tensor) for name, tensor in inputs.items()],
            [helper.make_tensor_value_info(name, *tensor) for name, tensor in outputs.items()],
            [onnx.numpy_helper.from_array(value, name) for name, value in (constants or {}).items()],
        ),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=10,
    )
    return model


def unary(operator: str, shape: Shape, kind: int = FLOAT) -> onnx.ModelProto:
    """y = operator(x), both of one shape."""
    return graph([(operator, ["x"], ["y"])], {"x": (kind, shape)}, {"y": (kind, shape)})


@asynccontextmanager
async def serving(root: Path, *, threads: int = 1, mode: ControlMode = ControlMode.NONE) -> AsyncIterator[Repository]:
    """The models below `root`, loaded."""
    failures: list[str] = []
    repository = Repository(
        [root],
        {
            "onnxruntime": OnnxRuntimeBackend(threads),
            "identity": IdentityBackend(),
            "python": PythonBackend(),
            "ensemble": EnsembleBackend(),
        },
        Metrics(),
        failures.append,
        mode=mode,
    )
    try:
        await repository.start()
        yield repository
    finally:
        await repository.close()
    assert failures == []


async def ask(
    repository: Repository, name: str, *, outputs: tuple[str, ...] = (), **inputs: object
) -> dict[str, Tensor]:
    """What a model answers to these inputs; numbers are float32 unless they are arrays."""
    tensors = {
        key: value if isinstance(value, np.ndarray) else np.array(value, np.float32) for key, value in inputs.items()
    }
    return dict((await repository.get(name).infer(Request(tensors, outputs=outputs))).outputs)
