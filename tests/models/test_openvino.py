"""OpenVINO as the execution accelerator of ONNX graphs: what it computes, and what it is kept from."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from lookwire_server.errors import FailedPrecondition, InvalidArgument
from lookwire_server.models import config_file
from lookwire_server.models.config import warnings
from tests.accelerated import ACCELERATOR, bf16
from tests.models.repositories import FLOAT, INT64, STRING, ask, graph, serving, unary, write

__all__ = ["bf16"]
CONFIG = f'backend: "onnxruntime" max_batch_size: 0 {ACCELERATOR}'
INT32 = TensorProto.INT32
GENERATOR = np.random.default_rng(3)


def save(root: Path, model: onnx.ModelProto, config: str = CONFIG) -> None:
    onnx.save(model, write(root, "m", config) / "1/model.onnx")


def lookup(table: np.ndarray) -> onnx.ModelProto:
    """y = the rows of the table that x names."""
    return graph(
        [("Gather", ["table", "x"], ["y"])],
        {"x": (INT32, ["batch", "length"])},
        {"y": (FLOAT, ["batch", "length", table.shape[1]])},
        {"table": table},
    )


def picked(data: Sequence[int | str], depth: int) -> onnx.ModelProto:
    """y = the parts of `data` that `indices` [n, depth] names (GatherND)."""
    return graph(
        [("GatherND", ["data", "indices"], ["y"])],
        {"data": (FLOAT, data), "indices": (INT64, ["n", depth])},
        {"y": (FLOAT, ["n", *data[depth:]])},
    )


async def refusal(root: Path) -> str:
    """Why the repository cannot be served."""
    with pytest.raises(FailedPrecondition) as raised:
        async with serving(root):
            pass
    return str(raised.value)


@pytest.mark.usefixtures("bf16")
async def test_products_are_in_bfloat16(tmp_path: Path) -> None:
    """A product has the precision of bfloat16: near to that of float32, and not the same."""
    weights = GENERATOR.standard_normal((256, 256), np.float32)
    model = graph(
        [("MatMul", ["x", "weights"], ["y"])],
        {"x": (FLOAT, ["batch", 256])},
        {"y": (FLOAT, ["batch", 256])},
        {"weights": weights},
    )
    save(tmp_path, model)
    x = GENERATOR.standard_normal((64, 256), np.float32)
    async with serving(tmp_path) as repository:
        y = (await ask(repository, "m", x=x))["y"]
    error = np.linalg.norm(y - x @ weights) / np.linalg.norm(x @ weights)
    assert 1e-4 < error < 1e-2


@pytest.mark.usefixtures("bf16")
async def test_graph_alone_is_completed(tmp_path: Path) -> None:
    """The config's gaps are filled from the graph as OpenVINO reads it, with the same words as from onnxruntime's."""
    save(tmp_path, unary("Neg", ["batch", 3, "n"]), f'backend: "onnxruntime" {ACCELERATOR}')
    async with serving(tmp_path) as repository:
        config = repository.get("m").config
        answer = await ask(repository, "m", x=np.ones((2, 3, 5), np.float32))

    assert (config.max_batch_size, config.dynamic_batching) == (4, True)
    assert [(spec.name, spec.datatype, spec.dims) for spec in config.inputs] == [("x", "FP32", (3, -1))]
    assert answer["y"].shape == (2, 3, 5)
    assert (answer["y"] == -1).all()


@pytest.mark.usefixtures("bf16")
@pytest.mark.parametrize("value", [7, -8, 2**31 - 1, -(2**31)])
async def test_value_that_is_no_row_is_refused(tmp_path: Path, value: int) -> None:
    """A value beyond the table that it is looked up in is refused by its sender's name of it; its neighbours are answered."""
    table = np.arange(14, dtype=np.float32).reshape(7, 2)
    save(tmp_path, lookup(table), f'backend: "onnxruntime" max_batch_size: 8 dynamic_batching {{ }} {ACCELERATOR}')
    async with serving(tmp_path) as repository:
        with pytest.raises(InvalidArgument, match=rf"input 'x' has {value}: its values must be from 0 to 6"):
            await ask(repository, "m", x=np.array([[1, value]], np.int32))
        answer = await ask(repository, "m", x=np.array([[6, 0, -1]], np.int32))
    assert answer["y"].tolist() == [[[12, 13], [0, 1], [12, 13]]]


