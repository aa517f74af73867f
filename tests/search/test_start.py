"""What a start finds in a data directory."""

from pathlib import Path

import apsw
import numpy as np
import pytest
from structlog.testing import capture_logs

from lookwire_server.errors import FailedPrecondition, InvalidArgument
from lookwire_server.metrics import Metrics
from lookwire_server.search.collection import Collection
from lookwire_server.search.collections import Collections
from lookwire_server.search.filters import Equals
from lookwire_server.search.index import load
from lookwire_server.search.items import NewItem, PayloadUpdate
from lookwire_server.search.search_options import SearchOptions
from lookwire_server.search.store import schema
from lookwire_server.search.store.collections import NewCollection
from lookwire_server.search.store.store import Store

from .conftest import DIMENSION, SHOES, Open


def test_second_process_is_kept_out(open_collections: Open, tmp_path: Path) -> None:
    """A directory that is in use is refused by name, and free again after the first has closed."""
    first = open_collections()

    with pytest.raises(FailedPrecondition, match=f"{tmp_path} is in use"):
        open_collections()
    first.close()

    assert open_collections().list() == []


def test_newer_schema_is_refused(open_collections: Open, tmp_path: Path) -> None:
    """A directory that a newer server has written is left alone."""
    open_collections().close()
    connection = apsw.Connection(str(tmp_path / "lookwire.db"))
    connection.pragma("user_version", 3)
    connection.close()

    for _ in range(2):  # the second time shows that the first let go of the lock
        with pytest.raises(FailedPrecondition, match="has schema version 3; this server knows 2"):
            open_collections()


async def test_vectors_of_the_wrong_length_are_noticed(open_collections: Open, tmp_path: Path) -> None:
    """A database whose vectors do not fit their collection is refused rather than served."""
    collections = open_collections()
    collection = await collections.create(SHOES)
    await collection.upsert([NewItem("a", b"")], np.ones((1, DIMENSION)))
    collections.close()
    connection = apsw.Connection(str(tmp_path / "lookwire.db"))
    connection.execute("UPDATE items SET vector = x'00000000'")
    connection.close()

    for _ in range(2):
        with pytest.raises(FailedPrecondition, match="collection 'shoes' has vectors of another length"):
            open_collections()


async def test_everything_is_there_after_a_restart(open_collections: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    """Several collections come back with their descriptions, items, vectors, fields and sequences."""
    monkeypatch.setattr(load, "LOADED_ROWS", 3)
    collections = open_collections()
    shoes = await collections.create(SHOES)
    hats = await collections.create(NewCollection("hats", "siglip", "f2", 2, ()))
    await collections.create(NewCollection("empty", "clip", "f1", 7, ()))
    for number in range(5):
        await shoes.upsert([NewItem(f"s{number}", b'{"stock": %d}' % number)], np.eye(4)[[number % 4]])
        await hats.upsert([NewItem(f"h{number}", b"{}")], np.array([[1.0, number]]))
    await hats.delete_items(["h0"])
    described = [(one.row.described, one.row.number, one.row.created) for one in collections.list()]
    collections.close()

    reopened = open_collections()

    again: list[Collection] = reopened.list()
    assert [(one.row.described, one.row.number, one.row.created) for one in again] == described
    assert [(one.item_count, one.sequence) for one in again] == [(0, 0), (4, 6), (5, 5)]
    shoes, hats = reopened.get("shoes"), reopened.get("hats")
    assert (await shoes.search(np.eye(4)[3], SearchOptions(filter=Equals("stock", 3)))).ids == ["s3"]
    assert (await hats.search(np.array([1, 4]), SearchOptions(top_k=1))).ids == ["h4"]


async def test_payload_of_any_depth_survives_a_restart(open_collections: Open, tmp_path: Path) -> None:
    """The deepest payload comes back, a deeper one is refused, and one of other limits never keeps a server from its start."""
    collections = open_collections()
    shoes = await collections.create(SHOES)
    deepest = b'{"stock": 1, "x": ' + b"[" * 63 + b"]" * 63 + b"}"
    deeper = deepest.replace(b"[]", b"[[]]")
    vectors = np.eye(4)[:3]
    await shoes.upsert([NewItem("deepest", deepest), NewItem("older", b""), NewItem("unread", b"")], vectors)
    for wrong, path in (
        (shoes.upsert([NewItem("no", deeper)], vectors[:1]), "items[0].payload"),
        (shoes.update_payloads([PayloadUpdate("older", deeper)]), "updates[0].replacement"),
    ):
        with pytest.raises(InvalidArgument, match="in more than 64 levels") as refused:
            await wrong
        assert refused.value.field == path
    collections.close()
    connection = apsw.Connection(str(tmp_path / "lookwire.db"))
    for id, levels in (("older", 500), ("unread", 30_000)):
        payload = b'{"stock": 1, "x": ' + b"[" * levels + b"]" * levels + b"}"
        connection.execute("UPDATE items SET payload = ? WHERE id = ?", (payload, id))
    connection.close()

    with capture_logs() as said:
        reopened = open_collections().get("shoes")

    assert reopened.item_count == 3
    assert (await reopened.get_items(["deepest"])).items[0].payload == deepest
    assert [item.id for item in (await reopened.list_items(Equals("stock", 1))).items] == ["deepest", "older"]
    assert [(line["items"], line["reason"]) for line in said] == [("'unread'", "the payload is nested too deeply")]


def test_closing_leaves_one_file(open_collections: Open, tmp_path: Path) -> None:
    """A closed directory has its whole log in the database file, so that copying the file is a backup."""
    open_collections().close()

    assert sorted(path.name for path in tmp_path.iterdir()) == ["lock", "lookwire.db"]


async def test_gauge_follows_the_items(tmp_path: Path) -> None:
    """The item gauge is right after a start and after writes, and its label goes with the collection."""
    metrics = Metrics()

    def items() -> float | None:
        return metrics.registry.get_sample_value("lookwire_collection_items", {"collection": "shoes"})

    collections = Collections.open(tmp_path, metrics, search_threads=1, on_failure=print)
    shoes = await collections.create(SHOES)
    made = items()
    await shoes.upsert([NewItem("a", b""), NewItem("b", b"")], np.ones((2, DIMENSION)))
    await shoes.delete_items(["a"])
    written = items()
    collections.close()
    metrics = Metrics()
    collections = Collections.open(tmp_path, metrics, search_threads=1, on_failure=print)
    reopened = items()
    await collections.delete("shoes")
    collections.close()

    assert (made, written, reopened, items()) == (0, 1, 1, None)


def test_start_that_was_cut_short_begins_again(open_collections: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    """A first start that fails half-way through the schema leaves a directory in which the next one succeeds."""
    with monkeypatch.context() as patch:
        patch.setattr(schema, "STEPS", (schema.FIRST, schema.SECOND + "CREATE TABLE"))
        with pytest.raises(apsw.SQLError):
            open_collections()

    assert open_collections().list() == []


def test_commits_reach_the_disk(tmp_path: Path) -> None:
    """The writer's connection syncs the log at every commit; 2 is SQLite's number for FULL."""
    store = Store(tmp_path)

    assert store.database.connection.pragma("journal_mode") == "wal"
    assert store.database.connection.pragma("synchronous") == 2
    store.close()
