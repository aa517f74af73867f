"""The python backend: model.py files as they are written for Triton."""

import asyncio
import json
import re
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from lookwire_server.errors import (
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    LookwireError,
    ModelFailure,
    NotFound,
    Unavailable,
    Unimplemented,
)
from lookwire_server.models.backends import python_calls
from lookwire_server.models.model import Request
from lookwire_server.models.repository import ControlMode
from tests.models.repositories import ask, serving, write

CONFIG = """
backend: "python" max_batch_size: 8 %s
input [{ name: "x" data_type: TYPE_FP32 dims: [-1] }]
output [{ name: "y" data_type: TYPE_FP32 dims: [-1] }]
"""
BATCHING = "dynamic_batching { max_queue_delay_microseconds: 500000 preferred_batch_size: [3] }"
TEXTS = """
backend: "python" max_batch_size: 8
input [{ name: "x" data_type: TYPE_STRING dims: [1] }]
output [{ name: "y" data_type: TYPE_STRING dims: [1] }]
"""
HEAD = """
import json
import numpy as np
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
"""
DOUBLE = (
    HEAD
    + """
    def execute(self, requests):
        return [
            pb_utils.InferenceResponse(
                [pb_utils.Tensor("y", 2 * pb_utils.get_input_tensor_by_name(request, "x").as_numpy())]
            )
            for request in requests
        ]
"""
)
BUSINESS = (
    HEAD
    + """
    def execute(self, requests):
        responses = []
        for request in requests:
            x = pb_utils.get_input_tensor_by_name(request, "x")
            asked = pb_utils.InferenceRequest(
                model_name=json.loads(request.parameters()).get("model", "double"),
                requested_output_names=["y"],
                inputs=[x],
            )
            answer = asked.exec()
            if answer.has_error():
                responses.append(pb_utils.InferenceResponse(error=answer.error()))
            else:
                y = pb_utils.get_output_tensor_by_name(answer, "y").as_numpy()
                responses.append(pb_utils.InferenceResponse([pb_utils.Tensor("y", y + 1)]))
        return responses
"""
)


def body(*lines: str) -> str:
    """A model.py whose execute has these lines for each request; the last gives the response."""
    return (
        f"{HEAD}    def execute(self, requests):\n        return [self.answer(request) for request in requests]\n"
        + ("    def answer(self, request):\n" + "\n".join(f"        {line}" for line in lines))
    )


def floats(*values: float) -> Request:
    return Request({"x": np.array([values], np.float32)})


async def refusal(root: Path) -> str:
    """Why the repository cannot be served."""
    with pytest.raises(FailedPrecondition) as raised:
        async with serving(root):
            pass
    return str(raised.value)


async def test_model_file_alone_answers(tmp_path: Path) -> None:
    """A model.py answers through the batcher, one response a request, each request with its own rows."""
    write(tmp_path, "m", CONFIG % BATCHING, model=DOUBLE)
    async with serving(tmp_path) as repository:
        answers = await asyncio.gather(*(ask(repository, "m", x=[[value]]) for value in (1, 2, 3)))
        executions = repository.get("m").statistics.execution_count

    assert [answer["y"].tolist() for answer in answers] == [[[2]], [[4]], [[6]]]
    assert executions == 1


async def test_what_initialize_gets(tmp_path: Path) -> None:
    """Each instance is initialized with its config as JSON, its name, its kind and the model's place."""
    source = (
        HEAD
        + """
    def initialize(self, args):
        self.args = args
        config = json.loads(args["model_config"])
        entry = pb_utils.get_output_config_by_name(config, "y")
        assert pb_utils.triton_string_to_numpy(entry["data_type"]) is np.object_
        assert pb_utils.get_input_config_by_name(config, "nothing") is None
        assert not pb_utils.using_decoupled_model_transaction_policy(config)
        self.dims, self.greeting = entry["dims"], config["parameters"]["greeting"]["string_value"]
        assert pb_utils.get_model_dir() == args["model_repository"] + "/" + args["model_version"]

    def execute(self, requests):
        told = {**self.args, "model_config": "", "dims": self.dims, "greeting": self.greeting}
        answer = np.array([[json.dumps(told)]], np.object_)
        return [pb_utils.InferenceResponse([pb_utils.Tensor("y", answer)]) for request in requests]
"""
    )
    parameter = 'parameters { key: "greeting" value { string_value: "12" } } instance_group [{ count: 2 }]'
    folder = write(tmp_path, "m", TEXTS + parameter, version=3, model=source)
    async with serving(tmp_path) as repository:
        texts = await ask(repository, "m", x=np.array([[b""]], np.object_))

    told = json.loads(texts["y"].item())
    assert told.pop("model_instance_name") in ("m_0_0", "m_0_1")
    assert told == {
        "model_config": "",
        "model_instance_kind": "CPU",
        "model_instance_device_id": "0",
        "model_repository": str(folder),
        "model_version": "3",
        "model_name": "m",
        "dims": [1],
        "greeting": "12",
    }


