"""Warm-up: samples of the config, executed on every instance before a model is ready."""

import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from lookwire_server.errors import InvalidArgument, ModelFailure
from lookwire_server.models import config_file, warmup
from lookwire_server.models.config import ModelConfig
from lookwire_server.models.model import Request
from lookwire_server.models.session import Execution
from lookwire_server.models.warmup import rehearse, warm
from tests.models.repositories import serving, write

CONFIG = """
backend: "identity" max_batch_size: %d
input [
  { name: "INPUT0" data_type: TYPE_FP32 dims: [2, -1] },
  { name: "INPUT1" data_type: TYPE_STRING dims: [2] optional: true },
  { name: "INPUT2" data_type: TYPE_INT64 dims: [3] optional: true }
]
output [{ name: "OUTPUT0" data_type: TYPE_FP32 dims: [2, -1] }]
%s
"""


class Recorder:
    """A session that keeps what it is asked, and fails if it has a failure to raise or to answer with."""

    immediate = False
    concurrent = False

    def __init__(self, failure: Exception | None = None) -> None:
        self.requests: list[Request] = []
        self.failure = failure

    def execute(self, requests: Sequence[Request]) -> Execution:
        self.requests += requests
        if isinstance(self.failure, InvalidArgument):
            return Execution([self.failure], 0.0, 0.0, 0.0)
        if self.failure:
            raise self.failure
        return Execution([{}], 0.0, 0.0, 0.0)

    def close(self) -> None: ...


def sample(inputs: str, *, name: str = "first", rows: int = 2, count: int = 1) -> str:
    return f'model_warmup {{ name: "{name}" batch_size: {rows} count: {count} {inputs} }}'


def tensor(name: str, data_type: str, dims: list[int], data: str) -> str:
    return f'inputs {{ key: "{name}" value {{ data_type: {data_type} dims: {dims} {data} }} }}'


ZEROS = tensor("INPUT0", "TYPE_FP32", [2, 3], "zero_data: true")


def read(root: Path, warmups: str, *, rows: int = 4) -> tuple[ModelConfig, Path]:
    folder = write(root, "m", CONFIG % (rows, warmups))
    (folder / "warmup").mkdir(exist_ok=True)
    return config_file.read(folder), folder


def test_samples_reach_every_instance(tmp_path: Path) -> None:
    """Each sample is executed its count of times on each instance, with zeros, random values or a file's in each row."""
    numbers = tensor("INPUT2", "TYPE_INT64", [3], 'input_data_file: "numbers"')
    texts = tensor("INPUT1", "TYPE_STRING", [2], 'input_data_file: "deep/texts"')
    random = tensor("INPUT0", "TYPE_FP32", [2, 5], "random_data: true")
    config, folder = read(
        tmp_path, sample(ZEROS + numbers + texts, count=3) + sample(random, name="second", rows=1), rows=4
    )
    np.array([7, -8, 9], "<i8").tofile(folder / "warmup" / "numbers")
    (folder / "warmup" / "deep").mkdir()
    (folder / "warmup" / "deep" / "texts").write_bytes(struct.pack("<I2sI0s", 2, b"\xffa", 0, b""))
    sessions = [Recorder(), Recorder()]

    warm(config, folder, sessions)

    for session in sessions:
        assert len(session.requests) == 4
        *first, second = session.requests
        for request in first:
            assert request.inputs["INPUT0"].tolist() == np.zeros((2, 2, 3)).tolist()
            assert request.inputs["INPUT2"].tolist() == [[7, -8, 9]] * 2
            assert request.inputs["INPUT1"].tolist() == [[b"\xffa", b""]] * 2
        values = second.inputs["INPUT0"]
        assert values.shape == (1, 2, 5)
        assert values.dtype == np.float32
        assert len(np.unique(values)) == 10
        assert ((values >= 0) & (values < 1)).all()


