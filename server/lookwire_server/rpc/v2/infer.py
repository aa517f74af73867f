"""ModelInfer: a request message is answered by its model."""

import asyncio
import time
from collections.abc import Sequence
from typing import Protocol

import structlog
from tritonclient.grpc import service_pb2 as pb

from lookwire_server.errors import InvalidArgument, QueueFull
from lookwire_server.models.model import Request, Response
from lookwire_server.models.repository import Repository
from lookwire_server.rpc.v2 import inputs, outputs, parameters
from lookwire_server.rpc.v2.shared_memory import SharedMemory, Uses
from lookwire_server.rpc.v2.trace_settings import TraceSettings

log = structlog.get_logger()

MAX_QUOTED = 128


class Call(Protocol):
    """What every call tells of its caller."""

    def time_remaining(self) -> float | None:
        """Seconds until the caller stops waiting; None if it waits for ever."""


class Inference:
    """Answers inference requests. `response_delay` holds each response back for so many seconds; it is for tests."""

    def __init__(
        self, repository: Repository, shared_memory: SharedMemory | None, traces: TraceSettings, response_delay: float
    ) -> None:
        self._repository = repository
        self._shared_memory = shared_memory
        self._traces = traces
        self._response_delay = response_delay

    async def infer(
        self, request: pb.ModelInferRequest, raw: Sequence[bytes], deadline: float | None
    ) -> pb.ModelInferResponse:
        """The response to a request whose raw_input_contents are `raw`; `deadline` in seconds of time.monotonic.

        Protobuf copies an entry of raw_input_contents at each access: whoever needs them takes them out once.
        """
        started = time.perf_counter()
        uses = Uses(self._shared_memory)
        unreached = None
        try:
            model = unreached = self._repository.get(request.model_name, version(request.model_version))
            config = model.config
            options = parameters.options(request.parameters)
            tensors = await inputs.read(request, raw, config, uses)
            wanted = outputs.wanted(request, config, uses)
            decoded = time.perf_counter()
            unreached = None
            response = await model.infer(
                Request(
                    tensors,
                    deadline=deadline,
                    id=request.id,
                    priority=options.priority,
                    timeout=options.timeout,
                    outputs=tuple([output.name for output in wanted]) if wanted else (),
                    parameters=options.custom,
                )
            )
            answered = time.perf_counter()
            reply = pb.ModelInferResponse()
            reply.model_name = config.name
            reply.model_version = str(model.version)
            reply.id = request.id
            if response.parameters:
                parameters.fill(reply.parameters, response.parameters)
            await outputs.fill(reply, config, response, wanted)
            if self._traces.active and self._traces.sample(config.name):
                trace(reply, response, started, decoded, answered)
            if self._response_delay:
                await asyncio.sleep(self._response_delay)
            return reply
        except BaseException as error:
            if unreached is not None:  # what reaches its model, the model counts
                unreached.statistics.failed(error, time.perf_counter() - started)
            if isinstance(error, InvalidArgument | QueueFull):
                raise error.at(error.field, f"[request id: {request.id[:MAX_QUOTED] or '<id_unknown>'}] ") from error
            raise
        finally:
            uses.release()


def trace(reply: pb.ModelInferResponse, response: Response, started: float, decoded: float, answered: float) -> None:
    """Logs how long each stage of a request took; the arguments are readings of time.perf_counter."""
    ended = time.perf_counter()
    log.info(
        "trace",
        model=reply.model_name,
        version=int(reply.model_version),
        request=reply.id[:MAX_QUOTED],
        decode_us=micros(decoded - started),
        queue_us=micros(response.queue_seconds),
        infer_us=micros(response.infer_seconds),
        encode_us=micros(ended - answered),
        total_us=micros(ended - started),
    )


def version(text: str) -> int | None:
    """The version number of a request; None, the newest, where it names none or -1."""
    if text in ("", "-1"):
        return None
    if not (text.isascii() and text.isdigit() and len(text) < 20):
        raise InvalidArgument(
            f"failed to get model version from specified version string '{text[:MAX_QUOTED]}', must be an integer"
        )
    return int(text)


def deadline(call: Call) -> float | None:
    """When the caller stops waiting, in seconds of time.monotonic; None if it set no deadline."""
    remaining = call.time_remaining()
    return None if remaining is None else time.monotonic() + remaining


def micros(seconds: float) -> int:
    """Whole microseconds."""
    return int(seconds * 1e6)