async def test_what_a_request_tells(tmp_path: Path) -> None:
    """A model reads a request's id, parameters, timeout, wanted outputs and whether its deadline has passed."""
    source = body(
        "told = [request.request_id(), request.parameters(), request.timeout(), list(request.requested_output_names()),",
        "        request.is_cancelled(), request.model_name(), request.correlation_id(),",
        "        [tensor.name() for tensor in request.inputs()], request.inputs()[0].is_cpu()]",
        "pb_utils.Logger.log_info('asked'); pb_utils.Logger.log('asked', pb_utils.Logger.WARNING)",
        "return pb_utils.InferenceResponse([pb_utils.Tensor('y', np.array([[json.dumps(told)]], dtype=np.object_))])",
    )
    write(tmp_path, "m", TEXTS, model=source)
    async with serving(tmp_path) as repository:
        response = await repository.get("m").infer(
            Request(
                {"x": np.array([[b""]], np.object_)},
                deadline=time.monotonic() + 60,
                id="seven",
                timeout=1.5,
                outputs=("y",),
                parameters={"a": 1, "b": "c"},
            )
        )

    told = json.loads(response.outputs["y"].item())
    assert told == ["seven", '{"a": 1, "b": "c"}', 1500000, ["y"], False, "m", 0, ["x"], True]


@pytest.mark.parametrize(
    "made", ["np.array([['né']])", "np.array([['né']], dtype=object)", "np.array([['né'.encode()]])", "x"]
)
async def test_strings_of_every_kind_are_bytes(tmp_path: Path, made: str) -> None:
    """Inputs of strings are objects of bytes; outputs may be any strings that numpy has."""
    source = body(
        "x = pb_utils.get_input_tensor_by_name(request, 'x').as_numpy()",
        "assert x.dtype == np.object_ and type(x[0, 0]) is bytes",
        f"return pb_utils.InferenceResponse([pb_utils.Tensor('y', {made})])",
    )
    write(tmp_path, "m", TEXTS, model=source)
    async with serving(tmp_path) as repository:
        assert (await ask(repository, "m", x=np.array([["né".encode()]], np.object_)))["y"].tolist() == [
            ["né".encode()]
        ]


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("INVALID_ARG", InvalidArgument),
        ("NOT_FOUND", NotFound),
        ("UNAVAILABLE", Unavailable),
        ("UNSUPPORTED", Unimplemented),
        ("ALREADY_EXISTS", AlreadyExists),
        ("INTERNAL", ModelFailure),
    ],
)
async def test_error_of_one_request(tmp_path: Path, code: str, kind: type[LookwireError]) -> None:
    """A TritonError fails its own request, with its message and code; others of the batch are answered."""
    source = body(
        "x = pb_utils.get_input_tensor_by_name(request, 'x').as_numpy()",
        f"error = pb_utils.TritonError('no twos', pb_utils.TritonError.{code})",
        "return pb_utils.InferenceResponse(error=error) if x[0, 0] == 2 else",
    )
    source += " pb_utils.InferenceResponse([pb_utils.Tensor('y', x)])"
    write(tmp_path, "m", CONFIG % BATCHING, model=source)
    async with serving(tmp_path) as repository:
        first, second, third = await asyncio.gather(
            *(ask(repository, "m", x=[[value]]) for value in (1, 2, 3)), return_exceptions=True
        )

    assert type(second) is kind
    assert str(second) == "no twos"
    assert isinstance(first, dict)
    assert isinstance(third, dict)


