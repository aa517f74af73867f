"""What a model.py imports as `triton_python_backend_utils`: the names and signatures are those of Triton's Python backend.

Models run in the server's process: an input's array is the server's own, and read-only. Outputs are copied when `execute`
has returned, so that a model may use their memory again for the next batch.
"""

import asyncio
import json
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future
from contextvars import ContextVar
from typing import Any, Protocol

import numpy as np
import structlog

from lookwire_server.models import datatypes
from lookwire_server.models.model import Parameter
from lookwire_server.models.model import Tensor as Array

log = structlog.get_logger()


class TritonModelException(Exception):
    """What a model raises to fail a whole batch, and what these functions raise when they are misused."""


class TritonError:
    """Why a request fails: a message for the caller, and a code."""

    UNKNOWN = "UNKNOWN"
    INTERNAL = "INTERNAL"
    NOT_FOUND = "NOT_FOUND"
    INVALID_ARG = "INVALID_ARG"
    UNAVAILABLE = "UNAVAILABLE"
    UNSUPPORTED = "UNSUPPORTED"
    ALREADY_EXISTS = "ALREADY_EXISTS"
    CANCELLED = "CANCELLED"

    def __init__(self, message: str, code: str = INTERNAL) -> None:
        self._message = str(message)
        self._code = code

    def message(self) -> str:
        return self._message

    def code(self) -> str:
        return self._code

    def __str__(self) -> str:
        return self._message


class Tensor:
    """A named array in host memory; strings are arrays of objects, the elements bytes."""

    def __init__(self, name: str, array: Array) -> None:
        if not isinstance(array, np.ndarray):
            raise TritonModelException(f"Tensor '{name}' needs a numpy array, got {type(array).__name__}")
        self._name = name
        self._array = array

    def name(self) -> str:
        return self._name

    def as_numpy(self) -> Array:
        return self._array

    def is_cpu(self) -> bool:
        return True

    @staticmethod
    def from_dlpack(name: str, tensor: Any) -> "Tensor":
        return Tensor(name, np.from_dlpack(tensor))

    def to_dlpack(self) -> object:
        # A capsule cannot say that its memory is read-only, so that numpy refuses to make one of such an array.
        array = self._array if self._array.flags.writeable else self._array.copy()
        return array.__dlpack__()


class Caller(Protocol):
    """The model instance that runs on this thread, as far as its requests to other models need it."""

    directory: str

    def call(self, request: "InferenceRequest") -> "InferenceResponse":
        """Answers when the other model has."""

    def start(self, request: "InferenceRequest") -> "Future[InferenceResponse]":
        """Answers at once, with what will be the response."""


# Set while a model is initialized, executed or finalized; threads that a model starts do not have it.
CALLER: ContextVar[Caller] = ContextVar("caller")


def caller() -> Caller:
    """Whoever runs on this thread."""
    try:
        return CALLER.get()
    except LookupError:
        raise TritonModelException(
            "this must be called by the thread that calls the model; in a thread of the model's own run it through "
            "contextvars.copy_context().run"
        ) from None


class InferenceRequest:
    """A request that a model got, or one that it makes of another model of the repository.

    `timeout` is in microseconds, 0 for none; `model_version` -1 is the newest.
    """

    def __init__(
        self,
        model_name: str,
        requested_output_names: Iterable[str],
        inputs: Sequence[Tensor],
        request_id: str = "",
        correlation_id: int | str = 0,
        model_version: int = -1,
        flags: int = 0,
        timeout: int = 0,
        preferred_memory: object = None,
        trace: object = None,
        parameters: Mapping[str, Parameter] | None = None,
        *,
        deadline: float = math.inf,
    ) -> None:
        self._model_name = model_name
        self._model_version = model_version
        self._outputs = list(requested_output_names)
        self._inputs = list(inputs)
        self._id = request_id
        self._correlation_id = correlation_id
        self._flags = flags
        self._timeout = timeout
        self.custom_parameters = parameters
        self._deadline = deadline

    def inputs(self) -> list[Tensor]:
        return self._inputs

    def request_id(self) -> str:
        return self._id

    def correlation_id(self) -> int | str:
        return self._correlation_id

    def flags(self) -> int:
        return self._flags

    def model_name(self) -> str:
        return self._model_name

    def model_version(self) -> int:
        return self._model_version

    def requested_output_names(self) -> list[str]:
        return self._outputs

    def timeout(self) -> int:
        return self._timeout

    def parameters(self) -> str:
        """The parameters as JSON."""
        return json.dumps(dict(self.custom_parameters or {}))

    def is_cancelled(self) -> bool:
        """Whether the caller's deadline has passed. A call that is cancelled before that is not known here."""
        return time.monotonic() > self._deadline

    def exec(self, decoupled: bool = False) -> "InferenceResponse":
        """Has the named model answer; an error is in the response.

        Ends with an error when the deadline of all requests of the batch has passed, 60 seconds at most: a model that calls
        itself, directly or by way of others, may wait for an instance that waits for it.
        """
        self._refuse_decoupled(decoupled)
        return caller().call(self)

    async def async_exec(self, decoupled: bool = False) -> "InferenceResponse":
        """The same for a coroutine."""
        self._refuse_decoupled(decoupled)
        return await asyncio.wrap_future(caller().start(self))

    def _refuse_decoupled(self, decoupled: bool) -> None:
        if decoupled:
            raise TritonModelException("decoupled=True is not served: each request has one response")

    def get_response_sender(self) -> object:
        raise TritonModelException("a response sender is for decoupled models, which are not served")


