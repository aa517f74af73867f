import asyncio
import inspect
from collections.abc import Iterator
from typing import Any, cast

import pytest

from lookwire import AsyncClient, Client
from tests.client.fake_server import FakeServer


class Blocking:
    """An AsyncClient whose methods are called as those of Client are."""

    def __init__(self, runner: asyncio.Runner, client: AsyncClient) -> None:
        self._runner = runner
        self._client = client

    def __getattr__(self, name: str) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            async def finish() -> Any:
                result = getattr(self._client, name)(*args, **kwargs)
                return await result if inspect.isawaitable(result) else [each async for each in result]

            return self._runner.run(finish())

        return call


@pytest.fixture
def server() -> Iterator[FakeServer]:
    server = FakeServer()
    server.grpc.start()
    yield server
    server.grpc.stop(grace=None).wait()


@pytest.fixture(params=["sync", "async"])
def client(request: pytest.FixtureRequest, server: FakeServer) -> Iterator[Client]:
    """Both clients in turn, behind the same face."""
    if request.param == "sync":
        with Client(server.address) as client:
            yield client
        return

    async def connect() -> AsyncClient:
        return AsyncClient(server.address)

    with asyncio.Runner() as runner:
        async_client = runner.run(connect())
        yield cast(Client, Blocking(runner, async_client))
        runner.run(async_client.close())
