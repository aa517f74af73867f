import asyncio
import threading
import time

import pytest
from google.protobuf.any_pb2 import Any
from google.protobuf.duration_pb2 import Duration
from google.rpc import code_pb2
from google.rpc.error_details_pb2 import RetryInfo
from google.rpc.status_pb2 import Status

from lookwire import AsyncClient, Client, Item, LookwireError, errors
from lookwire.retry import pause
from lookwire.v1.collection_service_pb2 import GetCollectionResponse
from lookwire.v1.item_service_pb2 import UpsertItemsResponse
from tests.client.fake_server import FakeServer


def refusal(seconds: float, code: int = code_pb2.RESOURCE_EXHAUSTED) -> Status:
    """A status that names a delay."""
    delay = Duration()
    delay.FromMilliseconds(round(seconds * 1e3))
    detail = Any()
    detail.Pack(RetryInfo(retry_delay=delay))
    return Status(code=code, message="the queue is full", details=[detail])


def test_refused_call_is_made_again_after_the_delay(client: Client, server: FakeServer) -> None:
    """A call that is refused twice for now is answered at the third attempt, with the delays in between."""
    server.reply(refusal(0.3), refusal(0.3), GetCollectionResponse())
    start = time.monotonic()

    client.get_collection("shop", timeout=10.0)

    seconds = time.monotonic() - start
    assert len(server.requests) == 3
    assert server.requests[0] == server.requests[2]
    assert 0.6 <= seconds < 3.0
    # gRPC rounds the time that is left up.
    assert server.seconds_left[2] < server.seconds_left[0] - 0.35


def test_refused_chunk_of_an_import(client: Client, server: FakeServer) -> None:
    """An upsert waits for its turn in the middle, and goes on."""
    written = UpsertItemsResponse(sequence=1, inserted_count=256)
    server.reply(written, refusal(0.05), written)

    total = client.upsert("shop", (Item(str(number), text="red") for number in range(512)))

    assert total.count == 512
    assert len(server.requests) == 3


def test_delay_beyond_the_timeout(client: Client, server: FakeServer) -> None:
    """A call that has not the time to wait fails at once, and says after which delay it may be made."""
    server.reply(refusal(5.0))
    start = time.monotonic()

    with pytest.raises(errors.ResourceExhausted, match="the queue is full") as caught:
        client.get_collection("shop", timeout=2.0)

    assert time.monotonic() - start < 1.0
    assert caught.value.retry_after == 5.0
    assert len(server.requests) == 1


def test_refusals_go_on_until_the_timeout(client: Client, server: FakeServer) -> None:
    """A call is made again as often as its timeout allows, and then fails as the server refused it."""
    server.reply(*[refusal(0.05)] * 100)
    start = time.monotonic()

    with pytest.raises(errors.ResourceExhausted):
        client.get_collection("shop", timeout=1.0)

    assert time.monotonic() - start < 1.5
    assert 5 <= len(server.requests) <= 20


def test_server_that_names_no_time(client: Client, server: FakeServer) -> None:
    """A delay of nothing does not make the client ask without pause."""
    server.reply(*[refusal(0.0)] * 200)

    with pytest.raises(errors.ResourceExhausted):
        client.get_collection("shop", timeout=0.5)

    assert len(server.requests) <= 50


def test_other_codes_with_a_delay_are_final(client: Client, server: FakeServer) -> None:
    """Only a refusal for lack of resources is made again: another failure may have had an effect."""
    server.reply(refusal(0.01, code_pb2.INTERNAL), GetCollectionResponse())

    with pytest.raises(errors.Internal) as caught:
        client.get_collection("shop")

    assert caught.value.retry_after == 0.01
    assert len(server.requests) == 1


def test_upsert_that_fails_tells_the_delay(client: Client, server: FakeServer) -> None:
    """The error of a whole upsert has the delay of the chunk that failed, beside the number of items written."""
    server.reply(UpsertItemsResponse(sequence=1, inserted_count=256), refusal(5.0))

    with pytest.raises(errors.ResourceExhausted) as caught:
        client.upsert("shop", (Item(str(number), text="red") for number in range(257)), timeout=1.0)

    assert caught.value.acknowledged == 256
    assert caught.value.retry_after == 5.0


def test_closing_ends_the_wait(server: FakeServer) -> None:
    """A call that waits in another thread fails with its refusal when the client is closed."""
    server.reply(refusal(15.0))
    client = Client(server.address)
    closing = threading.Timer(0.3, client.close)
    closing.start()
    start = time.monotonic()

    with pytest.raises(errors.ResourceExhausted):
        client.get_collection("shop")

    closing.join()
    assert time.monotonic() - start < 5.0


async def test_closing_ends_the_wait_of_a_task(server: FakeServer) -> None:
    """A task that waits while the client is closed fails with its refusal, and asks no closed connection."""
    server.reply(refusal(0.5))
    client = AsyncClient(server.address)
    task = asyncio.create_task(client.get_collection("shop"))
    while not server.requests:
        await asyncio.sleep(0.01)
    await asyncio.sleep(0.1)

    await client.close()

    with pytest.raises(errors.ResourceExhausted):
        await task


def test_pauses_differ() -> None:
    """Callers who were refused together come back at different times, none before the delay nor long after."""
    error = errors.from_status(refusal(2.0))

    pauses = [pause(error, 60.0) or 0.0 for _ in range(100)]

    assert 2.0 <= min(pauses) < 2.2
    assert 2.8 < max(pauses) <= 3.0
    assert isinstance(error, LookwireError)
