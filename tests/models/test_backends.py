"""The onnxruntime and identity backends, on graphs made here."""

import asyncio
from pathlib import Path

import numpy as np
import onnx
import pytest

from lookwire_server.errors import FailedPrecondition, InvalidArgument
from lookwire_server.models.model import Request
from tests.models.repositories import FLOAT, INT64, STRING, ask, graph, serving, unary, write

IDENTITY = """
backend: "identity" max_batch_size: 8 dynamic_batching { }
input [{ name: "INPUT0" data_type: TYPE_FP32 dims: [-1] %s }]
output [{ name: "OUTPUT0" data_type: TYPE_FP32 dims: [-1] }]
%s
"""
OPTIONAL = """
backend: "identity" max_batch_size: 4
input [
  { name: "INPUT0" data_type: TYPE_FP32 dims: [2] },
  { name: "INPUT1" data_type: TYPE_STRING dims: [-1, 3] optional: true }
]
output [
  { name: "OUTPUT1" data_type: TYPE_STRING dims: [-1, 3] },
  { name: "OUTPUT0" data_type: TYPE_FP32 dims: [2] }
]
"""


def save(root: Path, model: onnx.ModelProto, config: str | None = None, name: str = "m") -> Path:
    folder = write(root, name, config)
    onnx.save(model, folder / "1" / "model.onnx")
    return folder


async def refusal(root: Path) -> str:
    """Why the repository cannot be served."""
    with pytest.raises(FailedPrecondition) as raised:
        async with serving(root):
            pass
    return str(raised.value)


async def test_graph_alone_is_a_model(tmp_path: Path) -> None:
    """A graph with a free first dimension needs no config: it gets batches of 4 and dynamic batching."""
    save(tmp_path, unary("Neg", ["batch", 3, "n"]))
    async with serving(tmp_path) as repository:
        config = repository.get("m").config
        answer = await ask(repository, "m", x=np.ones((2, 3, 5), np.float32))

    assert (config.max_batch_size, config.dynamic_batching) == (4, True)
    assert [(spec.name, spec.datatype, spec.dims) for spec in config.inputs] == [("x", "FP32", (3, -1))]
    assert (answer["y"] == -1).all()
    assert answer["y"].shape == (2, 3, 5)


async def test_fixed_graph_has_no_batches(tmp_path: Path) -> None:
    """A graph whose first dimension is fixed is served without batching, its shapes as they are."""
    save(tmp_path, unary("Neg", [2, 3]))
    async with serving(tmp_path) as repository:
        config = repository.get("m").config
        answer = await ask(repository, "m", x=[[1, 2, 3], [4, 5, 6]])

    assert (config.max_batch_size, config.dynamic_batching, config.inputs[0].dims) == (0, False, (2, 3))
    assert answer["y"].tolist() == [[-1, -2, -3], [-4, -5, -6]]


async def test_declared_tensors_are_not_completed(tmp_path: Path) -> None:
    """A config that declares inputs and outputs keeps its max_batch_size of 0 though the graph takes batches."""
    config = """
    backend: "onnxruntime"
    input [{ name: "x" data_type: TYPE_FP32 dims: [-1, 3] }]
    output [{ name: "y" data_type: TYPE_FP32 dims: [-1, 3] }]
    """
    save(tmp_path, unary("Neg", ["batch", 3]), config)
    async with serving(tmp_path) as repository:
        assert repository.get("m").config.max_batch_size == 0
        assert (await ask(repository, "m", x=[[1, 2, 3]]))["y"].tolist() == [[-1, -2, -3]]


async def test_half_declared_config_decides_the_batch(tmp_path: Path) -> None:
    """Declared inputs of the graph's full rank say that the first dimension is no batch, also for completed outputs."""
    config = 'backend: "onnxruntime" input [{ name: "x" data_type: TYPE_FP32 dims: [-1, 3] }]'
    save(tmp_path, unary("Neg", ["batch", 3]), config)
    async with serving(tmp_path) as repository:
        completed = repository.get("m").config

    assert (completed.max_batch_size, completed.outputs[0].dims) == (0, (-1, 3))


