"""Ensembles of python and identity models: what is executed, when, and what is refused."""

import asyncio
import time
from pathlib import Path

import numpy as np
import pytest

from lookwire_server.errors import FailedPrecondition, InvalidArgument, ModelFailure, QueueTimeout, Unavailable
from lookwire_server.models.model import Request
from lookwire_server.models.repository import ControlMode
from tests.models.repositories import ask, serving, write

# Adds 1 to each of its inputs; a missing one counts as 0.
STEP = """
backend: "python" max_batch_size: %d
input [
  { name: "a" data_type: TYPE_FP32 dims: [-1] },
  { name: "b" data_type: TYPE_FP32 dims: [-1] optional: true }
]
output [
  { name: "sum" data_type: TYPE_FP32 dims: [-1] },
  { name: "told" data_type: TYPE_STRING dims: [1] }
]
dynamic_batching { priority_levels: 3 default_priority_level: 2 default_queue_policy { allow_timeout_override: true } }
"""
SOURCE = """
import json
import time
import numpy as np
import triton_python_backend_utils as pb_utils

SECONDS = 0.0

class TritonPythonModel:
    def execute(self, requests):
        time.sleep(SECONDS)
        return [self.answer(request) for request in requests]

    def answer(self, request):
        tensors = [tensor.as_numpy() for tensor in request.inputs()]
        if (tensors[0] < 0).any():
            return pb_utils.InferenceResponse(error=pb_utils.TritonError("negative", pb_utils.TritonError.INVALID_ARG))
        told = [request.request_id(), request.parameters(), request.requested_output_names()]
        outputs = {"sum": sum(tensors) + np.float32(1), "told": np.array([[json.dumps(told)]] * len(tensors[0]))}
        return pb_utils.InferenceResponse(
            [pb_utils.Tensor(name, outputs[name]) for name in request.requested_output_names()]
        )
"""
IN = 'input [{ name: "IN" data_type: TYPE_FP32 dims: [-1] }]'
OUT = 'output [{ name: "OUT" data_type: TYPE_FP32 dims: [-1] }]'


def step(model: str, inputs: dict[str, str], outputs: dict[str, str], version: int = -1) -> str:
    """A step of ensemble_scheduling."""
    maps = [f'input_map {{ key: "{name}" value: "{tensor}" }}' for name, tensor in inputs.items()]
    maps += [f'output_map {{ key: "{name}" value: "{tensor}" }}' for name, tensor in outputs.items()]
    return f'step {{ model_name: "{model}" model_version: {version} {" ".join(maps)} }}'


def ensemble(*steps: str, inputs: str = IN, outputs: str = OUT, rows: int = 8) -> str:
    return f'platform: "ensemble" max_batch_size: {rows} {inputs} {outputs} ensemble_scheduling {{ {" ".join(steps)} }}'


# OUT = (IN + 1) + (IN + 1) + 1 by one step before two that run together, and one behind them.
DIAMOND = (
    step("last", {"a": "left", "b": "right"}, {"sum": "OUT"}),
    step("first", {"a": "IN"}, {"sum": "begun"}),
    step("one", {"a": "begun"}, {"sum": "left"}),
    step("two", {"a": "begun"}, {"sum": "right"}),
)


def write_steps(root: Path, *names: str, seconds: float = 0.0, rows: int = 8) -> None:
    for name in names:
        write(root, name, STEP % rows, model=SOURCE.replace("SECONDS = 0.0", f"SECONDS = {seconds}"))


async def refusal(root: Path) -> str:
    """Why the repository cannot be served."""
    with pytest.raises(FailedPrecondition) as raised:
        async with serving(root):
            pass
    return str(raised.value)


async def test_steps_run_as_soon_as_they_can(tmp_path: Path) -> None:
    """Steps run in the order of their tensors, whatever the order in the config, and those that can run together do."""
    write_steps(tmp_path, "first", "last")
    write_steps(tmp_path, "one", "two", seconds=0.3)
    write(tmp_path, "e", ensemble(*DIAMOND))
    async with serving(tmp_path) as repository:
        started = time.perf_counter()
        answer = await ask(repository, "e", IN=[[1, 2], [3, 4]])
        seconds = time.perf_counter() - started

    assert answer.keys() == {"OUT"}
    assert answer["OUT"].tolist() == [[7, 9], [11, 13]]
    assert 0.3 <= seconds < 0.55