@pytest.mark.parametrize(
    "line",
    [
        "raise ValueError('a secret')",
        "raise pb_utils.TritonModelException('a secret')",
        "raise SystemExit(3)",
        "return 'a secret'",
        "return pb_utils.InferenceResponse([pb_utils.Tensor('z', np.zeros(1))])",
        "return pb_utils.InferenceResponse([pb_utils.Tensor('y', np.zeros((1, 1)))])",
        "request.inputs()[0].as_numpy()[:] = 0",
    ],
)
async def test_faults_are_not_told(tmp_path: Path, line: str) -> None:
    """Whatever else goes wrong in a model is ModelFailure with a fixed text, and the model goes on serving."""
    source = body("if pb_utils.get_input_tensor_by_name(request, 'x').as_numpy()[0, 0] == 0:", f"    {line}")
    source += "\n        return pb_utils.InferenceResponse([pb_utils.Tensor('y', np.ones((1, 1), np.float32))])"
    write(tmp_path, "m", CONFIG % "", model=source)
    async with serving(tmp_path) as repository:
        with pytest.raises(ModelFailure, match=r"^model 'm' failed; the cause is in the server's log$"):
            await ask(repository, "m", x=[[0]])
        assert (await ask(repository, "m", x=[[1]]))["y"].tolist() == [[1]]


async def test_model_may_use_its_output_memory_again(tmp_path: Path) -> None:
    """Each caller gets its own answer from a model that writes all of them into the same array."""
    source = (
        HEAD
        + """
    def initialize(self, args):
        self.y = np.zeros((1, 1), np.float32)
        self.text = np.zeros((1, 1), object)

    def execute(self, requests):
        (request,) = requests
        x = pb_utils.get_input_tensor_by_name(request, "x").as_numpy()
        np.multiply(x, 2, out=self.y)
        self.text[0, 0] = b"%d" % x[0, 0]
        return [pb_utils.InferenceResponse([pb_utils.Tensor("y", self.y), pb_utils.Tensor("text", self.text)])]
"""
    )
    write(tmp_path, "m", CONFIG % "" + 'output [{ name: "text" data_type: TYPE_STRING dims: [1] }]', model=source)
    async with serving(tmp_path) as repository:
        answers = await asyncio.gather(*(ask(repository, "m", x=[[value]]) for value in range(10)))

    assert [answer["y"].item() for answer in answers] == [2 * value for value in range(10)]
    assert [answer["text"].item() for answer in answers] == [b"%d" % value for value in range(10)]


CANCELLED = """
        task = asyncio.ensure_future(asyncio.sleep(9))
        task.cancel()
        await task
"""


async def test_execute_that_is_cancelled(tmp_path: Path) -> None:
    """A coroutine that ends with its own cancellation fails its batch, and the model goes on serving."""
    source = "import asyncio\n" + HEAD + "    async def execute(self, requests):" + CANCELLED
    write(tmp_path, "m", CONFIG % "", model=source)
    async with serving(tmp_path) as repository:
        for _ in range(2):
            with pytest.raises(ModelFailure, match=r"^model 'm' failed; the cause is in the server's log$"):
                await ask(repository, "m", x=[[0]])


async def test_initialize_that_is_cancelled(tmp_path: Path) -> None:
    """A model whose initialize ends with a cancellation is not loaded, and the error says where it was."""
    source = "import asyncio\n" + DOUBLE
    source += (
        "    async def prepare(self):"
        + CANCELLED
        + "    def initialize(self, args):\n        asyncio.run(self.prepare())\n"
    )
    write(tmp_path, "m", CONFIG % "", model=source)

    assert re.search(r"model.py:\d+: CancelledError", await refusal(tmp_path))


@pytest.mark.parametrize("fault", ["RuntimeError('too late')", "SystemExit(3)", "asyncio.CancelledError"])
async def test_finalize_that_fails(tmp_path: Path, fault: str) -> None:
    """Whatever finalize ends with is logged, and the model is unloaded in order."""
    source = f"import asyncio\n{DOUBLE}    def finalize(self):\n        raise {fault}\n"
    before = set(sys.modules)
    write(tmp_path, "m", CONFIG % "", model=source)
    async with serving(tmp_path) as repository:
        assert (await ask(repository, "m", x=[[1]]))["y"].tolist() == [[2]]

    assert not {name for name in set(sys.modules) - before if name.startswith("lookwire_python_model_")}


