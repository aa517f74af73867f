"""The writer commits what waits as one, answers everybody, and says so when it can no longer write."""

import asyncio
import threading
from concurrent.futures import Future
from pathlib import Path

import apsw
import numpy as np
import pytest

from lookwire_server.errors import AlreadyExists, NotFound, QueueFull, Unavailable
from lookwire_server.metrics import Metrics
from lookwire_server.search import writer as writer_module
from lookwire_server.search.collection import Collection
from lookwire_server.search.collections import Collections
from lookwire_server.search.index.live import VectorIndex
from lookwire_server.search.item_writes import Written
from lookwire_server.search.items import NewItem
from lookwire_server.search.store.store import Store
from lookwire_server.search.writer import Writer

from .conftest import DIMENSION, SHOES, Open

ONE = np.ones((1, DIMENSION))


class Gate:
    """A write that holds the writer until it is opened, so that what comes after it waits in the queue."""

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


def held(collections: Collections) -> tuple[Gate, "Future[None]"]:
    gate = Gate()
    future = collections._engine.writer.submit(gate)
    assert gate.reached.wait(30)
    return gate, future


async def upserts(collection: Collection, *ids: str) -> list[asyncio.Task[Written]]:
    """Starts one upsert for each id, and returns when all wait in the queue."""
    tasks = [asyncio.ensure_future(collection.upsert([NewItem(id, b"")], ONE)) for id in ids]
    await asyncio.sleep(0)
    return tasks


async def test_waiting_writes_share_a_commit(collections: Collections, collection: Collection) -> None:
    """Writes that wait together are committed together, each with a sequence number of its own."""
    gate, _ = held(collections)
    tasks = await upserts(collection, "a", "b", "c")

    gate.opened.set()
    written = await asyncio.gather(*tasks)

    sample = collections._engine.metrics.registry.get_sample_value
    # The first bucket holds the collection's creation and the gate; the three upserts were one commit.
    assert sample("lookwire_commit_writes_bucket", {"le": "1.0"}) == 2
    assert sample("lookwire_commit_writes_bucket", {"le": "4.0"}) == 3
    assert sample("lookwire_commit_writes_sum") == 5
    assert [one.sequence for one in written] == [1, 2, 3]


async def test_failed_write_undoes_only_itself(collections: Collections, collection: Collection) -> None:
    """A write that is refused inside a commit takes none of its neighbours along, and leaves nothing behind."""

    class Broken(Gate):
        def persist(self, store: Store) -> None:
            half = collection.check([NewItem("half", b"{}")])
            store.put_items(collection.row, 99, half, np.ones((1, DIMENSION), np.float32))
            raise ZeroDivisionError

    gate, _ = held(collections)
    first = await upserts(collection, "a")
    taken = asyncio.ensure_future(collections.create(SHOES))
    await asyncio.sleep(0)
    broken = collections._engine.writer.submit(Broken())
    last = await upserts(collection, "b")

    gate.opened.set()
    middle = await asyncio.gather(taken, asyncio.wrap_future(broken), return_exceptions=True)
    await asyncio.gather(*first, *last)

    assert [type(result) for result in middle] == [AlreadyExists, ZeroDivisionError]
    assert collection.sequence == 2
    assert (await collection.get_items(["a", "half", "b"])).missing == ["half"]


async def test_write_behind_a_deletion_is_not_found(collections: Collections, collection: Collection) -> None:
    """An upsert that was queued behind the deletion of its collection writes nothing."""
    gate, _ = held(collections)
    before = await upserts(collection, "a")
    deleted = asyncio.ensure_future(collections.delete("shoes"))
    await asyncio.sleep(0)
    after = await upserts(collection, "b")

    gate.opened.set()
    results = await asyncio.gather(*before, deleted, *after, return_exceptions=True)

    assert isinstance(results[2], NotFound)
    assert collections.list() == []
    gauge = collections._engine.metrics.registry.get_sample_value
    assert gauge("lookwire_collection_items", {"collection": "shoes"}) is None