async def test_statistics_of_an_ensemble(tmp_path: Path) -> None:
    """An ensemble counts its requests once, with the time that passed; a failure once, with the step's reason."""
    write_steps(tmp_path, "first", "one", "two", "last", seconds=0.05)
    write(tmp_path, "e", ensemble(*DIAMOND))
    async with serving(tmp_path) as repository:
        model = repository.get("e")
        started = time.monotonic()
        await model.infer(Request({"IN": np.ones((2, 1), np.float32)}))
        seconds = time.monotonic() - started
        with pytest.raises(InvalidArgument, match=r"^negative$"):
            await ask(repository, "e", IN=[[-1]])
        with pytest.raises(InvalidArgument, match="unexpected shape for input 'IN'"):
            await ask(repository, "e", IN=[1])
        counts = model.statistics

    assert (counts.inference_count, counts.execution_count) == (2, 1)
    assert (counts.success.count, counts.queue.count, counts.compute.count) == (1, 1, 1)
    assert counts.fail.count == 2
    assert counts.failures == {"INVALID_ARGUMENT": 2}
    assert 0.15 <= counts.success.ns / 1e9 <= seconds
    assert counts.batches[2].infer_ns == counts.compute.infer_ns == counts.success.ns
    assert counts.pending == 0


async def test_only_what_is_asked_for(tmp_path: Path) -> None:
    """Steps that the wanted outputs do not need are not executed, and models are asked for the outputs that are used."""
    outputs = 'output [{ name: "x" data_type: TYPE_FP32 dims: [-1] }, { name: "y" data_type: TYPE_STRING dims: [1] }]'
    write_steps(tmp_path, "one", "two")
    write(
        tmp_path,
        "e",
        ensemble(step("one", {"a": "IN"}, {"sum": "x"}), step("two", {"a": "IN"}, {"told": "y"}), outputs=outputs),
    )
    async with serving(tmp_path) as repository:
        some = await ask(repository, "e", IN=[[1]], outputs=("x",))
        assert repository.get("two").statistics.execution_count == 0
        every = await ask(repository, "e", IN=[[1]])
        with pytest.raises(InvalidArgument, match="unexpected inference output 'z' for model 'e'"):
            await ask(repository, "e", IN=[[1]], outputs=("z",))

    assert some.keys() == {"x"}
    assert every["y"].tolist() == [[b'["", "{}", ["told"]]']]


async def test_requests_reach_the_steps_whole(tmp_path: Path) -> None:
    """Id and parameters reach the models of the steps, and a timeout holds in their queues."""
    outputs = 'output [{ name: "y" data_type: TYPE_STRING dims: [1] }]'
    write_steps(tmp_path, "one", seconds=0.3)
    write(tmp_path, "e", ensemble(step("one", {"a": "IN"}, {"told": "y"}), outputs=outputs))
    inputs = {"IN": np.ones((1, 1), np.float32)}
    async with serving(tmp_path) as repository:
        model = repository.get("e")
        first = asyncio.create_task(model.infer(Request(inputs, id="7", parameters={"k": 1})))
        await asyncio.sleep(0.1)
        with pytest.raises(QueueTimeout):
            await model.infer(Request(inputs, timeout=0.05))
        told = (await first).outputs["y"].item()

    assert told == b'["7", "{\\"k\\": 1}", ["told"]]'


async def test_cancelled_request_leaves_the_steps(tmp_path: Path) -> None:
    """When the caller goes, what waits in the queues of the steps is not executed."""
    write_steps(tmp_path, "one", seconds=0.2)
    write(tmp_path, "e", ensemble(step("one", {"a": "IN"}, {"sum": "OUT"})))
    async with serving(tmp_path) as repository:
        first = asyncio.create_task(ask(repository, "e", IN=[[1]]))
        await asyncio.sleep(0.05)
        second = asyncio.create_task(ask(repository, "e", IN=[[1, 2]]))
        await asyncio.sleep(0.05)
        second.cancel()
        with pytest.raises(asyncio.CancelledError):
            await second
        await first
        model, one = repository.get("e"), repository.get("one")
    # Closing a model executes what waits, so that the count is final.
    assert one.statistics.execution_count == 1
    assert model.statistics.failures == {"CANCELLED": 1}
    assert model.statistics.success.count == 1


