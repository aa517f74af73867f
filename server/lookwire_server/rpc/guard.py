"""The one place where an RPC is timed and its errors become statuses."""

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from contextlib import aclosing, contextmanager
from typing import Any, TypeAlias

import grpc
import structlog
from google.protobuf import any_pb2
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status

from lookwire_server.errors import LookwireError, Overloaded, QueueFull, Unavailable
from lookwire_server.histogram import Histogram
from lookwire_server.metrics import Metrics

log = structlog.get_logger()

DOMAIN = "lookwire"
INTERNAL = "internal error; the cause is in the server's log"
# Bounds in bytes. A status travels in HTTP/2 trailers, of which clients take 8 KiB by default: the field and the message three
# times, once with up to three bytes for each of theirs, and the metadata. What is in base64 takes a third more.
MAX_MESSAGE = 768
MAX_METADATA = 256
GAP = " ... "
V2 = "/inference."

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
Behaviour = Callable[[Any, Context], Awaitable[Any]]
StreamBehaviour = Callable[[Any, Context], AsyncGenerator[Any, None]]


def to_status(error: LookwireError) -> status_pb2.Status:
    """google.rpc.Status of an error: code, message, ErrorInfo, the field at fault as a BadRequest, and when to try again."""
    info = error_details_pb2.ErrorInfo(
        reason=error.reason,
        domain=DOMAIN,
        metadata={key: cut(value, MAX_METADATA) for key, value in error.metadata.items()},
    )
    message = cut(error.message, MAX_MESSAGE)
    field = cut(error.field, MAX_METADATA)
    details: list[Message] = [info]
    if field:
        violation = error_details_pb2.BadRequest.FieldViolation(field=field, description=message)
        details.append(error_details_pb2.BadRequest(field_violations=[violation]))
    if error.retry_after is not None:
        delay = Duration()
        delay.FromMilliseconds(max(1, round(error.retry_after * 1e3)))
        details.append(error_details_pb2.RetryInfo(retry_delay=delay))
    packed = []
    for detail in details:
        packed.append(any_pb2.Any())
        packed[-1].Pack(detail)
    prefix = f"{field}: " if field else ""
    return status_pb2.Status(code=code_pb2.Code.Value(error.code), message=prefix + message, details=packed)


def cut(text: str, size: int) -> str:
    """The text, or as much of its beginning and its end as takes `size` bytes of UTF-8; what is no character is left out."""
    data = text.encode(errors="replace")
    if len(data) <= size:
        return data.decode()
    half = (size - len(GAP)) // 2
    return f"{data[:half].decode(errors='ignore')}{GAP}{data[-half:].decode(errors='ignore')}"


def v2_code(error: LookwireError) -> str:
    """The code of an error in the V2 protocol: UNAVAILABLE for what does not fit now, as Triton, whose clients retry on it."""
    return "UNAVAILABLE" if isinstance(error, QueueFull | Overloaded) else error.code


def cancelled_code(remaining: float | None) -> str:
    """Why a call was cancelled that had so many seconds left: its deadline has passed, or the caller went away."""
    return "DEADLINE_EXCEEDED" if remaining is not None and remaining <= 0 else "CANCELLED"


class Guard:
    """Wraps methods that take one request: an expected error becomes its status, any other INTERNAL with a fixed text; each call
    is timed.
    """

    def __init__(self, metrics: Metrics, max_inflight_bytes: int) -> None:
        self._metrics = metrics
        self._max_inflight_bytes = max_inflight_bytes
        self._inflight_bytes = 0
        self._inflight_calls = 0
        self._streams: set[asyncio.Task[None]] = set()
        self._stopping = False
        metrics.rpcs_in_flight.set_function(lambda: self._inflight_calls)

    def __call__(self, method: str, behaviour: Behaviour) -> Callable[[tuple[Any, int], Context], Awaitable[Any]]:
        """The method of that full name, guarded; it takes what handlers.sized makes of a request."""
        seconds = Seconds(self._metrics, method)

        async def answer(received: tuple[Any, int], context: Context) -> Any:
            started = time.perf_counter()
            code = "OK"
            request, size = received
            self._inflight_calls += 1
            self._inflight_bytes += size
            try:
                if self._inflight_bytes > self._max_inflight_bytes:
                    self._check_load(size)
                if isinstance(request, LookwireError):
                    raise request
                return await behaviour(request, context)
            except LookwireError as error:
                code = v2_code(error) if method.startswith(V2) else error.code
                status = to_status(error)
                status.code = code_pb2.Code.Value(code)
            except asyncio.CancelledError:
                code = cancelled_code(context.time_remaining())
                raise
            except NotImplementedError:
                code = "UNIMPLEMENTED"
                status = status_pb2.Status(
                    code=code_pb2.UNIMPLEMENTED, message=f"{method} is not implemented by this server"
                )
            except Exception:
                code = "INTERNAL"
                log.exception("an RPC failed", method=method)
                status = status_pb2.Status(code=code_pb2.INTERNAL, message=INTERNAL)
            finally:
                self._inflight_calls -= 1
                self._inflight_bytes -= size
                seconds[code].observe(time.perf_counter() - started)
            # gRPC keeps what abort raises, and so this frame, until the garbage collector comes by: not with the request.
            del received, request
            await context.abort_with_status(rpc_status.to_status(status))
            return None  # not reached: abort raises

        return answer

    def streamed(self, method: str, behaviour: StreamBehaviour) -> Callable[[tuple[Any, int], Context], Awaitable[Any]]:
        """The method of that full name, which yields replies, guarded likewise."""

        async def send(request: Any, context: Context) -> None:
            if self._stopping:
                raise Unavailable("the server is stopping")
            sending = asyncio.create_task(_send(behaviour(request, context), context))
            self._streams.add(sending)
            try:
                await sending
            except asyncio.CancelledError:
                task = asyncio.current_task()
                if task is None or task.cancelling():
                    raise  # the caller went away
                raise Unavailable("the server is stopping") from None
            finally:
                self._streams.discard(sending)

        return self(method, send)

    def end_streams(self) -> None:
        """Ends every stream of replies with UNAVAILABLE, and those that come later; for a server that stops."""
        self._stopping = True
        for sending in self._streams:
            sending.cancel()

    @contextmanager
    def holding(self, size: int) -> Iterator[None]:
        """Counts a message of a stream that a client sends while the block runs; raises Overloaded if it does not fit."""
        self._inflight_bytes += size
        try:
            if self._inflight_bytes > self._max_inflight_bytes:
                self._check_load(size)
            yield
        finally:
            self._inflight_bytes -= size

    def _check_load(self, size: int) -> None:
        """Refuses a request of `size` bytes, already counted, that does not fit beside those in flight."""
        others = self._inflight_bytes - size
        if others:
            raise Overloaded(
                f"requests of {others} bytes are in flight, at most {self._max_inflight_bytes} may be; try again later",
                bytes=others,
                limit=self._max_inflight_bytes,
            )


async def _send(replies: AsyncGenerator[Any, None], context: Context) -> None:
    async with aclosing(replies):
        async for reply in replies:
            await context.write(reply)


class Seconds(dict[str, Histogram]):
    """The durations of one method by status code."""

    def __init__(self, metrics: Metrics, method: str) -> None:
        super().__init__()
        self._metrics = metrics
        self._method = method

    def __missing__(self, code: str) -> Histogram:
        self[code] = self._metrics.rpc_seconds.labels(self._method, code)
        return self[code]