async def test_one_number_a_row_has_dims_1(tmp_path: Path) -> None:
    """A graph of one number a row is seen with dims [1], and takes the numbers without that dimension."""
    save(tmp_path, unary("Neg", ["batch"]))
    async with serving(tmp_path) as repository:
        config = repository.get("m").config
        answer = await ask(repository, "m", x=[[1], [2]])

    assert [(spec.dims, spec.reshape) for spec in (*config.inputs, *config.outputs)] == [((1,), ())] * 2
    assert answer["y"].tolist() == [[-1], [-2]]


async def test_config_with_reshape_fits_the_graph(tmp_path: Path) -> None:
    """Declared dims may differ from the graph's where the reshape says how."""
    config = """
    backend: "onnxruntime" max_batch_size: 8
    input [{ name: "x" data_type: TYPE_FP32 dims: [6] reshape { shape: [2, 3] } }]
    output [{ name: "y" data_type: TYPE_FP32 dims: [6] reshape { shape: [2, 3] } }]
    """
    save(tmp_path, unary("Neg", ["batch", 2, 3]), config)
    async with serving(tmp_path) as repository:
        assert (await ask(repository, "m", x=[list(range(6))]))["y"].tolist() == [[0, -1, -2, -3, -4, -5]]


async def test_texts_are_bytes(tmp_path: Path) -> None:
    """String graphs take and give UTF-8 bytes; a request with other bytes fails alone."""
    save(tmp_path, unary("Identity", ["batch", "n"], STRING))
    async with serving(tmp_path) as repository:
        good, bad = await asyncio.gather(
            ask(repository, "m", x=np.array([["né".encode(), b""]], np.object_)),
            ask(repository, "m", x=np.array([[b"\xff", b"b"]], np.object_)),
            return_exceptions=True,
        )

    assert not isinstance(good, BaseException)
    assert good["y"].tolist() == [["né".encode(), b""]]
    assert isinstance(bad, InvalidArgument)
    assert "input 'x' has a text that is not UTF-8" in str(bad)


async def test_folder_with_external_data(tmp_path: Path) -> None:
    """model.onnx may be a folder that holds the graph and its external data."""
    model = graph(
        [("MatMul", ["x", "w"], ["y"])],
        {"x": (FLOAT, ["batch", 64])},
        {"y": (FLOAT, ["batch", 64])},
        {"w": np.eye(64, dtype=np.float32) * 3},
    )
    folder = write(tmp_path, "m", 'backend: "onnxruntime"') / "1" / "model.onnx"
    folder.mkdir()
    onnx.save(model, folder / "model.onnx", save_as_external_data=True, location="weights", size_threshold=0)
    assert (folder / "weights").stat().st_size >= 64 * 64 * 4
    async with serving(tmp_path) as repository:
        assert (await ask(repository, "m", x=np.ones((1, 64), np.float32)))["y"].tolist() == [[3.0] * 64]