@pytest.mark.usefixtures("bf16")
@pytest.mark.parametrize(("data", "depth"), [((5, 4), 1), ((3, 5, 4), 2), ((3, 5, 4), 3)])
async def test_no_index_leads_out_of_a_tensor(tmp_path: Path, data: tuple[int, ...], depth: int) -> None:
    """GatherND gives what its indices name, and for those that name nothing, numbers of the tensor's own or zeros."""
    save(tmp_path, picked([data[0], *"abc"[: len(data) - 1]], depth))
    values = GENERATOR.standard_normal(data, np.float32)
    indices = np.stack([GENERATOR.integers(-size, size, 20) for size in data[:depth]], axis=1)
    async with serving(tmp_path) as repository:
        answer = await ask(repository, "m", data=values, indices=indices)
        np.testing.assert_array_equal(answer["y"], values[tuple(indices.T)])
        for far in (300_000, -300_000, 2**40 + 3, -(2**40)):
            answer = await ask(repository, "m", data=values, indices=np.full_like(indices, far))
            assert np.isin(answer["y"], [*values.flat, 0.0]).all()


@pytest.mark.usefixtures("bf16")
async def test_no_index_leads_out_of_a_row(tmp_path: Path) -> None:
    """GatherElements gives what its indices name of each row, and for those that name nothing, zeros."""
    model = graph(
        [("GatherElements", ["data", "indices"], ["y"])],
        {"data": (FLOAT, [6, "a", "b"]), "indices": (INT64, [6, "a", "n"])},
        {"y": (FLOAT, [6, "a", "n"])},
    )
    model.graph.node[0].attribute.append(onnx.helper.make_attribute("axis", -1))
    save(tmp_path, model)
    data, indices = GENERATOR.standard_normal((6, 2, 4), np.float32), GENERATOR.integers(-4, 4, (6, 2, 3))
    async with serving(tmp_path) as repository:
        answer = await ask(repository, "m", data=data, indices=indices)
        np.testing.assert_array_equal(answer["y"], np.take_along_axis(data, indices, axis=2))
        for far in (4, -5, 300_000, -300_000, 2**31 - 1, -(2**31)):
            answer = await ask(repository, "m", data=data, indices=np.full_like(indices, far))
            assert (answer["y"] == 0).all()


@pytest.mark.usefixtures("bf16")
async def test_empty_input_is_refused(tmp_path: Path) -> None:
    """An empty tensor is refused, of which OpenVINO makes what its memory happened to hold."""
    save(tmp_path, unary("Neg", ["a", "b"]))
    async with serving(tmp_path) as repository:
        with pytest.raises(InvalidArgument, match=r"input 'x' has shape \[2, 0\]: it must not be empty"):
            await ask(repository, "m", x=np.zeros((2, 0), np.float32))


@pytest.mark.usefixtures("bf16")
async def test_operation_that_may_lead_outside_is_refused(tmp_path: Path) -> None:
    """A graph with an operation whose indices OpenVINO does not check is refused by the operation's name."""
    model = graph(
        [("ScatterND", ["data", "indices", "updates"], ["y"])],
        {"data": (FLOAT, ["n", 2]), "indices": (INT64, ["m", 1]), "updates": (FLOAT, ["m", 2])},
        {"y": (FLOAT, ["n", 2])},
    )
    save(tmp_path, model)
    assert "of which it is not known that OpenVINO stays inside" in await refusal(tmp_path)