@pytest.mark.parametrize("data", ["zero_data: true", "random_data: true"])
@pytest.mark.parametrize("data_type", ["BOOL", "UINT8", "INT64", "FP16", "FP64", "STRING"])
def test_every_datatype(tmp_path: Path, data: str, data_type: str) -> None:
    """Zeros and random values exist in every datatype, also without batches."""
    folder = write(
        tmp_path,
        "m",
        f"""
        backend: "identity" input [{{ name: "INPUT0" data_type: TYPE_{data_type} dims: [40] }}]
        output [{{ name: "OUTPUT0" data_type: TYPE_{data_type} dims: [40] }}]
        """
        + sample(tensor("INPUT0", f"TYPE_{data_type}", [40], data), rows=1),
    )
    session = Recorder()

    warm(config_file.read(folder), folder, [session])

    values = session.requests[0].inputs["INPUT0"]
    assert values.shape == (40,)
    assert len(set(values.tolist())) == 1 if "zero" in data else len(set(values.tolist())) > 1
    if data_type == "STRING":
        assert all(type(value) is bytes for value in values.tolist())


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ("", "missing required input"),
        (ZEROS + tensor("z", "TYPE_FP32", [1], "zero_data: true"), "unexpected inference input 'z'"),
        (tensor("INPUT0", "TYPE_INT32", [2, 3], "zero_data: true"), "input 'INPUT0' data-type is"),
        (tensor("INPUT0", "TYPE_FP32", [3, 3], "zero_data: true"), "unexpected shape for input 'INPUT0'"),
        (tensor("INPUT0", "TYPE_BF16", [2, 3], "zero_data: true"), "data_type 'BF16', which is not served"),
        (tensor("INPUT0", "TYPE_FP32", [2, 1 << 40], "zero_data: true"), "more than 67108864 elements"),
        (tensor("INPUT0", "TYPE_FP32", [2, 3], 'input_data_file: "../config.pbtxt"'), "leads out of"),
        (tensor("INPUT0", "TYPE_FP32", [2, 3], 'input_data_file: "/etc/hostname"'), "leads out of"),
        (tensor("INPUT0", "TYPE_FP32", [2, 3], 'input_data_file: "none"'), "cannot read input_data_file"),
        (tensor("INPUT0", "TYPE_FP32", [2, 3], 'input_data_file: "short"'), "has 5 bytes; one row of FP32"),
        (ZEROS + tensor("INPUT1", "TYPE_STRING", [2], 'input_data_file: "short"'), "holds 1 whole or partial strings"),
    ],
)
def test_sample_that_is_wrong(tmp_path: Path, inputs: str, words: str) -> None:
    """What is wrong with a sample is said with its name, before anything is executed."""
    config, folder = read(tmp_path, sample(inputs, name="broken"))
    (folder / "warmup" / "short").write_bytes(b"\x09\0\0\0x")
    session = Recorder()

    with pytest.raises(InvalidArgument) as raised:
        warm(config, folder, [session])

    assert "model 'm': warm-up sample 'broken'" in str(raised.value)
    assert words in str(raised.value)
    assert session.requests == []


@pytest.mark.parametrize(
    ("rows", "of_model", "words"), [(5, 4, "more than max_batch_size, 4"), (2, 0, "has no batches")]
)
def test_sample_that_is_too_large(tmp_path: Path, rows: int, of_model: int, words: str) -> None:
    """A sample has no more rows than the model takes."""
    config, folder = read(tmp_path, sample(ZEROS, rows=rows), rows=of_model)

    with pytest.raises(InvalidArgument, match=words):
        warm(config, folder, [Recorder()])


@pytest.mark.parametrize("failure", [InvalidArgument("refused"), RuntimeError("broken")])
def test_sample_that_the_model_fails_on(tmp_path: Path, failure: Exception) -> None:
    """A model that fails on a sample, or answers it with an error, is not loaded."""
    config, folder = read(tmp_path, sample(ZEROS))

    with pytest.raises(ModelFailure, match=r"warm-up sample 'first' failed: .*(refused|broken)"):
        warm(config, folder, [Recorder(failure)])


def test_rehearsal_without_samples(tmp_path: Path) -> None:
    """Without samples one row and the largest batch are executed, of zeros and empty strings."""
    config, _ = read(tmp_path, "")
    session = Recorder()

    rehearse(config, [session])

    assert [request.inputs["INPUT0"].shape for request in session.requests] == [(1, 2, 1), (4, 2, 1)]
    assert session.requests[1].inputs["INPUT1"].tolist() == [[b"", b""]] * 4

    rehearse(config, [Recorder(RuntimeError("broken"))])


def test_rehearsal_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The largest batch has no more rows than fit into the largest tensor; without room for one, none is executed."""
    config, _ = read(tmp_path, "", rows=100)
    session = Recorder()
    monkeypatch.setattr(warmup, "MAX_ELEMENTS", 11)  # a row of INPUT2 has 3

    rehearse(config, [session])

    assert [request.inputs["INPUT2"].shape for request in session.requests] == [(1, 3), (3, 3)]

    monkeypatch.setattr(warmup, "MAX_ELEMENTS", 2)
    session.requests.clear()
    rehearse(config, [session])

    assert session.requests == []


def test_rehearsal_without_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch that there is no memory for is not executed, and the model is served all the same."""
    config, _ = read(tmp_path, "")
    session = Recorder()

    def refuse(*args: object) -> None:
        raise MemoryError

    monkeypatch.setattr(warmup, "zeros", refuse)

    rehearse(config, [session])

    assert session.requests == []


async def test_warm_up_is_before_ready_and_is_not_counted(tmp_path: Path) -> None:
    """A model is ready when its samples were executed, and its statistics know nothing of them."""
    delay = 'parameters { key: "execute_delay_ms" value { string_value: "60" } }'
    read(tmp_path, sample(ZEROS, count=3) + delay)
    async with serving(tmp_path) as repository:
        statistics = repository.get("m").statistics
        assert repository.load_seconds["m", 1] >= 0.18
        assert (statistics.execution_count, statistics.success.count) == (0, 0)
