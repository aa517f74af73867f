import asyncio
import inspect
import subprocess
import sys
import threading
import time

import grpc
import pytest
from google.rpc import code_pb2
from google.rpc.status_pb2 import Status
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from lookwire import AsyncClient, Client, Item, LookwireError, errors
from lookwire.v1.collection_service_pb2 import GetCollectionResponse
from lookwire.v1.item_service_pb2 import UpsertItemsResponse
from tests.client.fake_server import FakeServer

UNAVAILABLE = Status(code=code_pb2.UNAVAILABLE, message="stopping")


def test_unavailable_is_retried(client: Client, server: FakeServer) -> None:
    """A call that meets a stopping server is made again, with the same request."""
    server.reply(UNAVAILABLE, UNAVAILABLE, GetCollectionResponse())

    client.get_collection("shop")

    assert len(server.requests) == 3
    assert server.requests[0] == server.requests[2]


def test_unavailable_is_retried_with_a_large_request(client: Client, server: FakeServer) -> None:
    """A request of many images is repeated as well as a small one."""
    server.reply(UNAVAILABLE, UpsertItemsResponse(sequence=1, inserted_count=1))

    client.upsert("shop", [Item("a", image=bytes(3_000_000))])

    assert len(server.requests) == 2


def test_retries_end(client: Client, server: FakeServer) -> None:
    """After four attempts the error is the server's."""
    server.reply(*[UNAVAILABLE] * 5)

    with pytest.raises(errors.Unavailable, match="stopping"):
        client.get_collection("shop")

    assert len(server.requests) == 4


@pytest.mark.parametrize(
    "code",
    [code_pb2.RESOURCE_EXHAUSTED, code_pb2.INTERNAL, code_pb2.UNKNOWN, code_pb2.ABORTED, code_pb2.DEADLINE_EXCEEDED],
    ids=code_pb2.Code.Name,
)
def test_nothing_else_is_retried(client: Client, server: FakeServer, code: int) -> None:
    """Any other status is final."""
    server.reply(Status(code=code), GetCollectionResponse())

    with pytest.raises(LookwireError):
        client.get_collection("shop")

    assert len(server.requests) == 1


def test_timeout_is_the_deadline(client: Client, server: FakeServer) -> None:
    """A call has 30 seconds unless it says otherwise, and the server knows."""
    server.reply(GetCollectionResponse(), GetCollectionResponse())

    client.get_collection("shop")
    client.get_collection("shop", timeout=5.0)

    assert server.seconds_left == pytest.approx([30.0, 5.0], abs=1.0)


def test_timeout_of_the_client(server: FakeServer) -> None:
    """A client's own timeout is that of its calls."""
    server.reply(GetCollectionResponse())

    with Client(server.address, timeout=7.0) as client:
        client.get_collection("shop")

    assert server.seconds_left == pytest.approx([7.0], abs=1.0)


def test_deadline_exceeded(client: Client, server: FakeServer) -> None:
    """A call that gets no answer in time fails then."""
    server.reply(GetCollectionResponse())
    server.released.clear()
    start = time.monotonic()

    with pytest.raises(errors.DeadlineExceeded):
        client.get_collection("shop", timeout=0.2)

    assert time.monotonic() - start < 5.0
    server.released.set()


def test_no_server(server: FakeServer) -> None:
    """A call to a port where nobody listens is Unavailable."""
    server.grpc.stop(grace=None).wait()

    with Client(server.address) as client, pytest.raises(errors.Unavailable):
        client.get_collection("shop", timeout=10.0)


async def test_cancelled_task(server: FakeServer) -> None:
    """A task that is cancelled during a call ends with asyncio's CancelledError, as any other."""
    server.released.clear()

    async with AsyncClient(server.address) as client:
        task = asyncio.create_task(client.get_collection("shop"))
        while not server.requests:
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    server.released.set()


def test_wait_until_ready(client: Client, server: FakeServer) -> None:
    """Waiting ends when the server reports that it serves, and not before."""
    servicer = health.HealthServicer()
    servicer.set("", health_pb2.HealthCheckResponse.NOT_SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server.grpc)

    with pytest.raises(errors.DeadlineExceeded):
        client.wait_until_ready(timeout=0.3)
    servicer.set("", health_pb2.HealthCheckResponse.SERVING)
    client.wait_until_ready(timeout=10.0)


def test_wait_for_a_server_that_is_not_there_yet(client: Client, server: FakeServer) -> None:
    """Waiting may begin before the server listens."""
    server.grpc.stop(grace=None).wait()
    late = FakeServer(port=int(server.address.rpartition(":")[2]))
    servicer = health.HealthServicer()
    servicer.set("", health_pb2.HealthCheckResponse.SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(servicer, late.grpc)
    start = threading.Timer(0.3, late.grpc.start)
    start.start()

    client.wait_until_ready(timeout=10.0)

    start.join()
    late.grpc.stop(grace=None).wait()


def test_wait_for_a_server_without_health(client: Client) -> None:
    """A server that has no health service is an error at once, not a long wait."""
    with pytest.raises(errors.Unimplemented):
        client.wait_until_ready(timeout=30.0)


def test_tls_is_spoken_with_credentials(server: FakeServer) -> None:
    """With credentials the client speaks TLS, which a plain server does not understand."""
    server.reply(GetCollectionResponse())

    with (
        Client(server.address, credentials=grpc.ssl_channel_credentials()) as client,
        pytest.raises(errors.Unavailable),
    ):
        client.get_collection("shop", timeout=10.0)

    assert server.requests == []


def test_both_clients_have_the_same_methods() -> None:
    """Client and AsyncClient differ in being awaited, not in names, arguments or defaults."""

    def parameters(kind: type[Client | AsyncClient]) -> dict[str, list[inspect.Parameter]]:
        methods = inspect.getmembers(kind, inspect.isfunction)
        public = {name: method for name, method in methods if name == "__init__" or not name.startswith("_")}
        return {name: list(inspect.signature(method).parameters.values()) for name, method in public.items()}

    assert parameters(Client) == parameters(AsyncClient)


def test_import_is_light() -> None:
    """Importing the client loads none of what only the server needs."""
    heavy = "onnxruntime faiss PIL apsw tokenizers tritonclient rich torch lookwire_server lookwire_export"
    code = f"import lookwire, lookwire.local, sys; print(*(set({heavy!r}.split()) & set(sys.modules)))"

    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout

    assert loaded.split() == []