async def test_finalize_calls_another_model(tmp_path: Path) -> None:
    """A finalize may ask other models, though the deadline of the last batch has passed."""
    source = (
        "from pathlib import Path\n"
        + DOUBLE
        + """
    def finalize(self):
        asked = pb_utils.InferenceRequest("double", ["y"], [pb_utils.Tensor("x", np.ones((1, 1), np.float32))])
        answer = asked.exec()
        told = str(answer.error()) if answer.has_error() else str(answer.output_tensors()[0].as_numpy().item())
        Path(__file__).with_name("told").write_text(told)
"""
    )
    write(tmp_path, "double", CONFIG % "", model=DOUBLE)
    folder = write(tmp_path, "m", CONFIG % "", model=source)
    async with serving(tmp_path, mode=ControlMode.EXPLICIT) as repository:
        await repository.load_model("double")
        await repository.load_model("m")
        deadline = time.monotonic() + 0.3
        await repository.get("m").infer(Request({"x": np.ones((1, 1), np.float32)}, deadline=deadline))
        await asyncio.sleep(deadline - time.monotonic())
        await repository.unload_model("m")
        told = folder / "1" / "told"
        async with asyncio.timeout(10):
            while not (told.exists() and told.read_text()):
                await asyncio.sleep(0.01)

    assert told.read_text() == "2.0"


async def test_slow_loads_leave_threads_to_requests(tmp_path: Path) -> None:
    """However many models initialize slowly, the event loop's own threads are free."""
    source = (
        "import time\nfrom pathlib import Path\n"
        + DOUBLE
        + """
    def initialize(self, args):
        place = Path(__file__)
        place.with_name("began").touch()
        end = time.monotonic() + 10
        while not place.with_name("go").exists() and time.monotonic() < end:
            time.sleep(0.01)
"""
    )
    folders = [write(tmp_path, f"m{number}", CONFIG % "", model=source) / "1" for number in range(4)]
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(2))
    async with serving(tmp_path, mode=ControlMode.EXPLICIT) as repository:
        loads = [asyncio.create_task(repository.load_model(folder.parent.name)) for folder in folders]
        try:
            async with asyncio.timeout(5):
                while sum((folder / "began").exists() for folder in folders) < 2:
                    await asyncio.sleep(0.01)
                await asyncio.to_thread(int)
        finally:
            for folder in folders:
                (folder / "go").touch()
            await asyncio.gather(*loads)


async def test_wrong_number_of_responses(tmp_path: Path) -> None:
    """Too few responses fail the whole batch."""
    write(tmp_path, "m", CONFIG % "", model=HEAD + "    def execute(self, requests):\n        return []\n")
    async with serving(tmp_path) as repository:
        with pytest.raises(ModelFailure):
            await ask(repository, "m", x=[[0]])


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("x = (", "model.py:1: SyntaxError: '(' was never closed"),
        ("x = 1\n", "has no class TritonPythonModel"),
        ("class TritonPythonModel:\n    pass\n", "model.py:1: TritonPythonModel has no method execute"),
        (
            "import json\nimport not_there_at_all\n",
            "model.py:2: ModuleNotFoundError: No module named 'not_there_at_all'",
        ),
        ("raise SystemExit(3)\n", "model.py:1: SystemExit: 3"),
        (DOUBLE + "    def initialize(self, args):\n        args['none']\n", "model.py:16: KeyError: 'none'"),
    ],
)
async def test_file_that_cannot_be_loaded(tmp_path: Path, source: str, words: str) -> None:
    """What is wrong with a model.py is said with its file and line."""
    write(tmp_path, "m", CONFIG % "", model=source)

    assert words in await refusal(tmp_path)


async def test_models_are_apart(tmp_path: Path) -> None:
    """Modules beside two models' files may have one name: each model gets its own, and none stays when it is closed."""
    source = "from . import helper\nfrom .helper import FACTOR\n" + DOUBLE.replace("2 *", "FACTOR *")
    before = set(sys.modules)
    write(tmp_path, "a", CONFIG % "", model=source, helper="FACTOR = 3")
    write(tmp_path, "b", CONFIG % "", model=source, helper="FACTOR = 5")
    async with serving(tmp_path) as repository:
        answers = [(await ask(repository, name, x=[[1]]))["y"].item() for name in "ab"]
        assert len({name for name in set(sys.modules) - before if name.endswith(".helper")}) == 2

    assert answers == [3, 5]
    assert not {name for name in set(sys.modules) - before if name.startswith("lookwire_python_model_")}


