"""The python backend: `<version>/model.py` with a class TritonPythonModel, in the server's process."""

import asyncio
import importlib.util
import inspect
import itertools
import json
import math
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import structlog

from lookwire_server.errors import InvalidArgument, LookwireError, ModelFailure
from lookwire_server.models import config_file, datatypes
from lookwire_server.models.backends import triton_python_backend_utils as pb_utils
from lookwire_server.models.backends.load_threads import in_load_thread
from lookwire_server.models.backends.python_calls import Calls, failure, wire
from lookwire_server.models.config import ModelConfig
from lookwire_server.models.model import Model, Request, Tensor
from lookwire_server.models.repository import Repository
from lookwire_server.models.session import Execution
from lookwire_server.models.warmup import warm

log = structlog.get_logger()

FILE = "model.py"
CLASS = "TritonPythonModel"
NUMBERS = itertools.count(1)
# What a model's code may end with; neither of the latter may end the thread that calls it.
FAULTS = (Exception, SystemExit, asyncio.CancelledError)

sys.modules["triton_python_backend_utils"] = pb_utils


@dataclass(frozen=True, slots=True)
class PythonBackend:
    """Loads model.py files. With `auto_complete`, a model's own `auto_complete_config` completes its config."""

    auto_complete: bool = True

    async def load(self, config: ModelConfig, version: int, directory: Path, repository: Repository) -> Model:
        """Runs the file, makes and initializes one object an instance, and warms each up.

        A model is initialized in a thread of the loader's; it is executed and finalized in its instance's own.
        """
        loop = asyncio.get_running_loop()
        if self.auto_complete:
            config = await in_load_thread(completed, config, directory)
        if not (config.inputs and config.outputs):
            raise InvalidArgument(
                f"model '{config.name}': the config must declare 'input' and 'output', or {CLASS}.auto_complete_config must "
                "add them"
            )
        sessions: list[PythonSession] = []
        try:
            for arguments in instances(config, version, directory):
                calls = Calls(directory, repository, loop)
                sessions.append(await in_load_thread(PythonSession, config, directory, arguments, calls))
            await in_load_thread(warm, config, directory.parent, sessions)
            return repository.serve(config, version, sessions)
        except BaseException:
            for session in sessions:
                await in_load_thread(session.close)
            raise


class ModelCode:
    """A model.py that was run, as a module of its own: two instances share no globals, as if they were processes.

    Its folder is no part of the import path: `from . import helper` finds the helper.py beside it.
    """

    def __init__(self, config: ModelConfig, directory: Path) -> None:
        self.path = directory / (config.message.default_model_filename or FILE)
        self._directory = directory
        if not self.path.resolve().is_relative_to(directory.resolve()):
            raise InvalidArgument(
                f"model '{config.name}': default_model_filename leads out of {directory}: {self.path}"
            )
        if not self.path.is_file():
            raise InvalidArgument(f"{self.path} does not exist")
        self._name = f"lookwire_python_model_{next(NUMBERS)}"
        spec = importlib.util.spec_from_file_location(
            self._name, self.path, submodule_search_locations=[str(directory)]
        )
        if spec is None:
            raise InvalidArgument(f"{self.path} is no Python file")
        module = importlib.util.module_from_spec(spec)
        sys.modules[self._name] = module
        try:
            # Compiled here, since a file replaced within a second would be taken for the one in __pycache__.
            exec(compile(self.path.read_bytes(), self.path, "exec"), module.__dict__)  # noqa: S102 - what a model.py is for
            self.model_class = self._found(getattr(module, CLASS, None))
        except InvalidArgument:
            self.forget()
            raise
        except FAULTS as error:
            self.forget()
            raise self.wrong(error) from error

    def _found(self, model_class: Any) -> type[Any]:
        if not isinstance(model_class, type):
            raise InvalidArgument(f"{self.path}: has no class {CLASS}")
        if not callable(getattr(model_class, "execute", None)):
            line = inspect.getsourcelines(model_class)[1]
            raise InvalidArgument(f"{self.path}:{line}: {CLASS} has no method execute")
        return model_class

    def forget(self) -> None:
        """Removes the module and those that it imported from its folder."""
        for name in list(sys.modules):  # a copy, for other threads import
            if name == self._name or name.startswith(f"{self._name}."):
                del sys.modules[name]

    def wrong(self, error: BaseException) -> InvalidArgument:
        """What the author of the model should read of an exception: file, line and message."""
        place = str(self.path)
        if isinstance(error, SyntaxError):
            place = f"{error.filename}:{error.lineno}"
        else:
            frames = traceback.extract_tb(error.__traceback__)
            own = [frame for frame in frames if Path(frame.filename).is_relative_to(self._directory)]
            if own:
                place = f"{own[-1].filename}:{own[-1].lineno}"
        return InvalidArgument(f"{place}: {type(error).__name__}: {getattr(error, 'msg', error)}")


def completed(config: ModelConfig, directory: Path) -> ModelConfig:
    """The config as the model's `auto_complete_config` makes it, if it has one."""
    code = ModelCode(config, directory)
    try:
        complete = getattr(code.model_class, "auto_complete_config", None)
        if complete is None:
            return config
        result = complete(pb_utils.ModelConfig(document(config)))
    except FAULTS as error:
        raise code.wrong(error) from error
    finally:
        code.forget()
    if not isinstance(result, pb_utils.ModelConfig):
        raise InvalidArgument(
            f"{code.path}: auto_complete_config must return the ModelConfig that it was given, got {type(result).__name__}"
        )
    return config_file.from_json(json.dumps(result.as_dict()), directory.parent)


