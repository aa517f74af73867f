"""The requests that a python model makes of other models in the same server (Triton's business logic scripting)."""

import asyncio
import math
import time
from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path

import numpy as np

from lookwire_server.errors import (
    AlreadyExists,
    InvalidArgument,
    LookwireError,
    ModelFailure,
    NotFound,
    Unavailable,
    Unimplemented,
)
from lookwire_server.models import datatypes
from lookwire_server.models.backends.triton_python_backend_utils import (
    InferenceRequest,
    InferenceResponse,
    Tensor,
    TritonError,
)
from lookwire_server.models.model import Request
from lookwire_server.models.model import Tensor as Array
from lookwire_server.models.repository import Repository

# Longest wait for another model in seconds. Models may wait for each other in a circle, which only a bound ends.
MAX_SECONDS = 60.0
# TritonError's codes -> the errors that callers see; those that are not here are failures of the model.
ERRORS: dict[str, type[LookwireError]] = {
    TritonError.NOT_FOUND: NotFound,
    TritonError.INVALID_ARG: InvalidArgument,
    TritonError.UNAVAILABLE: Unavailable,
    TritonError.UNSUPPORTED: Unimplemented,
    TritonError.ALREADY_EXISTS: AlreadyExists,
}
# gRPC codes of errors -> TritonError's codes.
CODES = {error.code: code for code, error in ERRORS.items()} | {
    "RESOURCE_EXHAUSTED": TritonError.UNAVAILABLE,
    "DEADLINE_EXCEEDED": TritonError.UNAVAILABLE,
}


class Calls:
    """The calls of one instance. `deadline` is that of the batch it executes, in seconds of `time.monotonic`."""

    def __init__(self, directory: Path, repository: Repository, loop: asyncio.AbstractEventLoop) -> None:
        self.directory = str(directory)
        self.deadline = math.inf
        self._repository = repository
        self._loop = loop

    def executing(self, requests: Sequence[Request]) -> None:
        """Takes the deadline of a batch: the latest, since nobody knows for which of its requests a call is made."""
        self.deadline = max(math.inf if request.deadline is None else request.deadline for request in requests)

    def finished(self) -> None:
        """Forgets the deadline: no batch will be executed any more."""
        self.deadline = math.inf

    def call(self, request: InferenceRequest) -> InferenceResponse:
        """Waits for the other model, in the instance's thread."""
        return self.start(request).result()

    def start(self, request: InferenceRequest) -> "Future[InferenceResponse]":
        """Has the event loop ask the other model."""
        return asyncio.run_coroutine_threadsafe(self._answer(request, self.deadline), self._loop)

    async def _answer(self, request: InferenceRequest, deadline: float) -> InferenceResponse:
        name, version = request.model_name(), request.model_version()
        now = time.monotonic()
        deadline = min(deadline, now + MAX_SECONDS)
        asked = Request(
            {tensor.name(): wire(tensor.as_numpy()) for tensor in request.inputs()},
            deadline=deadline,
            id=request.request_id(),
            timeout=request.timeout() / 1e6,
            outputs=tuple(request.requested_output_names()),
            parameters=request.custom_parameters,
        )
        try:
            async with asyncio.timeout(deadline - now):
                response = await self._repository.get(name, version if version >= 0 else None).infer(asked)
        except LookwireError as error:
            return InferenceResponse(error=TritonError(error.message, CODES.get(error.code, TritonError.INTERNAL)))
        except TimeoutError:
            problem = f"model '{name}' did not answer within {deadline - now:.3g} seconds"
            return InferenceResponse(error=TritonError(problem, TritonError.UNAVAILABLE))
        wanted = asked.outputs or response.outputs.keys()
        return InferenceResponse(
            [Tensor(output, array) for output, array in response.outputs.items() if output in wanted],
            parameters=response.parameters,
        )


def failure(error: TritonError) -> LookwireError:
    """What the caller of a model sees of a model's error: its message is meant for the caller."""
    return ERRORS.get(error.code(), ModelFailure)(error.message())


def wire(array: Array) -> Array:
    """The array as the server passes it on: strings of any kind as bytes."""
    if array.dtype.kind in "SU":
        array = array.astype(np.object_)
    if array.dtype.kind != "O" or all(isinstance(text, bytes) for text in array.flat):
        return array
    texts = [text if isinstance(text, bytes) else str(text).encode() for text in array.flat]
    return np.array(texts, datatypes.NUMPY["BYTES"]).reshape(array.shape)