async def test_reload_runs_the_new_file(tmp_path: Path) -> None:
    """A file of the same size that takes a model's place within a second is what the reload runs."""
    write(tmp_path, "m", CONFIG % "", model=DOUBLE)
    async with serving(tmp_path, mode=ControlMode.EXPLICIT) as repository:
        await repository.load_model("m")
        first = await ask(repository, "m", x=[[1]])
        write(tmp_path, "m", CONFIG % "", model=DOUBLE.replace("2 *", "7 *"))
        await repository.load_model("m")
        second = await ask(repository, "m", x=[[1]])

    assert (first["y"].item(), second["y"].item()) == (2, 7)


async def test_instances_share_no_globals(tmp_path: Path) -> None:
    """Instances of a model have modules of their own, as in processes of their own."""
    source = "COUNT = 0\n" + body(
        "global COUNT; COUNT += 1",
        "import time; time.sleep(0.05)",
        "return pb_utils.InferenceResponse([pb_utils.Tensor('y', np.full((1, 1), COUNT, np.float32))])",
    )
    write(tmp_path, "m", CONFIG % "instance_group [{ count: 2 }]", model=source)
    async with serving(tmp_path) as repository:
        answers = await asyncio.gather(*(ask(repository, "m", x=[[0]]) for _ in range(4)))

    assert sorted(answer["y"].item() for answer in answers) == [1, 1, 2, 2]


async def test_instance_lives_from_initialize_to_finalize(tmp_path: Path) -> None:
    """Every instance has an object of its own; finalize runs once each, in the thread that executed."""
    source = (
        "import threading\nfrom pathlib import Path\n"
        + HEAD
        + """
    def initialize(self, args):
        self.log(f"initialize {id(self)}")
    def log(self, line):
        with Path(__file__).with_name("events").open("a") as file:
            file.write(line + "\\n")
    def execute(self, requests):
        self.thread = threading.get_ident()
        return [pb_utils.InferenceResponse([pb_utils.Tensor("y", np.ones((1, 1), np.float32))]) for _ in requests]
    def finalize(self):
        same = getattr(self, "thread", threading.get_ident()) == threading.get_ident()
        self.log(f"finalize {id(self)} {same}")
        raise RuntimeError("too late")
"""
    )
    folder = write(tmp_path, "m", CONFIG % "instance_group [{ count: 2 }]", model=source)
    async with serving(tmp_path) as repository:
        await ask(repository, "m", x=[[1]])
    events = [line.split() for line in (folder / "1" / "events").read_text().splitlines()]

    made = {event[1] for event in events if event[0] == "initialize"}
    ended = [event[1:] for event in events if event[0] == "finalize"]
    assert len(made) == 2
    assert sorted(ended) == sorted([instance, "True"] for instance in made)


async def test_auto_complete_config(tmp_path: Path) -> None:
    """A model may complete its config: inputs, outputs, the largest batch and dynamic batching."""
    source = (
        DOUBLE
        + """
    @staticmethod
    def auto_complete_config(config):
        assert config.as_dict()["name"] == "m"
        config.add_input({"name": "x", "data_type": "TYPE_FP32", "dims": [-1]})
        config.add_output({"name": "y", "data_type": "TYPE_FP32", "dims": [-1]})
        config.set_max_batch_size(5)
        config.set_dynamic_batching()
        return config
"""
    )
    write(tmp_path, "m", model=source)
    async with serving(tmp_path) as repository:
        config = repository.get("m").config
        answer = await ask(repository, "m", x=[[1], [2]])

    assert (config.max_batch_size, config.dynamic_batching, config.outputs[0].dims) == (5, True, (-1,))
    assert answer["y"].tolist() == [[2], [4]]

    write(tmp_path, "m", CONFIG.replace("FP32", "INT32") % "", model=source)
    assert "input 'x' has data_type TYPE_INT32 in the config" in await refusal(tmp_path)
    write(tmp_path, "m", 'backend: "python"', model=DOUBLE)
    assert "must declare 'input' and 'output'" in await refusal(tmp_path)


async def test_calls_of_other_models(tmp_path: Path) -> None:
    """A model asks another by exec; an error of that model is in the response, and may be passed on."""
    write(tmp_path, "double", CONFIG % "", model=DOUBLE)
    write(tmp_path, "m", CONFIG % "", model=BUSINESS)
    async with serving(tmp_path) as repository:
        assert (await ask(repository, "m", x=[[3, 4]]))["y"].tolist() == [[7, 9]]
        model = repository.get("m")
        with pytest.raises(NotFound, match="unknown model: 'nobody'"):
            await model.infer(Request({"x": np.ones((1, 1), np.float32)}, parameters={"model": "nobody"}))