async def test_full_queue_refuses(
    collections: Collections, collection: Collection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A queue at its limit of writes or bytes refuses the next write at once, and takes writes again when it is empty."""
    gate, _ = held(collections)
    monkeypatch.setattr(writer_module, "MAX_QUEUED_WRITES", 2)
    tasks = await upserts(collection, "a", "b")
    with pytest.raises(QueueFull, match="2 writes"):
        await collection.delete_items(["a"])
    monkeypatch.setattr(writer_module, "MAX_QUEUED_WRITES", 4)
    monkeypatch.setattr(writer_module, "MAX_QUEUED_BYTES", 40)
    with pytest.raises(QueueFull, match="36 bytes"):
        await collection.upsert([NewItem("c", b"")], ONE)

    gate.opened.set()
    await asyncio.gather(*tasks)
    monkeypatch.setattr(writer_module, "MAX_QUEUED_BYTES", 1)
    await collection.upsert([NewItem("larger than the limit, but alone", b"")], ONE)

    assert collection.item_count == 3


async def test_cancelled_caller_breaks_nothing(collections: Collections, collection: Collection) -> None:
    """Callers that give up, before or while their write is carried out, leave the others as they are."""
    gate, gate_future = held(collections)
    asyncio.wrap_future(gate_future).cancel()
    queued, kept = await upserts(collection, "a", "b")
    queued.cancel()
    settled = asyncio.wrap_future(collections._engine.writer.settled())
    settled.cancel()
    await asyncio.sleep(0)

    gate.opened.set()
    await kept
    await collection.upsert([NewItem("c", b"")], ONE)

    assert (await collection.get_items(["a", "b", "c"])).missing == ["a"]


async def test_nothing_is_visible_before_it_is_on_disk(
    collections: Collections, collection: Collection, tmp_path: Path
) -> None:
    """While a commit has not happened neither a search nor a read shows any of it."""

    class Peek(Gate):
        def apply(self) -> None:
            reader = apsw.Connection(str(tmp_path / "lookwire.db"))
            self.on_disk = reader.execute("SELECT count(*) FROM items").fetchall()[0][0]
            self.visible = collection.item_count
            reader.close()

    gate, _ = held(collections)
    peek = Peek()
    peek.opened.set()
    tasks = await upserts(collection, "a")
    peeked = asyncio.wrap_future(collections._engine.writer.submit(peek))
    before = (collection.item_count, len((await collection.list_items()).items))

    gate.opened.set()
    await asyncio.gather(*tasks, peeked)

    assert before == (0, 0)
    assert (peek.on_disk, peek.visible) == (1, 0)
    assert collection.item_count == 1


async def test_death_of_the_writer_is_answered_and_reported(
    collections: Collections,
    collection: Collection,
    failures: list[BaseException],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """If memory cannot follow the disk all that wait are told UNAVAILABLE, the owner hears of it once, reads go on."""
    await collection.upsert([NewItem("old", b"")], ONE)
    gate, _ = held(collections)
    tasks = await upserts(collection, "a", "b")
    error = MemoryError("no room to grow")

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(VectorIndex, "upsert", fail)
    gate.opened.set()
    results = await asyncio.gather(*tasks, return_exceptions=True)

    assert [type(result) for result in results] == [Unavailable, Unavailable]
    with pytest.raises(Unavailable):
        await collection.upsert([NewItem("c", b"")], ONE)
    with pytest.raises(Unavailable):
        await asyncio.wrap_future(collections._engine.writer.settled())
    assert (await collection.search(ONE[0])).ids == ["old"]
    collections.close()
    assert failures == [error]


async def test_restart_after_the_writers_death_has_what_was_committed(
    open_collections: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What reached the disk before the writer died is there after a restart."""
    collections = open_collections()
    collection = await collections.create(SHOES)
    with monkeypatch.context() as patch:
        patch.setattr(VectorIndex, "publish", lambda _: 1 / 0)
        with pytest.raises(Unavailable):
            await collection.upsert([NewItem("a", b"")], ONE)
    collections.close()

    again = open_collections().get("shoes")

    assert (again.item_count, again.sequence) == (1, 1)


def test_close_drains_the_queue(tmp_path: Path) -> None:
    """Writes that were accepted before the close are on disk after it; later ones are refused."""

    class Add(Gate):
        def persist(self, store: Store) -> None:
            super().persist(store)
            store.collections.add(SHOES)

    store = Store(tmp_path)
    writer = Writer(store, Metrics(), lambda _: None)
    gate, add = Gate(), Add()
    add.opened.set()
    held_future = writer.submit(gate)
    assert gate.reached.wait(30)
    future = writer.submit(add)
    closing = threading.Thread(target=writer.close)
    closing.start()

    gate.opened.set()
    closing.join(30)

    assert held_future.done()
    assert future.done()
    assert future.exception() is None
    with pytest.raises(Unavailable, match="stopping"):
        writer.submit(Gate())
    assert [row.described for row in store.collections.all()] == [SHOES]
    store.close()
