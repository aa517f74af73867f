"""The one place where an RPC is timed and its errors become statuses."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import structlog
from google.protobuf import any_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status

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

Handler = Callable[[Any, "grpc.aio.ServicerContext[Any, Any]"], Awaitable[Any]]


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


class Interceptor(grpc.aio.ServerInterceptor):
    """Wraps every unary handler of ours: an expected error becomes its status, any other INTERNAL with a fixed text."""

    def __init__(self, metrics: Metrics, max_inflight_bytes: int) -> None:
        self._metrics = metrics
        self._max_inflight_bytes = max_inflight_bytes
        self._inflight_bytes = 0
        self._wrapped: dict[str, grpc.RpcMethodHandler[Any, Any]] = {}

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable["grpc.RpcMethodHandler[Any, Any] | None"]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> "grpc.RpcMethodHandler[Any, Any] | None":
        method = handler_call_details.method
        if method not in self._wrapped:
            handler = await continuation(handler_call_details)
            if handler is None or handler.unary_unary is None:
                return handler
            self._wrapped[method] = grpc.unary_unary_rpc_method_handler(
                self._guarded(method, handler.unary_unary),
                request_deserializer=handler.request_deserializer,
                response_serializer=handler.response_serializer,
            )
        return self._wrapped[method]

    def _guarded(self, method: str, handler: Any) -> Any:
        seconds = self._metrics.rpc_seconds
        in_flight = self._metrics.rpcs_in_flight

        async def answer(request: Any, context: "grpc.aio.ServicerContext[Any, Any]") -> Any:
            started = time.perf_counter()
            code = "OK"
            size = request.ByteSize()
            in_flight.inc()
            self._inflight_bytes += size
            try:
                self._check_load(size)
                return await handler(request, context)
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
                in_flight.dec()
                self._inflight_bytes -= size
                seconds.labels(method, code).observe(time.perf_counter() - started)

        return answer

    def _check_load(self, size: int) -> None:
        """Refuses a request of `size` bytes, already counted, that would not fit beside those in flight."""
        others = self._inflight_bytes - size
        if others and self._inflight_bytes > self._max_inflight_bytes:
            raise Overloaded(
                f"requests of {others} bytes are in flight, at most {self._max_inflight_bytes} may be; try again later",
                bytes=others,
                limit=self._max_inflight_bytes,
            )
