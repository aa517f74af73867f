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
        self._streams: set[asyncio.Task[Any]] = set()
        self._stopping = False

    async def ServerReflectionInfo(
        self, requests: AsyncIterable[pb.ServerReflectionRequest], context: Context
    ) -> AsyncIterator[pb.ServerReflectionResponse]:
        task: Any = asyncio.current_task()  # never None in a coroutine
        self._streams.add(task)
        try:
            if not self._stopping:
                async for response in super().ServerReflectionInfo(requests, context):
                    yield response
                return
        except asyncio.CancelledError:
            if not self._stopping:
                raise
        finally:
            self._streams.discard(task)
        await context.abort(grpc.StatusCode.UNAVAILABLE, "the server is stopping")

    def end_streams(self) -> None:
        """Ends every stream with UNAVAILABLE, and those that come later."""
        self._stopping = True
        for task in self._streams:
            task.cancel()