class PythonSession:
    """One instance: an object of the model's class."""

    immediate = False
    concurrent = False

    def __init__(self, config: ModelConfig, directory: Path, arguments: dict[str, str], calls: Calls) -> None:
        self._name = config.name
        self._version = int(arguments["model_version"])
        self._calls = calls
        self._datatypes = {spec.name: spec.datatype for spec in config.outputs}
        pb_utils.CALLER.set(calls)
        self._code = ModelCode(config, directory)
        try:
            self._model = self._code.model_class()
            if hasattr(self._model, "initialize"):
                self._model.initialize(arguments)
        except FAULTS as error:
            log.exception("a python model cannot be initialized", model=self._name, version=self._version)
            self._code.forget()
            raise self._code.wrong(error) from error

    def execute(self, requests: Sequence[Request]) -> Execution:
        start = time.perf_counter()
        self._calls.executing(requests)
        pb_utils.CALLER.set(self._calls)
        asked = [self._inference_request(request) for request in requests]
        began = time.perf_counter()
        try:
            responses = self._model.execute(asked)
            if inspect.iscoroutine(responses):
                responses = asyncio.run(responses)
        except (SystemExit, asyncio.CancelledError) as error:
            raise RuntimeError(f"execute ended with {type(error).__name__}") from error
        ended = time.perf_counter()
        if not isinstance(responses, Sequence) or len(responses) != len(requests):
            found = len(responses) if isinstance(responses, Sequence) else type(responses).__name__
            raise RuntimeError(f"execute must return a list of {len(requests)} InferenceResponse, got {found}")
        answers = [self._answer(request, response) for request, response in zip(requests, responses, strict=True)]
        parameters = [getattr(response, "custom_parameters", None) for response in responses]
        return Execution(answers, began - start, ended - began, time.perf_counter() - ended, parameters=parameters)

    def _inference_request(self, request: Request) -> pb_utils.InferenceRequest:
        return pb_utils.InferenceRequest(
            self._name,
            request.outputs or self._datatypes,
            [pb_utils.Tensor(name, read_only(array)) for name, array in request.inputs.items()],
            request.id,
            model_version=self._version,
            timeout=round(request.timeout * 1e6),
            parameters=request.parameters,
            deadline=math.inf if request.deadline is None else request.deadline,
        )

    def _answer(self, request: Request, response: object) -> dict[str, Tensor] | LookwireError:
        """Copies of the outputs that were asked for; what a model answers wrongly to one request fails that one."""
        if not isinstance(response, pb_utils.InferenceResponse):
            return self._failed(f"execute must return InferenceResponse objects, got {type(response).__name__}")
        if (error := response.error()) is not None:
            return failure(error)
        given = {tensor.name(): tensor.as_numpy() for tensor in response.output_tensors()}
        outputs = {}
        for name in request.outputs or self._datatypes:
            if name not in given:
                return self._failed(f"output '{name}' was asked for, the response has {', '.join(given) or 'none'}")
            # The answer is sent when the next batch may be executing already, into the same memory.
            outputs[name] = np.array(wire(given[name]))
            if (datatype := datatypes.of(outputs[name])) != self._datatypes.get(name):
                return self._failed(f"output '{name}' is {datatype}, the config says {self._datatypes.get(name)}")
        return outputs

    def _failed(self, problem: str) -> ModelFailure:
        log.error("a python model answers wrongly", model=self._name, version=self._version, problem=problem)
        return ModelFailure(f"model '{self._name}' failed; the cause is in the server's log")

    def close(self) -> None:
        """Finalizes the model; one that fails at that is logged, for nobody waits for it."""
        pb_utils.CALLER.set(self._calls)
        self._calls.finished()
        try:
            if hasattr(self._model, "finalize"):
                self._model.finalize()
        except FAULTS:
            log.exception("a python model cannot be finalized", model=self._name, version=self._version)
        self._code.forget()


def read_only(array: Tensor) -> Tensor:
    """A view that cannot be written to: the same tensor may be another model's too."""
    view = array.view()
    view.flags.writeable = False
    return view


def instances(config: ModelConfig, version: int, directory: Path) -> Iterator[dict[str, str]]:
    """What `initialize` gets, an instance each."""
    for group in config.message.instance_group:
        gpu = group.kind == group.KIND_GPU
        places = itertools.product(list(group.gpus) if gpu and group.gpus else [0], range(group.count))
        for number, (device, _) in enumerate(places):
            yield {
                "model_config": json.dumps(document(config)),
                "model_instance_kind": "GPU" if gpu else "CPU",
                "model_instance_name": f"{group.name}_{number}",
                "model_instance_device_id": str(device),
                "model_repository": str(directory.parent),
                "model_version": str(version),
                "model_name": config.name,
            }


def document(config: ModelConfig) -> dict[str, Any]:
    """The config as model.py files read it: with numbers where protobuf's JSON has strings for 64-bit integers."""
    whole: dict[str, Any] = json.loads(config.to_json())
    write_numbers(whole, config.message.DESCRIPTOR)
    return whole


def write_numbers(document: dict[str, Any], descriptor: Any) -> None:
    """Turns the 64-bit integers of a message's JSON from strings into numbers."""
    for name, value in document.items():
        field = descriptor.fields_by_name[name]
        entry = field.message_type
        if entry is None:
            if field.cpp_type in (field.CPPTYPE_INT64, field.CPPTYPE_UINT64):
                document[name] = [int(item) for item in value] if isinstance(value, list) else int(value)
        elif entry.GetOptions().map_entry:
            if (message := entry.fields_by_name["value"].message_type) is not None:
                for item in value.values():
                    write_numbers(item, message)
        else:
            for item in value if isinstance(value, list) else [value]:
                write_numbers(item, entry)
