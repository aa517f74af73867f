"""The one place where an RPC is timed and its errors become statuses."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

import grpc
import structlog
from google.protobuf import any_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status
from prometheus_client import Histogram

from lookwire_server.errors import LookwireError, Overloaded, QueueFull
from lookwire_server.metrics import Metrics
from lookwire_server.rpc import convert

log = structlog.get_logger()

DOMAIN = "lookwire"
INTERNAL = "internal error; the cause is in the server's log"
# Status details travel in HTTP/2 trailers, which clients bound to 8 KiB by default.
MAX_MESSAGE = 1024
MAX_METADATA = 256
V2 = "/inference."

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
Behaviour = Callable[[Any, Context], Awaitable[Any]]


def to_status(error: LookwireError) -> status_pb2.Status:
    """google.rpc.Status of an error: code, message, ErrorInfo, and the field at fault as a BadRequest."""
    info = error_details_pb2.ErrorInfo(
        reason=error.reason,
        domain=DOMAIN,
        metadata={key: value[:MAX_METADATA] for key, value in error.metadata.items()},
    )
    message = error.message[:MAX_MESSAGE]
    details = [info]
    if error.field:
        violation = error_details_pb2.BadRequest.FieldViolation(field=error.field[:MAX_METADATA], description=message)
        details.append(error_details_pb2.BadRequest(field_violations=[violation]))
    packed = []
    for detail in details:
        packed.append(any_pb2.Any())
        packed[-1].Pack(detail)
    prefix = f"{error.field[:MAX_METADATA]}: " if error.field else ""
    return status_pb2.Status(code=code_pb2.Code.Value(error.code), message=prefix + message, details=packed)


class Guard:
    """Wraps unary methods: an expected error becomes its status, any other INTERNAL with a fixed text; each call is timed."""

    def __init__(self, metrics: Metrics, max_inflight_bytes: int) -> None:
        self._metrics = metrics
        self._max_inflight_bytes = max_inflight_bytes
        self._inflight_bytes = 0
        self._inflight_calls = 0
        metrics.rpcs_in_flight.set_function(lambda: self._inflight_calls)

    def __call__(self, method: str, behaviour: Behaviour) -> Callable[[tuple[Any, int], Context], Awaitable[Any]]:
        """The method of that full name, guarded; it takes a request's message with its size in bytes."""
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
                return await behaviour(request, context)
            except LookwireError as error:
                status = to_status(error)
                if method.startswith(V2) and isinstance(error, QueueFull | Overloaded):
                    status.code = code_pb2.UNAVAILABLE  # what Triton answers, and V2 clients retry on
                code = code_pb2.Code.Name(status.code)
                await context.abort_with_status(rpc_status.to_status(status))
            except asyncio.CancelledError:
                deadline = convert.deadline(context)
                code = "CANCELLED" if deadline is None or deadline > time.monotonic() else "DEADLINE_EXCEEDED"
                raise
            except NotImplementedError:
                code = "UNIMPLEMENTED"
                await context.abort(grpc.StatusCode.UNIMPLEMENTED, f"{method} is not implemented by this server")
            except Exception:
                code = "INTERNAL"
                log.exception("an RPC failed", method=method)
                await context.abort(grpc.StatusCode.INTERNAL, INTERNAL)
            finally:
                self._inflight_calls -= 1
                self._inflight_bytes -= size
                seconds[code].observe(time.perf_counter() - started)

        return answer

    def _check_load(self, size: int) -> None:
        """Refuses a request of `size` bytes, already counted, that does not fit beside those in flight."""
        others = self._inflight_bytes - size
        if others:
            raise Overloaded(
                f"requests of {others} bytes are in flight, at most {self._max_inflight_bytes} may be; try again later",
                bytes=others,
                limit=self._max_inflight_bytes,
            )


class Seconds(dict[str, Histogram]):
    """The durations of one method by status code."""

    def __init__(self, metrics: Metrics, method: str) -> None:
        super().__init__()
        self._metrics = metrics
        self._method = method

    def __missing__(self, code: str) -> Histogram:
        self[code] = self._metrics.rpc_seconds.labels(self._method, code)
        return self[code]
