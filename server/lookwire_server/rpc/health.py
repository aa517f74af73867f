"""grpc.health.v1, with watches that end when the server does."""

import asyncio
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2


class HealthServicer(health.aio.HealthServicer):  # type: ignore[misc]  # untyped package
    """The standard servicer. A watch has no end of its own, so that it would hold up a stop that waits for all calls."""

    def __init__(self) -> None:
        super().__init__()
        self._stopping = asyncio.Event()

    async def set_all(self, names: tuple[str, ...], *, serving: bool) -> None:
        """Tells all who ask or watch, for every name, whether requests should be sent here."""
        states = health_pb2.HealthCheckResponse
        for name in names:
            await self.set(name, states.SERVING if serving else states.NOT_SERVING)

    async def Watch(self, request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        watching = asyncio.create_task(super().Watch(request, context))
        stopping = asyncio.create_task(self._stopping.wait())
        try:
            await asyncio.wait({watching, stopping}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            watching.cancel()
            stopping.cancel()
        if self._stopping.is_set():
            await context.abort(grpc.StatusCode.UNAVAILABLE, "the server is stopping")
        await watching

    def end_watches(self) -> None:
        """Ends every watch with UNAVAILABLE, which clients take as a reason to connect elsewhere."""
        self._stopping.set()
