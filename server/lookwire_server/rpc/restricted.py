"""RPCs that only callers with a certain metadata entry may use."""

import hmac
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import grpc

from lookwire_server.metrics import Metrics
from lookwire_server.rpc.handlers import MAKERS, Handler
from lookwire_server.settings import Restriction

PREFIX = "triton-grpc-protocol-"
V2 = "/inference.GRPCInferenceService/"
# Methods of the V2 protocol by group. The standard health service belongs to `health`, Lookwire's own to `inference`.
GROUPS = {
    "ServerLive": "health",
    "ServerReady": "health",
    "ModelReady": "health",
    "ServerMetadata": "metadata",
    "ModelMetadata": "metadata",
    "ModelInfer": "inference",
    "ModelStreamInfer": "inference",
    "SystemSharedMemoryStatus": "shared-memory",
    "SystemSharedMemoryRegister": "shared-memory",
    "SystemSharedMemoryUnregister": "shared-memory",
    "CudaSharedMemoryStatus": "shared-memory",
    "CudaSharedMemoryRegister": "shared-memory",
    "CudaSharedMemoryUnregister": "shared-memory",
    "ModelConfig": "model-config",
    "RepositoryIndex": "model-repository",
    "RepositoryModelLoad": "model-repository",
    "RepositoryModelUnload": "model-repository",
    "ModelStatistics": "statistics",
    "TraceSetting": "trace",
    "LogSettings": "logging",
}


def group_of(method: str) -> str | None:
    """The group of a method by its full name, `/package.Service/Method`; None for reflection."""
    if method.startswith(V2):
        return GROUPS.get(method.removeprefix(V2))
    if method.startswith("/grpc.health."):
        return "health"
    return "inference" if method.startswith("/lookwire.") else None


class RestrictedProtocols(grpc.aio.ServerInterceptor):
    """Refuses calls that lack the entry that their group demands, with UNAVAILABLE and Triton's words."""

    def __init__(self, restrictions: Sequence[Restriction], metrics: Metrics) -> None:
        self._entries = {
            group: (PREFIX + restriction.key, restriction.value)
            for restriction in restrictions
            for group in restriction.protocols
        }
        self._metrics = metrics

    async def intercept_service(
        self,
        continuation: "Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]]",
        handler_call_details: grpc.HandlerCallDetails,
    ) -> "Handler | None":
        handler = await continuation(handler_call_details)
        entry = self._entries.get(group_of(handler_call_details.method) or "")
        if handler is None or entry is None or sent(handler_call_details, *entry):
            return handler
        return self._refusal(handler, handler_call_details.method, entry[0])

    def _refusal(self, handler: Handler, method: str, header: str) -> Handler:
        async def refuse(request: Any, context: "grpc.aio.ServicerContext[Any, Any]") -> None:
            self._metrics.rpc_seconds.labels(method, "UNAVAILABLE").observe(0)
            await context.abort(
                grpc.StatusCode.UNAVAILABLE, f"This protocol is restricted, expecting header '{header}'"
            )

        make = MAKERS[bool(handler.request_streaming), bool(handler.response_streaming)]
        return make(refuse)  # messages stay bytes: nothing of them is read


def sent(details: grpc.HandlerCallDetails, header: str, value: str) -> bool:
    """Whether the call's metadata has the entry."""
    metadata: Any = details.invocation_metadata or ()
    return any(
        key == header and isinstance(given, str) and hmac.compare_digest(given.encode(), value.encode())
        for key, given in metadata
    )
