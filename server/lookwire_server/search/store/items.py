"""The table of items."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lookwire_server.search.items import NewItem, StoredItem
from lookwire_server.search.store.database import Database
from lookwire_server.search.vectors import Matrix


@dataclass(frozen=True, slots=True)
class ItemRow:
    """An item as it is kept, with its vector as little-endian float32."""

    key: int
    id: str
    payload: bytes
    vector: bytes


class ItemTable:
    """Rows by key, which names one version of an item: a changed item is a new row."""

    def __init__(self, database: Database) -> None:
        self._database = database

    # By the writer.

    def add(self, number: int, sequence: int, items: Sequence[NewItem], vectors: Matrix) -> list[int]:
        """Adds items whose ids the collection lacks; returns their keys, which rise."""
        little_endian = vectors.astype("<f4", copy=False)
        rows = (
            (number, sequence, item.id, item.payload, vector.tobytes())
            for item, vector in zip(items, little_endian, strict=True)
        )
        keys = self._database.connection.executemany(
            "INSERT INTO items (collection, sequence, id, payload, vector) VALUES (?, ?, ?, ?, ?) RETURNING key", rows
        )
        return [key for (key,) in keys]

    def remove(self, number: int, ids: Sequence[str]) -> list[int]:
        """Returns the keys of those that there were."""
        removed = self._database.connection.executemany(
            "DELETE FROM items WHERE collection = ? AND id = ? RETURNING key", ((number, id) for id in ids)
        )
        return [key for (key,) in removed]

    def remove_keys(self, keys: Sequence[int]) -> list[int]:
        """Returns the keys of those that there were."""
        removed = self._database.connection.executemany(
            "DELETE FROM items WHERE key = ? RETURNING key", ((key,) for key in keys)
        )
        return [key for (key,) in removed]

    def remove_all(self, number: int) -> None:
        self._database.connection.execute("DELETE FROM items WHERE collection = ?", (number,))

    def current(self, number: int, ids: Sequence[str]) -> dict[str, tuple[int, int]]:
        """Returns key and sequence of the items that exist, as the writer sees them."""
        rows = self._database.connection.executemany(
            "SELECT id, key, sequence FROM items WHERE collection = ? AND id = ?", ((number, id) for id in ids)
        )
        return {id: (key, sequence) for id, key, sequence in rows}

    def versions(self, number: int, ids: Sequence[str]) -> dict[str, tuple[StoredItem, bytes]]:
        """Returns the items that exist and their vectors, as the writer sees them."""
        rows = self._database.connection.executemany(
            "SELECT id, payload, sequence, vector FROM items WHERE collection = ? AND id = ?",
            ((number, id) for id in ids),
        )
        return {id: (StoredItem(id, payload, sequence), vector) for id, payload, sequence, vector in rows}

    # By reader threads.

    def by_key(self, keys: Sequence[int]) -> dict[int, tuple[StoredItem, bytes]]:
        """Returns the rows that still exist, with their vectors."""
        rows = self._database.reader().execute(
            "SELECT key, id, payload, sequence, vector FROM items WHERE key IN (SELECT value FROM json_each(?))",
            (json.dumps(keys),),
        )
        return {key: (StoredItem(id, payload, sequence), vector) for key, id, payload, sequence, vector in rows}

    def by_id(self, number: int, ids: Sequence[str]) -> dict[str, tuple[StoredItem, bytes]]:
        """Returns the items that exist and their vectors, all as of one moment."""
        reader = self._database.reader()
        with reader:
            rows: list[Any] = reader.executemany(
                "SELECT id, payload, sequence, vector FROM items WHERE collection = ? AND id = ?",
                ((number, id) for id in ids),
            ).fetchall()
        return {id: (StoredItem(id, payload, sequence), vector) for id, payload, sequence, vector in rows}

    def after(self, number: int, id: str, limit: int) -> list[StoredItem]:
        """Returns the next items in the order of the UTF-8 bytes of their ids; those from the first after ''."""
        rows = self._database.reader().execute(
            "SELECT id, payload, sequence FROM items WHERE collection = ? AND id > ? ORDER BY id LIMIT ?",
            (number, id, limit),
        )
        return [StoredItem(*row) for row in rows]

    def keys(self, number: int) -> np.ndarray[Any, np.dtype[np.int64]]:
        """Returns the keys of all items of a collection, rising; read from the index alone, without the rows."""
        rows = self._database.reader().execute(
            "SELECT key FROM items INDEXED BY sqlite_autoindex_items_1 WHERE collection = ?", (number,)
        )
        keys = np.fromiter((key for (key,) in rows), np.int64)
        keys.sort()
        return keys

    def rows(self, keys: Sequence[int]) -> list[ItemRow]:
        """Returns the rows that exist, by rising key, in the reader's transaction if it has one."""
        rows = self._database.reader().execute(
            "SELECT key, id, payload, vector FROM items WHERE key IN (SELECT value FROM json_each(?)) ORDER BY key",
            (json.dumps(keys),),
        )
        return [ItemRow(*row) for row in rows]

    def payloads(self, keys: Sequence[int]) -> dict[int, tuple[str, bytes]]:
        """Returns id and payload of the items that exist, in the reader's transaction if it has one."""
        rows = self._database.reader().execute(
            "SELECT key, id, payload FROM items WHERE key IN (SELECT value FROM json_each(?))", (json.dumps(keys),)
        )
        return {key: (id, payload) for key, id, payload in rows}