async def test_first_failure_ends_the_others(tmp_path: Path) -> None:
    """A step that fails is the answer at once; what other steps wait for is cancelled."""
    inputs = 'input [{ name: "IN" data_type: TYPE_FP32 dims: [-1] }, { name: "OTHER" data_type: TYPE_FP32 dims: [-1] }]'
    write_steps(tmp_path, "quick", "last")
    write_steps(tmp_path, "slow", seconds=0.5)
    steps = (
        step("slow", {"a": "IN"}, {"sum": "x"}),
        step("quick", {"a": "OTHER"}, {"sum": "y"}),
        step("last", {"a": "x", "b": "y"}, {"sum": "OUT"}),
    )
    write(tmp_path, "e", ensemble(*steps, inputs=inputs))
    async with serving(tmp_path) as repository:
        started = time.perf_counter()
        with pytest.raises(InvalidArgument, match=r"^negative$"):
            await ask(repository, "e", IN=[[1]], OTHER=[[-1]])
        assert time.perf_counter() - started < 0.45
        assert repository.get("last").statistics.execution_count == 0


async def test_optional_inputs_may_be_missing(tmp_path: Path) -> None:
    """An optional input of the ensemble may be missing where it goes to optional inputs only."""
    inputs = IN[:-1] + ', { name: "MORE" data_type: TYPE_FP32 dims: [-1] optional: true }]'
    write_steps(tmp_path, "one")
    write(tmp_path, "e", ensemble(step("one", {"a": "IN", "b": "MORE"}, {"sum": "OUT"}), inputs=inputs))
    async with serving(tmp_path) as repository:
        assert (await ask(repository, "e", IN=[[1]]))["OUT"].tolist() == [[2]]
        assert (await ask(repository, "e", IN=[[1]], MORE=[[5]]))["OUT"].tolist() == [[7]]


async def test_batches_larger_than_a_step_takes(tmp_path: Path) -> None:
    """A model of a smaller largest batch executes the ensemble's request in pieces."""
    write_steps(tmp_path, "one", rows=2)
    write(tmp_path, "e", ensemble(step("one", {"a": "IN"}, {"sum": "OUT"}), rows=8))
    async with serving(tmp_path) as repository:
        answer = await ask(repository, "e", IN=[[1], [2], [3], [4], [5]])
        assert repository.get("one").statistics.execution_count == 3

    assert answer["OUT"].tolist() == [[2], [3], [4], [5], [6]]


async def test_ensemble_without_batches(tmp_path: Path) -> None:
    """An ensemble without batches gives a model with batches the whole shape."""
    write_steps(tmp_path, "one")
    write(
        tmp_path,
        "e",
        ensemble(
            step("one", {"a": "IN"}, {"sum": "OUT"}),
            inputs=IN.replace("[-1]", "[-1, 2]"),
            outputs=OUT.replace("[-1]", "[1, -1]"),
            rows=0,
        ),
    )
    async with serving(tmp_path) as repository:
        assert (await ask(repository, "e", IN=[[1, 2]]))["OUT"].tolist() == [[2, 3]]


async def test_ensemble_of_an_ensemble(tmp_path: Path) -> None:
    """A step may be an ensemble, or a version of a model that is not the newest."""
    write_steps(tmp_path, "one")
    write(
        tmp_path,
        "one",
        (STEP % 8) + "version_policy { all { } }",
        version=2,
        model=SOURCE.replace("float32(1)", "float32(9)"),
    )
    write(tmp_path, "inner", ensemble(step("one", {"a": "IN"}, {"sum": "OUT"}, version=1)))
    write(
        tmp_path, "outer", ensemble(step("inner", {"IN": "IN"}, {"OUT": "x"}), step("one", {"a": "x"}, {"sum": "OUT"}))
    )
    async with serving(tmp_path) as repository:
        assert (await ask(repository, "outer", IN=[[0]]))["OUT"].tolist() == [[10]]