async def test_calls_by_a_coroutine(tmp_path: Path) -> None:
    """An execute that is a coroutine function may ask several models at the same time."""
    source = (
        "import asyncio\n"
        + HEAD
        + """
    async def execute(self, requests):
        responses = []
        for request in requests:
            asked = [pb_utils.InferenceRequest("slow", ["OUTPUT0"], [pb_utils.Tensor("INPUT0", np.float32([[n]]))])
                     for n in range(3)]
            answers = await asyncio.gather(*(each.async_exec() for each in asked))
            total = sum(pb_utils.get_output_tensor_by_name(each, "OUTPUT0").as_numpy() for each in answers)
            responses.append(pb_utils.InferenceResponse([pb_utils.Tensor("y", total)]))
        return responses
"""
    )
    slow = """
    backend: "identity" max_batch_size: 4 instance_group [{ count: 3 }]
    parameters { key: "execute_delay_ms" value { string_value: "200" } }
    parameters { key: "instance_wise_delay_multiplier" value { string_value: "0.5" } }
    input [{ name: "INPUT0" data_type: TYPE_FP32 dims: [1] }]
    output [{ name: "OUTPUT0" data_type: TYPE_FP32 dims: [1] }]
    """
    write(tmp_path, "slow", slow)
    write(tmp_path, "m", CONFIG % "", model=source)
    async with serving(tmp_path) as repository:
        started = time.perf_counter()
        answer = await ask(repository, "m", x=[[0]])
        seconds = time.perf_counter() - started

    assert answer["y"].tolist() == [[3]]
    assert seconds < 0.55


async def test_model_that_waits_for_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that asks itself with its only instance gets an error when the deadline, or the longest wait, is over."""
    write(tmp_path, "m", CONFIG % "", model=BUSINESS)
    monkeypatch.setattr(python_calls, "MAX_SECONDS", 0.3)
    async with serving(tmp_path) as repository:
        inputs = {"x": np.ones((1, 1), np.float32)}
        for deadline in (None, 0.1):
            started = time.monotonic()
            limit = None if deadline is None else started + deadline
            with pytest.raises(Unavailable):
                await repository.get("m").infer(Request(inputs, deadline=limit, parameters={"model": "m"}))
            assert time.monotonic() - started < 5


async def test_own_thread_cannot_call(tmp_path: Path) -> None:
    """A thread that a model starts cannot ask other models unless it gets the context; the error says so."""
    source = (
        "import contextvars, threading\n"
        + HEAD
        + """
    def execute(self, requests):
        told = []
        def ask():
            try:
                answer = pb_utils.InferenceRequest("double", ["y"], [pb_utils.Tensor("x", np.float32([[4]]))]).exec()
                told.append(str(answer.output_tensors()[0].as_numpy().item()))
            except pb_utils.TritonModelException as error:
                told.append(str(error))
        for target in (ask, lambda: context.run(ask)):
            context = contextvars.copy_context()
            thread = threading.Thread(target=target)
            thread.start()
            thread.join()
        return [pb_utils.InferenceResponse([pb_utils.Tensor("y", np.array([["|".join(told)]]))]) for _ in requests]
"""
    )
    write(tmp_path, "double", CONFIG % "", model=DOUBLE)
    write(tmp_path, "m", TEXTS, model=source)
    async with serving(tmp_path) as repository:
        told = (await ask(repository, "m", x=np.array([[b""]], np.object_)))["y"].item().decode()

    without, with_context = told.split("|")
    assert "must be called by the thread that calls the model" in without
    assert with_context == "8.0"
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("m-")]


async def test_dlpack(tmp_path: Path) -> None:
    """Tensors go to and come from other array libraries by DLPack."""
    source = body(
        "class Foreign:",
        "    def __init__(self, tensor): self.tensor = tensor",
        "    def __dlpack__(self, **options): return self.tensor.to_dlpack()",
        "    def __dlpack_device__(self): return (1, 0)",
        "foreign = Foreign(pb_utils.get_input_tensor_by_name(request, 'x'))",
        "return pb_utils.InferenceResponse([pb_utils.Tensor.from_dlpack('y', foreign)])",
    )
    write(tmp_path, "m", CONFIG % "", model=source)
    async with serving(tmp_path) as repository:
        assert (await ask(repository, "m", x=[[1, 2]]))["y"].tolist() == [[1, 2]]
