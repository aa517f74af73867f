"""ImportItems: chunks embedded side by side, written in order, acknowledged one by one, with errors by item."""

import asyncio
import socket
import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import grpc
import numpy as np
import pytest

from lookwire import AsyncClient, Client, Item, errors, field
from lookwire.local import LocalServer
from lookwire.v1 import item_service_pb2 as pb
from lookwire.v1 import item_service_pb2_grpc
from lookwire.v1.vector_pb2 import Vector
from lookwire_server.encoding.encoder import Embedded, Times
from lookwire_server.encoding.encoders import Encoders
from lookwire_server.lanes import Lane
from lookwire_server.metrics import Metrics
from lookwire_server.rpc.guard import Guard
from lookwire_server.rpc.imports import MAX_CHUNKS, Imports
from lookwire_server.search.collections import Collections
from lookwire_server.search.store.collections import NewCollection
from lookwire_server.search.store.store import Store
from tests.conftest import MODEL_REPOSITORY
from tests.server.images import jpeg

DIMENSION = 4


@pytest.fixture
def stub(server: LocalServer) -> Iterator[item_service_pb2_grpc.ItemServiceStub]:
    with grpc.insecure_channel(server.address) as channel:
        yield item_service_pb2_grpc.ItemServiceStub(channel)


def test_import_of_every_kind_of_item(client: Client, collection: str, tmp_path: Path) -> None:
    """Texts, images, image files and vectors of several chunks are all there, under the vectors that upserts make."""
    (tmp_path / "a.jpg").write_bytes(jpeg(1))
    contents: list[dict[str, Any]] = [
        {"text": "a plain green dress"},
        {"image": jpeg(0)},
        {"image": tmp_path / "a.jpg"},
        {"vector": np.ones(client.get_encoder().dimension)},
    ]
    items = [Item(f"i{number}", {"stock": number}, **contents[number % 4]) for number in range(40)]
    seen: list[int] = []

    imported = client.import_items(collection, iter(items), chunk_size=7, progress=seen.append)

    assert (imported.inserted, imported.replaced, imported.failed, imported.errors) == (40, 0, 0, {})
    assert imported.sequence == client.get_collection(collection).sequence
    assert seen == [7, 14, 21, 28, 35, 40]
    client.upsert(collection, [Item(f"u{number}", **contents[number]) for number in range(4)])
    expected = client.get_items(collection, [f"u{number}" for number in range(4)], include_vectors=True)
    found = client.get_items(collection, [item.id for item in items], include_vectors=True)
    for number, item in enumerate(found):
        assert item.payload == {"stock": number}
        assert item.vector is not None
        assert np.dot(item.vector, expected[number % 4].vector) > 0.999  # type: ignore[arg-type]


def test_bad_items_have_errors_and_the_rest_is_written(client: Client, collection: str) -> None:
    """Each item that cannot be written has the error that an upsert would have given it."""
    dimension = client.get_encoder().dimension
    good = np.ones(dimension)
    items = [
        Item("good", text="a hat"),
        Item("", vector=good),
        Item("payload", {"stock": "many"}, vector=good),
        Item("image", image=b"no image"),
        Item("short", vector=good[1:]),
        Item("zero", vector=0 * good),
        Item("nan", vector=good * np.nan),
        Item("red", vector=good, if_sequence=0),
        Item("hat", {"stock": 5}, vector=good, if_sequence=1),
    ]

    imported = client.import_items(collection, items)

    assert (imported.inserted, imported.replaced, imported.failed) == (1, 1, 7)
    reasons = {id: (type(error), error.reason) for id, error in imported.errors.items()}
    assert reasons == {
        "": (errors.InvalidArgument, "INVALID_ARGUMENT"),
        "payload": (errors.InvalidArgument, "INVALID_ARGUMENT"),
        "image": (errors.InvalidArgument, "INVALID_IMAGE"),
        "short": (errors.InvalidArgument, "INVALID_VECTOR"),
        "zero": (errors.InvalidArgument, "INVALID_VECTOR"),
        "nan": (errors.InvalidArgument, "INVALID_VECTOR"),
        "red": (errors.Conflict, "CONFLICT"),
    }
    fields = {id: error.violations[0].field for id, error in imported.errors.items()}
    assert (fields["image"], fields["zero"], fields["red"]) == (
        "items[3].image",
        "items[5].vector",
        "items[7].if_sequence",
    )
    assert {item.id for item in client.list_items(collection)} == {"red", "blue", "hat", "good"}
    assert client.count_items(collection, filter=field("stock") == 5) == 1


