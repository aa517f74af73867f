"""ModelStreamInfer: many requests in flight on one stream, answered in their order."""

import asyncio
import time
from collections.abc import AsyncIterable, Coroutine
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias, TypeVar

import grpc
import structlog
from tritonclient.grpc import service_pb2 as pb

from lookwire_server.errors import LookwireError, Overloaded
from lookwire_server.metrics import Metrics
from lookwire_server.rpc.guard import INTERNAL, MAX_MESSAGE, Seconds, cancelled_code, cut, v2_code
from lookwire_server.rpc.handlers import Received
from lookwire_server.rpc.v2.infer import Inference, deadline

log = structlog.get_logger()

METHOD = "/inference.GRPCInferenceService/ModelStreamInfer"
# Bounds of one stream; it is not read while it has as much in flight, answers that wait to be sent included.
MAX_REQUESTS = 256
MAX_BYTES = 64 << 20
STOPPING = "GRPC server is shutting down and has stopped accepting new requests."
# The metadata with which a client asks that the first error ends the stream with its status.
AS_STATUS = ("triton_grpc_error", "true")


class Call(Protocol):
    """What a stream needs of its grpc context."""

    async def write(self, message: Any) -> None: ...
    async def abort(self, code: grpc.StatusCode, details: str) -> None: ...
    def invocation_metadata(self) -> Any: ...
    def time_remaining(self) -> float | None: ...


@dataclass(frozen=True, slots=True)
class Failure:
    """An error as the caller is told it: the name of a gRPC code, and words. One that is `fatal` ends the stream."""

    code: str
    message: str
    fatal: bool = False


Answer: TypeAlias = "pb.ModelInferResponse | Failure"
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Pending:
    """A request whose answer has not been sent."""

    id: str
    nbytes: int
    answer: asyncio.Task[Answer]


class Streams:
    """Serves streams; all that they have in flight holds at most `max_bytes`."""

    def __init__(self, inference: Inference, max_bytes: int, metrics: Metrics) -> None:
        self.inference = inference
        self.max_bytes = max_bytes
        self.nbytes = 0
        self.seconds = Seconds(metrics, METHOD)
        self._open: set[Stream] = set()
        self._stopping = False

    async def serve(self, requests: AsyncIterable[Received], call: Call) -> None:
        """Answers a stream until the client ends it and all is answered; if it is cancelled, so is all that is in flight."""
        failure = Failure("UNAVAILABLE", STOPPING) if self._stopping else await self._run(requests, call)
        if failure:
            await call.abort(grpc.StatusCode[failure.code], failure.message)

    async def _run(self, requests: AsyncIterable[Received], call: Call) -> Failure | None:
        stream = Stream(self, call)
        self._open.add(stream)
        try:
            return await stream.run(requests)
        except Exception:
            log.exception("a stream failed")
            return Failure("INTERNAL", INTERNAL)
        finally:
            self._open.discard(stream)
            await stream.end()

    def stop(self) -> None:
        """Reads no more; streams end as soon as what they have in flight is answered, and those that come later at once."""
        self._stopping = True
        for stream in self._open:
            stream.stop_reading()


class Stream:
    """One stream: `run` it to its end, then `end` it."""

    def __init__(self, streams: Streams, call: Call) -> None:
        self._streams = streams
        self._call = call
        self._as_status = AS_STATUS in [tuple(pair) for pair in call.invocation_metadata() or ()]
        self._order: asyncio.Queue[Pending | None] = asyncio.Queue()  # bounded by _room
        self._tasks: set[asyncio.Task[Any]] = set()
        self._reading: asyncio.Task[None] | None = None
        self._requests = 0
        self._nbytes = 0
        self._freed = asyncio.Event()

    async def run(self, requests: AsyncIterable[Received]) -> Failure | None:
        """Answers until there is nothing more to answer; the failure that the call is to end with, None if it went well."""
        self._reading = self._start(self._read(requests))
        self._reading.add_done_callback(lambda _: self._order.put_nowait(None))
        while (pending := await self._order.get()) is not None:
            answer = await pending.answer
            if isinstance(answer, Failure) and (answer.fatal or self._as_status):
                return answer
            await self._call.write(to_message(pending.id, answer))
            self._count(-1, -pending.nbytes)
            self._freed.set()
        if self._reading.cancelled():
            return Failure("UNAVAILABLE", STOPPING)
        self._reading.result()
        return None

    def stop_reading(self) -> None:
        """Takes no more requests."""
        if self._reading:
            self._reading.cancel()

    async def end(self) -> None:
        """Cancels what is still in flight, and waits for that."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._count(-self._requests, -self._nbytes)

    async def _read(self, requests: AsyncIterable[Received]) -> None:
        async for request, nbytes in requests:
            await self._room(nbytes)
            self._count(1, nbytes)
            id = "" if isinstance(request, LookwireError) else request.id
            self._order.put_nowait(Pending(id, nbytes, self._start(self._answer(request, nbytes))))

    async def _room(self, nbytes: int) -> None:
        """Returns when the stream has room for a request; a large one waits until nothing else is in flight."""
        while self._requests >= MAX_REQUESTS or (self._requests and self._nbytes + nbytes > MAX_BYTES):
            self._freed.clear()
            await self._freed.wait()

    def _count(self, requests: int, nbytes: int) -> None:
        self._requests += requests
        self._nbytes += nbytes
        self._streams.nbytes += nbytes

    def _start(self, work: Coroutine[Any, Any, Result]) -> "asyncio.Task[Result]":
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _answer(self, request: pb.ModelInferRequest | LookwireError, nbytes: int) -> Answer:
        started = time.perf_counter()
        code = "OK"
        try:
            if isinstance(request, LookwireError):
                raise request
            others = self._streams.nbytes - nbytes
            if others and self._streams.nbytes > self._streams.max_bytes:
                raise Overloaded(
                    f"requests of {others} bytes are in flight on streams, at most {self._streams.max_bytes} may be; "
                    "try again later"
                )
            return await self._streams.inference.infer(request, list(request.raw_input_contents), deadline(self._call))
        except LookwireError as error:
            code = v2_code(error)
            return Failure(code, cut(error.message, MAX_MESSAGE), fatal=error is request)
        except asyncio.CancelledError:
            code = cancelled_code(self._call.time_remaining())
            raise
        except Exception:
            code = "INTERNAL"
            log.exception("a request on a stream failed")
            return Failure(code, INTERNAL)
        finally:
            self._streams.seconds[code].observe(time.perf_counter() - started)


def to_message(id: str, answer: Answer) -> pb.ModelStreamInferResponse:
    """The message that answers the request of that id."""
    if isinstance(answer, Failure):
        message = pb.ModelStreamInferResponse(error_message=answer.message, infer_response=pb.ModelInferResponse(id=id))
    else:
        message = pb.ModelStreamInferResponse(infer_response=answer)
    message.infer_response.parameters["triton_final_response"].bool_param = True
    return message
