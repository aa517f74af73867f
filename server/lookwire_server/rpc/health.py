"""Whether requests should be sent here: grpc.health.v1, with a watch, for the server, its services and its models."""

import asyncio
from collections.abc import AsyncIterator, Iterable
from typing import Any

import grpc
from google.protobuf.descriptor import ServiceDescriptor
from grpc_health.v1 import health_pb2 as pb
from grpc_health.v1 import health_pb2_grpc

from lookwire_server.errors import NotFound, Unavailable
from lookwire_server.models.repository import Repository

Context = grpc.aio.ServicerContext[Any, Any]
SERVING: int = pb.HealthCheckResponse.SERVING
NOT_SERVING: int = pb.HealthCheckResponse.NOT_SERVING
UNKNOWN: int = pb.HealthCheckResponse.SERVICE_UNKNOWN
# Each watch is a call that lasts; beyond these, those who ask must ask again.
MAX_WATCHES = 1000


class HealthServicer(health_pb2_grpc.HealthServicer):  # type: ignore[misc]  # untyped stubs
    """Answers for the empty name and each of `services` as the server's readiness says, and for models by their own state.

    `strict`: the server is ready while all of its models are; otherwise from the start. It is not ready once it is stopping.
    """

    def __init__(self, repository: Repository, services: Iterable[ServiceDescriptor], *, strict: bool) -> None:
        self._repository = repository
        self._services = frozenset(("", *(service.full_name for service in services)))
        self._strict = strict
        self._stopping = False
        self._ended = False
        self._watches = 0
        self._changed = asyncio.Event()
        repository.on_change.append(self._tell)

    def ready(self) -> bool:
        """Whether the server as a whole should be sent requests."""
        return not self._stopping and (not self._strict or self._repository.ready())

    def status(self, name: str) -> int:
        """SERVING, NOT_SERVING, or SERVICE_UNKNOWN for a name that is none of the server's."""
        if name in self._services:
            return SERVING if self.ready() else NOT_SERVING
        try:
            self._repository.get(name)
        except NotFound:
            return UNKNOWN
        except Unavailable:
            return NOT_SERVING
        return NOT_SERVING if self._stopping else SERVING

    async def Check(self, request: pb.HealthCheckRequest, context: Context) -> pb.HealthCheckResponse:
        status = self.status(request.service)
        if status == UNKNOWN:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"there is no service or model '{request.service[:256]}'")
        return pb.HealthCheckResponse(status=status)

    async def Watch(self, request: pb.HealthCheckRequest, context: Context) -> AsyncIterator[pb.HealthCheckResponse]:
        if self._watches == MAX_WATCHES:
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, f"there are {MAX_WATCHES} watches already")
        self._watches += 1
        try:
            told = None
            while True:
                changed = self._changed
                status = self.status(request.service)
                if status != told:
                    yield pb.HealthCheckResponse(status=status)
                    told = status
                if self._ended:
                    break
                await changed.wait()
        finally:
            self._watches -= 1
        await context.abort(grpc.StatusCode.UNAVAILABLE, "the server is stopping")

    def _tell(self) -> None:
        """Wakes the watches."""
        self._changed.set()
        self._changed = asyncio.Event()

    def stop_serving(self) -> None:
        """Tells all who ask or watch that requests should go elsewhere."""
        self._stopping = True
        self._tell()

    def end_watches(self) -> None:
        """Ends every watch with UNAVAILABLE, which clients take as a reason to connect elsewhere.

        A watch has no end of its own, so that it would hold up a stop that waits for all calls.
        """
        self._ended = True
        self._tell()