def test_last_of_equal_ids_counts(client: Client, collection: str) -> None:
    """An id may come again, in a chunk and between chunks: the last item that is good stays."""
    vector = np.ones(client.get_encoder().dimension)
    numbers = [1, 2, 3, 4, 5]

    imported = client.import_items(
        collection,
        [Item("same", {"stock": number}, vector=vector) for number in numbers] + [Item("same", vector=0 * vector)],
        chunk_size=2,
    )

    assert (imported.inserted, imported.replaced, imported.failed) == (1, 2, 1)
    assert client.get_items(collection, ["same"])[0].payload == {"stock": 5}


async def test_async_import(server: LocalServer, client: Client, collection: str) -> None:
    """The client of asyncio imports as the other does."""
    vector = np.ones(client.get_encoder().dimension)
    async with AsyncClient(server.address) as other:
        imported = await other.import_items(
            collection, (Item(f"i{number}", vector=vector) for number in range(50)), chunk_size=3
        )
        nothing = await other.import_items(collection, [])
        with pytest.raises(errors.NotFound):
            await other.import_items("nowhere", [Item("a", vector=vector)])

    assert (imported.inserted, imported.failed) == (50, 0)
    assert (nothing.count, nothing.sequence) == (0, 0)
    assert client.count_items(collection) == 53


def test_errors_of_the_stream(stub: item_service_pb2_grpc.ItemServiceStub, collection: str) -> None:
    """A stream without a collection, of an unknown one or two, and a chunk of no items or too many end with their status."""
    one = pb.Item(id="a", text="a hat")
    cases: list[tuple[list[pb.ImportItemsRequest], grpc.StatusCode, str]] = [
        ([pb.ImportItemsRequest(items=[one])], grpc.StatusCode.INVALID_ARGUMENT, "names the collection"),
        (
            [pb.ImportItemsRequest(collection="nobody", items=[one])],
            grpc.StatusCode.NOT_FOUND,
            "no collection 'nobody'",
        ),
        ([pb.ImportItemsRequest(collection=collection)], grpc.StatusCode.INVALID_ARGUMENT, "0 items"),
        (
            [pb.ImportItemsRequest(collection=collection, items=[one] * 1025)],
            grpc.StatusCode.INVALID_ARGUMENT,
            "1025 items",
        ),
    ]
    for requests, code, message in cases:
        with pytest.raises(grpc.RpcError, match=message) as caught:
            list(stub.ImportItems(iter(requests)))
        assert caught.value.code() is code

    answers = stub.ImportItems(
        iter(
            [
                pb.ImportItemsRequest(collection=collection, chunk=7, items=[one]),
                pb.ImportItemsRequest(chunk=3, items=[one]),
                pb.ImportItemsRequest(collection="other", chunk=4, items=[one]),
            ]
        )
    )
    assert [next(answers).chunk, next(answers).chunk] == [7, 3]
    with pytest.raises(grpc.RpcError, match="an import is to one collection"):
        next(answers)