async def test_unloaded_step_makes_it_unavailable(tmp_path: Path) -> None:
    """Loading an ensemble loads its models; unloading one of them makes it unavailable."""
    write_steps(tmp_path, "one")
    write(tmp_path, "e", ensemble(step("one", {"a": "IN"}, {"sum": "OUT"})))
    async with serving(tmp_path, mode=ControlMode.EXPLICIT) as repository:
        await repository.load_model("e")
        assert (await ask(repository, "e", IN=[[1]]))["OUT"].tolist() == [[2]]
        model = repository.get("e")
        await repository.unload_model("one")
        with pytest.raises(Unavailable):
            repository.get("e")
        with pytest.raises(Unavailable):
            await model.infer(Request({"IN": np.ones((1, 1), np.float32)}))


async def test_step_that_fails_inside(tmp_path: Path) -> None:
    """A fault of a step's model is the fixed error of that model."""
    write(tmp_path, "one", STEP % 8, model=SOURCE.replace("sum(tensors)", "sum(nothing)"))
    write(tmp_path, "e", ensemble(step("one", {"a": "IN"}, {"sum": "OUT"})))
    async with serving(tmp_path) as repository:
        with pytest.raises(ModelFailure, match=r"^model 'one' failed"):
            await ask(repository, "e", IN=[[1]])
        assert repository.get("e").statistics.failures == {"MODEL_FAILURE": 1}


ONE = step("one", {"a": "IN"}, {"sum": "OUT"})


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (ensemble(), "has no steps"),
        (ensemble(ONE, inputs=""), "must declare 'input' and 'output'"),
        (ensemble(step("e", {"a": "IN"}, {"sum": "OUT"})), "ensemble 'e' is a step of itself"),
        (
            ensemble(ONE, step("one", {"a": "IN"}, {"sum": "OUT"})),
            "tensor 'OUT' has two sources: output 'sum' of step 0",
        ),
        (ensemble(step("one", {"a": "IN"}, {"sum": "IN"})), "tensor 'IN' has two sources: an input of ensemble 'e'"),
        (
            ensemble(step("one", {"a": "who"}, {"sum": "OUT"})),
            "tensor 'who', input 'a' of step 0 (model 'one') of ensemble",
        ),
        (ensemble(ONE, outputs=OUT.replace("OUT", "END")), "tensor 'END', an output of ensemble 'e', has no source"),
        (ensemble(ONE, step("one", {"a": "IN"}, {"sum": "x"})), "tensor 'x', output 'sum' of step 1 (model 'one')"),
        (
            ensemble(
                step("one", {"a": "IN", "b": "y"}, {"sum": "x"}),
                step("one", {"a": "x"}, {"sum": "y"}),
                outputs=OUT.replace("OUT", "x"),
            ),
            "circular dependency between its steps of models 'one', 'one'",
        ),
        (ensemble(step("one", {"z": "IN"}, {"sum": "OUT"})), "maps input 'z', the model has a, b"),
        (ensemble(step("one", {"a": "IN"}, {"z": "OUT"})), "maps output 'z', the model has sum, told"),
        (ensemble(step("one", {"b": "IN"}, {"sum": "OUT"})), "gives no input 'a', which the model requires"),
        (ensemble(step("one", {"a": "IN"}, {"told": "OUT"})), "is BYTES as output 'told' of step 0 (model 'one')"),
        (
            ensemble(ONE, inputs=IN.replace("[-1]", "[2, 2]")),
            "has shape [2, 2] as an input of ensemble 'e', but [-1] as",
        ),
        (ensemble(ONE, rows=0), "but [-1, -1] as input 'a' of step 0"),
        (ensemble(step("flat", {"a": "IN"}, {"sum": "OUT"})), "the model of step 0, 'flat', does not"),
        (
            ensemble(ONE, inputs=IN.replace("[-1]", "[-1] optional: true")),
            "input 'IN' of ensemble 'e' is optional, but",
        ),
        (ensemble(step("one", {"a": "IN"}, {"sum": "OUT"}, version=4)), "version 4 of model 'one'; loaded: 1"),
        (ensemble(ONE) + ' model_warmup { name: "w" batch_size: 1 }', "must not have model_warmup"),
    ],
)
async def test_steps_that_do_not_fit(tmp_path: Path, config: str, words: str) -> None:
    """Steps that cannot work together fail the load, with the names of the step and the tensor."""
    write_steps(tmp_path, "one")
    write(tmp_path, "flat", (STEP % 0).split("dynamic_batching")[0], model=SOURCE)
    write(tmp_path, "e", config)

    assert words in await refusal(tmp_path)