class InferenceResponse:
    """The tensors that answer a request, or the error that does."""

    def __init__(
        self,
        output_tensors: Sequence[Tensor] | None = None,
        error: TritonError | str | None = None,
        parameters: Mapping[str, Parameter] | None = None,
    ) -> None:
        self._outputs = list(output_tensors or ())
        self._error = TritonError(error) if isinstance(error, str) else error
        self.custom_parameters = parameters

    def output_tensors(self) -> list[Tensor]:
        return self._outputs

    def has_error(self) -> bool:
        return self._error is not None

    def error(self) -> TritonError | None:
        return self._error

    def parameters(self) -> str:
        """The parameters as JSON."""
        return json.dumps(dict(self.custom_parameters or {}))


class Logger:
    """The server's log."""

    INFO = "info"
    WARNING = "warning"
    ERROR = "error"
    VERBOSE = "debug"

    @staticmethod
    def log(message: str, level: str = INFO) -> None:
        getattr(log, level)(str(message), logger="python model")

    @staticmethod
    def log_info(message: str) -> None:
        Logger.log(message, Logger.INFO)

    @staticmethod
    def log_warn(message: str) -> None:
        Logger.log(message, Logger.WARNING)

    @staticmethod
    def log_error(message: str) -> None:
        Logger.log(message, Logger.ERROR)

    @staticmethod
    def log_verbose(message: str) -> None:
        Logger.log(message, Logger.VERBOSE)


class ModelConfig:
    """What a model's `auto_complete_config` gets and returns. What config.pbtxt says stands; a contradiction is an error."""

    def __init__(self, document: dict[str, Any]) -> None:
        self._document = document

    def as_dict(self) -> dict[str, Any]:
        return self._document

    def set_max_batch_size(self, max_batch_size: int) -> None:
        configured = self._document.get("max_batch_size", 0)
        if configured > max_batch_size:
            raise ValueError(
                f"max_batch_size is {configured} in the config, auto_complete_config sets {max_batch_size}"
            )
        self._document["max_batch_size"] = max_batch_size

    def set_dynamic_batching(self) -> None:
        self._document.setdefault("dynamic_batching", {})

    def set_model_transaction_policy(self, policy: Mapping[str, bool]) -> None:
        self._document["model_transaction_policy"] = dict(policy)

    def add_input(self, input: Mapping[str, Any]) -> None:
        self._add("input", input, {"name", "data_type", "dims", "optional"})

    def add_output(self, output: Mapping[str, Any]) -> None:
        self._add("output", output, {"name", "data_type", "dims"})

    def _add(self, kind: str, tensor: Mapping[str, Any], known: set[str]) -> None:
        if lacking := {"name", "data_type", "dims"} - tensor.keys():
            raise ValueError(f"an {kind} of auto_complete_config lacks {', '.join(sorted(lacking))}: {dict(tensor)}")
        if unknown := tensor.keys() - known:
            raise ValueError(
                f"{kind} '{tensor['name']}' of auto_complete_config has unknown {', '.join(sorted(unknown))}"
            )
        tensors = self._document.setdefault(kind, [])
        declared = next((other for other in tensors if other["name"] == tensor["name"]), None)
        if declared is None:
            tensors.append(dict(tensor))
            return
        for key, unset, given in (
            ("data_type", "TYPE_INVALID", tensor["data_type"]),
            ("dims", [], list(tensor["dims"])),
        ):
            if declared.get(key, unset) == unset:
                declared[key] = given
            elif declared[key] != given:
                raise ValueError(
                    f"{kind} '{tensor['name']}' has {key} {declared[key]} in the config, auto_complete_config sets {given}"
                )


def get_input_tensor_by_name(request: InferenceRequest, name: str) -> Tensor | None:
    """The input of this name, None if the request has none."""
    return next((tensor for tensor in request.inputs() if tensor.name() == name), None)


def get_output_tensor_by_name(response: InferenceResponse, name: str) -> Tensor | None:
    """The output of this name, None if the response has none."""
    return next((tensor for tensor in response.output_tensors() if tensor.name() == name), None)


def get_input_config_by_name(model_config: Mapping[str, Any], name: str) -> dict[str, Any] | None:
    """The input of this name in a config (a dict), None if it declares none."""
    return next((tensor for tensor in model_config.get("input", ()) if tensor["name"] == name), None)


def get_output_config_by_name(model_config: Mapping[str, Any], name: str) -> dict[str, Any] | None:
    """The output of this name in a config (a dict), None if it declares none."""
    return next((tensor for tensor in model_config.get("output", ()) if tensor["name"] == name), None)


def using_decoupled_model_transaction_policy(model_config: Mapping[str, Any]) -> bool:
    """Whether the config (a dict) asks for any number of responses to a request."""
    return bool(model_config.get("model_transaction_policy", {}).get("decoupled", False))


def triton_string_to_numpy(data_type: str) -> type[np.generic]:
    """The numpy type of a data_type of the config: TYPE_FP32 is float32, TYPE_STRING object."""
    try:
        return datatypes.NUMPY[datatypes.from_config(data_type)].type
    except KeyError:
        raise TritonModelException(f"there is no numpy type for {data_type!r}") from None


def get_model_dir() -> str:
    """The folder of the version that this model is, with its model.py."""
    return caller().directory
