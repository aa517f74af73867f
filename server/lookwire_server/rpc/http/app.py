"""The ASGI application: it takes a request apart, calls the servicer's method, and answers with its reply or its error."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import Any, ParamSpec, TypeVar

import structlog
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from tritonclient.grpc import service_pb2 as pb

from lookwire_server.errors import InvalidArgument, LookwireError
from lookwire_server.metrics import Metrics
from lookwire_server.rpc.guard import INTERNAL, Seconds
from lookwire_server.rpc.http import infer
from lookwire_server.rpc.http.bodies import Bodies, Refusal, accepted, compressed
from lookwire_server.rpc.http.document import parse
from lookwire_server.rpc.http.routes import INFER_PATHS, OPERATIONS, Operation, answer
from lookwire_server.rpc.http.threads import Threads

log = structlog.get_logger()
P = ParamSpec("P")
T = TypeVar("T")

HEADER_LENGTH = "Inference-Header-Content-Length"
CLIENT_CLOSED_REQUEST = 499
# HTTP statuses by canonical code, as Triton has them.
STATUSES = {
    "INVALID_ARGUMENT": HTTPStatus.BAD_REQUEST,
    "FAILED_PRECONDITION": HTTPStatus.BAD_REQUEST,
    "NOT_FOUND": HTTPStatus.NOT_FOUND,
    "ALREADY_EXISTS": HTTPStatus.CONFLICT,
    "CANCELLED": CLIENT_CLOSED_REQUEST,
    "UNIMPLEMENTED": HTTPStatus.NOT_IMPLEMENTED,
    "RESOURCE_EXHAUSTED": HTTPStatus.SERVICE_UNAVAILABLE,
    "UNAVAILABLE": HTTPStatus.SERVICE_UNAVAILABLE,
    "DEADLINE_EXCEEDED": HTTPStatus.GATEWAY_TIMEOUT,
}


class Call:
    """What the servicer asks of an RPC's context: over HTTP nobody sets a deadline."""

    def time_remaining(self) -> None:
        return None


CALL = Call()
Endpoint = Callable[[Request], Awaitable[Response]]


class Api:
    """The protocol's paths in front of a servicer, whose methods have the names of the RPCs."""

    def __init__(self, servicer: Any, bodies: Bodies, threads: Threads, metrics: Metrics) -> None:
        self._servicer = servicer
        self._bodies = bodies
        self._threads = threads
        self._metrics = metrics
        routes = [
            Route(path, self._guarded(operation.rpc, self._endpoint(operation)), methods=[operation.method])
            for operation in OPERATIONS
            for path in operation.paths
        ]
        routes += [Route(path, self._guarded("ModelInfer", self._infer), methods=["POST"]) for path in INFER_PATHS]
        self.app = Starlette(routes=routes, exception_handlers={HTTPException: refused})
        self.app.router.redirect_slashes = False

    def _guarded(self, rpc: str, endpoint: Endpoint) -> Endpoint:
        """Times an RPC, and turns its errors into answers; any that is not foreseen is logged, and says nothing outside."""
        method = f"/http/{rpc}"
        seconds = Seconds(self._metrics, method)

        async def guarded(request: Request) -> Response:
            started = time.perf_counter()
            code = "OK"
            try:
                return await endpoint(request)
            except LookwireError as error:
                code = error.code
                status = STATUSES.get(code, HTTPStatus.INTERNAL_SERVER_ERROR)
                # Of a body that stopped arriving, the rest may come yet.
                headers = {"Connection": "close"} if status == HTTPStatus.GATEWAY_TIMEOUT else None
                answer = failed(f"{error.field}: {error.message}" if error.field else error.message, status, headers)
                rest = getattr(request.state, "rest", None)
                return answer if rest is None else Refusal(answer, rest)
            except ClientDisconnect:
                code = "CANCELLED"
                return failed("the client went away", CLIENT_CLOSED_REQUEST, {"Connection": "close"})
            except asyncio.CancelledError:  # by the HTTP server, whose task this is, when it has to stop
                code = "UNAVAILABLE"
                return failed("the server stopped before the request was answered", HTTPStatus.SERVICE_UNAVAILABLE)
            except Exception:
                code = "INTERNAL"
                log.exception("a request over HTTP failed", method=method)
                return failed(INTERNAL, HTTPStatus.INTERNAL_SERVER_ERROR)
            finally:
                seconds[code].observe(time.perf_counter() - started)

        return guarded

    def _endpoint(self, operation: Operation) -> Endpoint:
        method = getattr(self._servicer, operation.rpc)

        async def endpoint(request: Request) -> Response:
            async with self._bodies.read(request) as body:
                document = await self._made(len(body), parse, body) if body else {}
                message = await self._made(len(body), operation.request, request.path_params, document)
                return operation.respond(await attended(request, method(message, CALL)))

        return endpoint

    async def _made(self, size: int, make: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """What `make` makes of `size` bytes of a request."""
        try:
            return await self._threads.run(size, make, *args, **kwargs)
        except UnicodeEncodeError:
            raise InvalidArgument("a string of the request has half of a surrogate pair, which is no text") from None

    async def _infer(self, request: Request) -> Response:
        model, version = request.path_params["model"], request.path_params.get("version", "")
        length = request.headers.get(HEADER_LENGTH)
        async with self._bodies.read(request) as body:
            if length == "0":
                wanted = pb.ModelConfigRequest(name=model, version=version)
                config = (await self._servicer.ModelConfig(wanted, CALL)).config
                call = infer.from_binary(body, config, version)
            else:
                # Binary tensors are cut out of the body, which is quick; JSON is what takes its time.
                size = len(body) if length is None else infer.json_length(length, len(body))
                call = await self._made(size, infer.from_body, body, size, model, version)
            reply = await attended(request, self._servicer.ModelInfer(call.message, CALL))
            content, header = await self._threads.run(infer.json_size(reply, call), infer.to_body, reply, call)
        headers = {} if header is None else {HEADER_LENGTH: str(header)}
        encoding = accepted(request.headers.get("accept-encoding", ""))
        if encoding != "identity":
            content = await self._threads.run(len(content), compressed, content, encoding)
            headers["Content-Encoding"] = encoding
        media_type = "application/json" if header is None else "application/octet-stream"
        return Response(content, headers=headers, media_type=media_type)


async def attended(request: Request, work: Awaitable[T]) -> T:
    """The result of `work`, which is cancelled if the client goes away before; the body must have been read."""
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(request.receive())
    try:
        await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientDisconnect
        return working.result()
    finally:
        working.cancel()
        leaving.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


async def refused(request: Request, error: Exception) -> Response:
    """The answer to a path or a method that the protocol does not have."""
    status = error.status_code if isinstance(error, HTTPException) else HTTPStatus.INTERNAL_SERVER_ERROR
    headers = error.headers if isinstance(error, HTTPException) else None
    return failed(f"{HTTPStatus(status).phrase}: {request.method} {request.url.path}", status, headers)


def failed(message: str, status: int, headers: Any = None) -> Response:
    response = answer({"error": message})
    response.status_code = status
    response.headers.update(headers or {})
    return response