async def test_file_and_options_of_the_config(tmp_path: Path) -> None:
    """default_model_filename, graph level, threads, modes and arena options are taken as Triton's backend takes them."""
    config = """
    backend: "onnxruntime" default_model_filename: "other.onnx" optimization { graph { level: %d } }
    parameters { key: "intra_op_thread_count" value { string_value: "1" } }
    parameters { key: "inter_op_thread_count" value { string_value: "2" } }
    parameters { key: "execution_mode" value { string_value: "%s" } }
    parameters { key: "enable_mem_arena" value { string_value: "1" } }
    parameters { key: "enable_mem_pattern" value { string_value: "1" } }
    parameters { key: "memory.enable_memory_arena_shrinkage" value { string_value: "cpu:0" } }
    """
    for level in (-1, 0, 1, 2):
        folder = write(tmp_path, f"m{level}", config % (level, "1"))
        onnx.save(unary("Neg", ["batch", 1]), folder / "1" / "other.onnx")
    async with serving(tmp_path) as repository:
        for level in (-1, 0, 1, 2):
            assert (await ask(repository, f"m{level}", x=[[7]]))["y"].tolist() == [[-7]]

    write(tmp_path, "m0", config % (3, "1"))
    write(tmp_path, "m1", config % (0, "maybe"))
    why = await refusal(tmp_path)
    assert "optimization.graph.level must be" in why
    assert "parameter 'execution_mode' must be" in why


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ("max_batch_size: 4", "not a dynamic batch: [2, 3]; set max_batch_size to 0"),
        ('input [{ name: "z" data_type: TYPE_FP32 dims: [2, 3] }]', "the graph needs input 'x'"),
        ('output [{ name: "z" data_type: TYPE_FP32 dims: [2, 3] }]', "config names tensor 'z'; the graph has y"),
        ('output [{ name: "y" data_type: TYPE_INT64 dims: [2, 3] }]', "tensor 'y' is INT64; the graph says FP32"),
        ('output [{ name: "y" data_type: TYPE_FP32 dims: [3, 2] }]', "has dims [3, 2]; the graph says [2, 3]"),
        ("instance_group [{ kind: KIND_GPU }]", "set KIND_CPU or KIND_AUTO"),
        ('default_model_filename: "../../x.onnx"', "leads out of"),
        ('default_model_filename: "none.onnx"', "none.onnx does not exist"),
    ],
)
async def test_config_that_contradicts_the_graph(tmp_path: Path, config: str, words: str) -> None:
    """A config that the graph cannot fulfil fails the load, and the error says what to change."""
    save(tmp_path, unary("Neg", [2, 3]), f'backend: "onnxruntime" {config}')

    assert words in await refusal(tmp_path)


async def test_unusual_graph_is_served_without_rehearsal(tmp_path: Path) -> None:
    """A graph that fails on zeros with free dims of 1 is served all the same."""
    reshape = graph(
        [("Reshape", ["x", "shape"], ["y"])],
        {"x": (FLOAT, ["batch", "n"])},
        {"y": (FLOAT, ["batch", 2, "half"])},
        {"shape": np.array([0, 2, -1], np.int64)},
    )
    save(tmp_path, reshape)
    async with serving(tmp_path) as repository:
        assert (await ask(repository, "m", x=[[1, 2, 3, 4]]))["y"].tolist() == [[[1, 2], [3, 4]]]


async def test_ragged_inputs_reach_the_graph_in_one_dimension(tmp_path: Path) -> None:
    """Requests of unequal lengths go through a graph of one dimension together, and get their own lengths back."""
    config = """
    backend: "onnxruntime" max_batch_size: 8 dynamic_batching { max_queue_delay_microseconds: 200000
      preferred_batch_size: [2] }
    input [{ name: "x" data_type: TYPE_FP32 dims: [-1] allow_ragged_batch: true }]
    output [{ name: "y" data_type: TYPE_FP32 dims: [-1] }]
    batch_output [{ target_name: "y" kind: BATCH_SCATTER_WITH_INPUT_SHAPE source_input: "x" }]
    """
    save(tmp_path, unary("Neg", ["n"]), config)
    async with serving(tmp_path) as repository:
        answers = await asyncio.gather(ask(repository, "m", x=[[1, 2]]), ask(repository, "m", x=[[3, 4, 5]]))
        executions = repository.get("m").statistics.execution_count

    assert [answer["y"].tolist() for answer in answers] == [[[-1, -2]], [[-3, -4, -5]]]
    assert executions == 1


async def test_some_outputs_of_the_graph(tmp_path: Path) -> None:
    """A config may name fewer outputs than the graph has; the others are not computed for callers."""
    two = graph(
        [("Neg", ["x"], ["y"]), ("Shape", ["x"], ["z"])], {"x": (FLOAT, [2])}, {"y": (FLOAT, [2]), "z": (INT64, [1])}
    )
    save(tmp_path, two, 'backend: "onnxruntime" output [{ name: "y" data_type: TYPE_FP32 dims: [2] }]')
    async with serving(tmp_path) as repository:
        assert set(await ask(repository, "m", x=[1, 2])) == {"y"}