def test_import_goes_on_after_a_restart(tmp_path: Path) -> None:
    """An import during which the server is killed and started again ends with every item written."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with (
        LocalServer(MODEL_REPOSITORY, tmp_path, grpc_port=port, allow_http=False) as server,
        Client(server.address) as client,
    ):
        client.create_collection("shop", {"stock": "int64"})
        vectors = np.random.default_rng(1).standard_normal((600, client.get_encoder().dimension))

        def items() -> Iterator[Item]:
            for number, vector in enumerate(vectors):
                if number == 300:
                    server.kill()
                    server.start()
                yield Item(f"i{number}", {"stock": number}, vector=vector)

        imported = client.import_items("shop", items(), chunk_size=16)
        ids = [f"i{number}" for number in range(600)]

        assert (imported.count, imported.failed) == (600, 0)
        assert [item.payload["stock"] for item in client.get_items("shop", ids)] == list(range(600))


def test_stop_of_the_server_ends_an_idle_import(tmp_path: Path) -> None:
    """What was sent is acknowledged, then the stream ends with UNAVAILABLE; the server does not wait for more."""
    more = threading.Event()

    def requests(dimension: int) -> Iterator[pb.ImportItemsRequest]:
        vector = Vector(f32=np.ones(dimension, "<f4").tobytes())
        yield pb.ImportItemsRequest(collection="shop", chunk=1, items=[pb.Item(id="a", vector=vector)])
        more.wait(30)

    with LocalServer(MODEL_REPOSITORY, tmp_path, allow_http=False) as server, Client(server.address) as client:
        client.create_collection("shop")
        dimension = client.get_encoder().dimension
        with grpc.insecure_channel(server.address) as channel:
            answers = item_service_pb2_grpc.ItemServiceStub(channel).ImportItems(requests(dimension))
            first = next(answers)
            status = server.stop()
            with pytest.raises(grpc.RpcError) as caught:
                next(answers)
            more.set()

    assert (first.chunk, first.inserted_count, status) == (1, 1, 0)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


class Call:
    """The context of a stream that is served without a network."""

    def __init__(self) -> None:
        self.written: list[pb.ImportItemsResponse] = []
        self.code: grpc.StatusCode | None = None

    async def write(self, message: pb.ImportItemsResponse) -> None:
        self.written.append(message)

    async def abort_with_status(self, status: Any) -> None:
        self.code = status.code

    def time_remaining(self) -> float | None:
        return None


class Gate:
    """A write that holds the writer until it is opened."""

    size = 0

    def __init__(self) -> None:
        self.reached = threading.Event()
        self.opened = threading.Event()

    def persist(self, store: Store) -> None:
        self.reached.set()
        assert self.opened.wait(30)

    def apply(self) -> None:
        pass

    def publish(self) -> None:
        pass


def hold(collections: Collections) -> Gate:
    gate = Gate()
    collections._engine.writer.submit(gate)
    assert gate.reached.wait(30)
    return gate


class SlowFirst:
    """An encoder that finishes its first call only when it has finished `calls` others."""

    def __init__(self, calls: int) -> None:
        self.lanes: list[Lane] = []
        self._calls = calls
        self._finished = 0
        self._others = asyncio.Event()

    def of_fingerprint(self, name: str, fingerprint: str) -> "SlowFirst":
        return self

    async def embed(self, inputs: Sequence[str | bytes], *, lane: Lane, deadline: float | None) -> Embedded:
        self.lanes.append(lane)
        if len(self.lanes) == 1:
            await asyncio.wait_for(self._others.wait(), 10)
        else:
            self._finished += 1
            if self._finished == self._calls:
                self._others.set()
        return Embedded(np.ones((len(inputs), DIMENSION), np.float32), {}, Times())


@pytest.fixture
async def collections(tmp_path: Path) -> AsyncIterator[Collections]:
    collections = Collections.open(tmp_path, Metrics(), search_threads=1, on_failure=lambda _: None)
    await collections.create(NewCollection("shop", "clip", "f", DIMENSION, ()))
    yield collections
    await asyncio.to_thread(collections.close)


class Sent:
    """Chunks as a stream's requests, and how many of them were read; `size` is the bytes of each."""

    def __init__(self, *chunks: pb.ImportItemsRequest, size: int = 1, more: asyncio.Event | None = None) -> None:
        self.read = 0
        self._chunks = chunks
        self._size = size
        self._more = more

    async def __aiter__(self) -> AsyncIterator[tuple[pb.ImportItemsRequest, int]]:
        for chunk in self._chunks:
            self.read += 1
            yield chunk, self._size
        if self._more:
            await self._more.wait()