@pytest.mark.usefixtures("bf16")
async def test_graph_that_cannot_be_compiled_is_refused(tmp_path: Path) -> None:
    """A graph that OpenVINO reads and does not support is refused with OpenVINO's reason."""
    model = graph(
        [("Reshape", ["x", "shape"], ["y"])],
        {"x": (FLOAT, [4]), "shape": (INT64, ["rank"])},
        {"y": (FLOAT, ["n"])},
    )
    del model.graph.output[0].type.tensor_type.shape.dim[:]
    model.graph.output[0].type.tensor_type.ClearField("shape")
    save(tmp_path, model)
    assert "OpenVINO cannot compile the graph" in await refusal(tmp_path)


@pytest.mark.usefixtures("bf16")
async def test_texts_are_refused(tmp_path: Path) -> None:
    """A graph of strings is refused: OpenVINO is not used for them."""
    save(tmp_path, unary("Identity", ["n"], STRING))
    assert "OpenVINO" in await refusal(tmp_path)


@pytest.mark.parametrize(
    ("config", "says"),
    [
        (
            CONFIG.replace("bf16", "fp16"),
            "parameter 'precision_mode' with value 'fp16'; served is precision_mode 'bf16'",
        ),
        (
            CONFIG.replace('value: "bf16" }', 'value: "bf16" } parameters { key: "threads" value: "2" }'),
            "parameter 'threads' with value '2'",
        ),
        (f"{CONFIG} instance_group [{{ kind: KIND_GPU }}]", "is for instances of KIND_CPU"),
    ],
)
async def test_what_is_not_served_of_it_is_refused(tmp_path: Path, config: str, says: str) -> None:
    """Another precision, another parameter and instances on GPUs are refused, whether OpenVINO is installed or not."""
    save(tmp_path, unary("Neg", ["n"]), config)
    assert says in await refusal(tmp_path)


@pytest.mark.parametrize(
    ("accelerators", "warned"),
    [
        (
            'cpu_execution_accelerator [ { name: "openvino" parameters { key: "precision_mode" value: "bf16" } } ]',
            False,
        ),
        ('cpu_execution_accelerator [ { name: "openvino" } ]', True),
        ('gpu_execution_accelerator [ { name: "tensorrt" } ]', True),
    ],
)
def test_other_accelerators_have_no_effect(tmp_path: Path, accelerators: str, warned: bool) -> None:
    """Any other accelerator is a warning, and onnxruntime executes the graph."""
    folder = write(
        tmp_path,
        "m",
        f'backend: "onnxruntime" optimization {{ execution_accelerators {{ {accelerators} }} }}',
    )
    config = config_file.read(folder)
    assert config.accelerated is not warned
    assert any("execution_accelerators" in warning for warning in warnings(config.message)) is warned


@pytest.mark.usefixtures("bf16")
def test_nothing_is_reported_about_its_use(tmp_path: Path) -> None:
    """Neither OpenVINO's telemetry is loaded, nor is a file written into the home directory."""
    program = (
        "import sys; from lookwire_server.models.backends.openvino import core; core()\n"
        "print(sys.modules['openvino_telemetry'], [name for name in sys.modules if name.startswith('openvino_telemetry.')])"
    )
    environment = os.environ | {"HOME": str(tmp_path)}
    loaded = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
    ).stdout
    assert loaded.strip() == "None []"
    assert list(tmp_path.iterdir()) == []


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where OpenVINO is not installed, the error says how to install it."""
    from lookwire_server.models.backends import openvino

    monkeypatch.setitem(sys.modules, "openvino", None)
    monkeypatch.setitem(sys.modules, "openvino_telemetry", None)
    with pytest.raises(InvalidArgument, match=r"pip install 'lookwire\[openvino\]'"):
        openvino.core.__wrapped__()


@pytest.mark.usefixtures("bf16")
def test_cpu_without_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the CPU has no instructions for bfloat16, the model is refused instead of computed otherwise."""
    from lookwire_server.models.backends import openvino

    class Core:
        def get_property(self, device: str, name: str) -> list[str]:
            return ["FP32", "INT8"]

    monkeypatch.setitem(sys.modules, "openvino", type("openvino", (), {"Core": Core}))
    monkeypatch.setitem(sys.modules, "openvino_telemetry", None)
    with pytest.raises(InvalidArgument, match="no instructions for bfloat16"):
        openvino.core.__wrapped__()
