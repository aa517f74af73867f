"""What the server's services are, for clients without stubs: grpc.reflection.v1alpha."""

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Iterable
from typing import Any

import grpc
from grpc_reflection.v1alpha import reflection
from grpc_reflection.v1alpha import reflection_pb2 as pb

Context = grpc.aio.ServicerContext[Any, Any]


class ReflectionServicer(reflection.aio.ReflectionServicer):  # type: ignore[misc]  # untyped
    """Describes the services of the names that it is made with.

    A client may hold a stream open with nothing to ask, which would hold up a stop that waits for all calls.
    """

    def __init__(self, names: Iterable[str]) -> None:
        super().__init__(names)
        self._reading: set[asyncio.Future[Any]] = set()
        self._stopping = False

    async def ServerReflectionInfo(
        self, requests: AsyncIterable[pb.ServerReflectionRequest], context: Context
    ) -> AsyncIterator[pb.ServerReflectionResponse]:
        async for response in super().ServerReflectionInfo(self._until_stop(requests), context):
            yield response
        if self._stopping:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "the server is stopping")

    async def _until_stop(
        self, requests: AsyncIterable[pb.ServerReflectionRequest]
    ) -> AsyncIterator[pb.ServerReflectionRequest]:
        """The requests, until the server stops.

        Only the reading is ever cancelled: a call that is cancelled while grpc writes a response ends without a status.
        """
        iterator = aiter(requests)
        while not self._stopping:
            reading = asyncio.ensure_future(anext(iterator, None))
            self._reading.add(reading)
            try:
                await asyncio.wait([reading])
            finally:
                reading.cancel()
                self._reading.discard(reading)
            if reading.cancelled() or (request := reading.result()) is None:
                return
            yield request

    def end_streams(self) -> None:
        """Ends every stream with UNAVAILABLE, and those that come later."""
        self._stopping = True
        for reading in self._reading:
            reading.cancel()