def chunk(number: int, source: str = "") -> pb.ImportItemsRequest:
    item = pb.Item(id="same", payload=f'{{"chunk": {number}}}'.encode())
    if source:
        item.text = source
    else:
        item.vector.f32 = np.ones(DIMENSION, "<f4").tobytes()
    return pb.ImportItemsRequest(collection="shop", chunk=number, items=[item])


def imports(collections: Collections, encoders: object = None, max_bytes: int = 1 << 20) -> tuple[Imports, Guard]:
    guard = Guard(Metrics(), max_bytes)
    return Imports(collections, cast(Encoders, encoders), guard), guard


async def settle() -> None:
    for _ in range(50):
        await asyncio.sleep(0)


async def test_chunks_are_embedded_side_by_side_and_written_in_order(collections: Collections) -> None:
    """A chunk that takes long to embed does not hold up the embedding of the next three, but their writes."""
    encoder = SlowFirst(calls=3)
    call = Call()

    await imports(collections, encoder)[0].serve(Sent(*(chunk(n, f"{n}") for n in range(4))), cast(Any, call))

    assert encoder.lanes == [Lane.BULK] * 4
    assert [answer.chunk for answer in call.written] == [0, 1, 2, 3]
    assert [answer.sequence for answer in call.written] == [1, 2, 3, 4]
    found = await collections.get("shop").get_items(["same"])
    assert found.items[0].payload == b'{"chunk": 3}'


async def test_no_more_is_read_than_can_be_worked_on(collections: Collections) -> None:
    """With four chunks in work the stream is not read; each acknowledgement lets one more in."""
    gate = hold(collections)
    sent, call = Sent(*map(chunk, range(10))), Call()
    serving = asyncio.create_task(imports(collections)[0].serve(sent, cast(Any, call)))

    await settle()
    held = sent.read
    gate.opened.set()
    await serving

    assert held == MAX_CHUNKS
    assert [answer.chunk for answer in call.written] == list(range(10))
    assert call.code is None


async def test_chunks_count_as_bytes_in_flight(collections: Collections) -> None:
    """A chunk that does not fit beside those in work ends the stream with RESOURCE_EXHAUSTED; then its bytes are free again."""
    gate = hold(collections)
    call = Call()
    served, guard = imports(collections, max_bytes=100)
    serving = asyncio.create_task(served.serve(Sent(*map(chunk, range(3)), size=40), cast(Any, call)))

    await settle()
    gate.opened.set()
    await serving

    assert [answer.chunk for answer in call.written] == [0, 1]
    assert call.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert guard._inflight_bytes == 0


async def test_cancelled_import_leaves_nothing_behind(collections: Collections) -> None:
    """When the client goes away what waits is given up, no task and no bytes remain, and the collection can be written."""
    gate = hold(collections)
    served, guard = imports(collections)
    tasks = asyncio.all_tasks()
    serving = asyncio.create_task(served.serve(Sent(*map(chunk, range(10))), cast(Any, Call())))
    await settle()

    serving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await serving

    assert asyncio.all_tasks() == tasks
    assert guard._inflight_bytes == 0
    gate.opened.set()
    call = Call()
    await served.serve(Sent(chunk(1)), cast(Any, call))
    assert call.written[0].inserted_count == 1


async def test_stopped_imports_acknowledge_what_they_have(collections: Collections) -> None:
    """A stop ends streams when their chunks are acknowledged, and refuses those that come later."""
    served, _ = imports(collections)
    call, late = Call(), Call()
    serving = asyncio.create_task(served.serve(Sent(chunk(1), chunk(2), more=asyncio.Event()), cast(Any, call)))
    await settle()

    served.stop()
    await serving
    await served.serve(Sent(chunk(3)), cast(Any, late))

    assert [answer.chunk for answer in call.written] == [1, 2]
    assert (call.code, late.code, late.written) == (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.UNAVAILABLE, [])
