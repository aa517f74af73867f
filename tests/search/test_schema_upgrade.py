"""A data directory of an earlier release is brought up to date and keeps all that it has."""

import json
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import apsw
import numpy as np
import pytest

from lookwire_server.search.fields import Field, FieldType
from lookwire_server.search.filters import Equals
from lookwire_server.search.items import NewItem
from lookwire_server.search.search_options import SearchOptions
from lookwire_server.search.store.collections import IndexSettings, NewCollection
from lookwire_server.search.store.schema import FIRST

from .conftest import Open

CREATED = datetime(2026, 3, 14, 15, 9, 26, 535897, UTC)
VECTORS = np.eye(3, dtype="<f4")
FIELDS = (Field("stock", FieldType.INT64), Field("place", FieldType.GEO_POINT))
SHOES = NewCollection("shoes", "clip", "f1", 3, FIELDS, IndexSettings(), keeps_sources=False)


def first_release(directory: Path) -> None:
    """Makes the directory of a server whose schema was version 1: two collections, one with items, and a deletion behind it."""
    connection = apsw.Connection(str(directory / "lookwire.db"))
    connection.pragma("journal_mode", "wal")
    connection.execute(FIRST)
    connection.pragma("user_version", 1)
    microseconds = int(CREATED.timestamp()) * 1_000_000 + CREATED.microsecond
    fields = json.dumps([["stock", "int64"], ["place", "geo point"]])
    connection.executemany(
        "INSERT INTO collections (name, encoder, fingerprint, dimension, fields, created_microseconds, sequence)"
        " VALUES (?, ?, ?, ?, ?, ?, ?)",
        [("shoes", "clip", "f1", 3, fields, microseconds, 7), ("empty", "siglip", "f2", 9, "[]", microseconds, 0)],
    )
    connection.executemany(
        "INSERT INTO items (collection, sequence, id, payload, vector) VALUES (1, ?, ?, ?, ?)",
        [
            (number + 1, f"i{number}", b'{"stock": %d}' % number, vector.tobytes())
            for number, vector in enumerate([*VECTORS, VECTORS[0]])
        ],
    )
    # The newest key of all is free again, but must not be given again.
    connection.execute("DELETE FROM items WHERE id = 'i3'")
    connection.close()


async def test_first_release_is_read_on(open_collections: Open, tmp_path: Path) -> None:
    """Collections and items of schema version 1 are all there, with the settings that are usual, and take writes."""
    first_release(tmp_path)

    collections = open_collections()
    shoes, empty = collections.get("shoes"), collections.get("empty")
    found = await shoes.search(VECTORS[1], SearchOptions(top_k=1))
    filtered = await shoes.list_items(Equals("stock", 2))
    stored = await shoes.get_items(["i0", "i1", "i2", "i3"], include_vectors=True)
    written = await shoes.upsert([NewItem("i1", b'{"stock": 5}'), NewItem("new", b"")], VECTORS[:2])
    identity = collections._engine.store.identity
    collections.close()
    again = open_collections()

    assert shoes.row.described == SHOES
    assert empty.row.described == replace(
        SHOES, name="empty", encoder="siglip", fingerprint="f2", dimension=9, fields=()
    )
    assert shoes.row.created == CREATED
    assert (found.ids, found.payloads, found.sequence) == (["i1"], [b'{"stock": 1}'], 7)
    assert [item.id for item in filtered.items] == ["i2"]
    assert [(item.id, item.sequence) for item in stored.items] == [("i0", 1), ("i1", 2), ("i2", 3)]
    np.testing.assert_array_equal(stored.vectors, VECTORS)
    assert stored.missing == ["i3"]
    assert (written.sequence, written.inserted, written.replaced) == (8, 1, 1)
    assert (again.get("shoes").item_count, again.get("shoes").sequence) == (4, 8)
    assert again._engine.store.identity == identity
    assert len(identity) == 32
    keys = again._engine.store.items.keys(shoes.row.number)
    assert keys.tolist() == [1, 3, 5, 6]


def test_each_store_has_an_identity_of_its_own(open_collections: Open, tmp_path: Path) -> None:
    """Two directories that were upgraded from copies of one are told apart from then on."""
    first_release(tmp_path)
    copy = (tmp_path / "lookwire.db").read_bytes()
    first = open_collections()
    identity = first._engine.store.identity
    first.close()
    for path in tmp_path.iterdir():
        path.unlink()

    (tmp_path / "lookwire.db").write_bytes(copy)

    assert open_collections()._engine.store.identity != identity


def test_upgrade_that_was_cut_short_begins_again(open_collections: Open, tmp_path: Path) -> None:
    """An upgrade that fails half-way leaves the earlier release's directory as it was."""
    first_release(tmp_path)
    connection = apsw.Connection(str(tmp_path / "lookwire.db"))
    # In the way of a table of the second version, after others have been made.
    connection.execute("CREATE TABLE requests (number INTEGER)")
    connection.close()
    with pytest.raises(apsw.SQLError, match="requests already exists"):
        open_collections()
    connection = apsw.Connection(str(tmp_path / "lookwire.db"))
    version = connection.pragma("user_version")
    tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")}
    connection.execute("DROP TABLE requests")
    connection.close()

    assert (version, "aliases" in tables) == (1, False)
    assert open_collections().get("shoes").item_count == 3