async def test_identity_gives_back_what_it_got(tmp_path: Path) -> None:
    """Outputs are the inputs of the same number; zeros or empty strings stand in for optional inputs that are missing."""
    write(tmp_path, "m", OPTIONAL)
    async with serving(tmp_path) as repository:
        whole = await ask(repository, "m", INPUT0=[[1, 2]], INPUT1=np.array([[[b"a", b"b", b"c"]]], np.object_))
        half = await ask(repository, "m", INPUT0=[[1, 2], [3, 4]])

    assert (whole["OUTPUT0"].tolist(), whole["OUTPUT1"].tolist()) == ([[1, 2]], [[[b"a", b"b", b"c"]]])
    assert (half["OUTPUT0"].tolist(), half["OUTPUT1"].tolist()) == ([[1, 2], [3, 4]], [[[b""] * 3]] * 2)


async def test_identity_of_ragged_inputs_is_one_execution(tmp_path: Path) -> None:
    """Ragged requests share an execution, and each gets its own tensor back."""
    write(
        tmp_path,
        "m",
        IDENTITY
        % (
            "allow_ragged_batch: true",
            'parameters { key: "execute_delay_ms" value { string_value: "50" } }',
        ),
    )
    async with serving(tmp_path) as repository:
        answers = await asyncio.gather(*(ask(repository, "m", INPUT0=[[1.0] * length]) for length in (1, 2, 3, 4)))
        executions = repository.get("m").statistics.execution_count

    assert [answer["OUTPUT0"].shape for answer in answers] == [(1, 1), (1, 2), (1, 3), (1, 4)]
    assert executions == 2


async def test_identity_delays(tmp_path: Path) -> None:
    """Instance 0 takes the delay, instance 1 its multiple; loading takes the creation delay."""
    parameters = {"execute_delay_ms": 20, "instance_wise_delay_multiplier": 20, "creation_delay_sec": 0.15}
    text = "\n".join(f'parameters {{ key: "{k}" value {{ string_value: "{v}" }} }}' for k, v in parameters.items())
    write(tmp_path, "m", IDENTITY.replace("dynamic_batching { }", "") % ("", f"instance_group [{{ count: 2 }}] {text}"))
    async with serving(tmp_path) as repository:
        loading = repository.load_seconds["m", 1]
        model = repository.get("m")
        responses = await asyncio.gather(
            *(model.infer(Request({"INPUT0": np.ones((1, 1), np.float32)})) for _ in range(2))
        )

    quick, slow = sorted(response.infer_seconds for response in responses)
    assert loading >= 0.15
    assert 0.02 <= quick < 0.4 <= slow


@pytest.mark.parametrize(
    ("replaced", "by", "words"),
    [
        (
            "TYPE_FP32 dims: [-1] }]\n\n",
            "TYPE_INT32 dims: [-1] }]\n\n",
            "output 'OUTPUT0' is INT32, but input 'INPUT0'",
        ),
        (
            'output [{ name: "OUTPUT0"',
            'output [{ name: "A" data_type: TYPE_FP32 dims: [1] }, { name: "B"',
            "output 'B' has no",
        ),
        (
            "dynamic_batching { }",
            'parameters { key: "execute_delay_ms" value { string_value: "soon" } }',
            "'execute_delay_ms' must be a number, 0 or more, got 'soon'",
        ),
    ],
)
async def test_identity_that_cannot_be(tmp_path: Path, replaced: str, by: str, words: str) -> None:
    """An identity config whose outputs cannot be its inputs, or whose delay is no number, fails the load."""
    config = IDENTITY % ("", "")
    assert replaced in config
    write(tmp_path, "m", config.replace(replaced, by))

    assert words in await refusal(tmp_path)
