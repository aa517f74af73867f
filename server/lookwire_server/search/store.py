"""Collections and items on disk: one SQLite database, which is the truth."""

import json
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import apsw

from lookwire_server.errors import FailedPrecondition, NotFound
from lookwire_server.search.fields import Field, FieldType
from lookwire_server.search.items import NewItem, StoredItem
from lookwire_server.search.lock import DirectoryLock
from lookwire_server.search.vectors import Matrix

DATABASE = "lookwire.db"
SCHEMA_VERSION = 1
# A key is never given twice, so it names one version of an item: AUTOINCREMENT, and a replaced item is a new row.
SCHEMA = """
CREATE TABLE collections (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    name TEXT NOT NULL UNIQUE,
    encoder TEXT NOT NULL,
    fingerprint TEXT NOT NULL,
    dimension INTEGER NOT NULL,
    fields TEXT NOT NULL,
    created_microseconds INTEGER NOT NULL,
    sequence INTEGER NOT NULL
) STRICT;
CREATE TABLE items (
    key INTEGER PRIMARY KEY AUTOINCREMENT,
    collection INTEGER NOT NULL,
    sequence INTEGER NOT NULL,
    id TEXT NOT NULL,
    payload BLOB NOT NULL,
    vector BLOB NOT NULL,
    UNIQUE (collection, id)
) STRICT;
"""
# Three vectors of 512 dimensions fit such a page, only one fits SQLite's usual 4,096 bytes: a third less disk and log.
PAGE_BYTES = 8_192
# What a directory is refused for at the start, rather than the program being at fault.
UNUSABLE = (
    OSError,
    apsw.BusyError,
    apsw.CantOpenError,
    apsw.CorruptError,
    apsw.FullError,
    apsw.IOError,
    apsw.NotADBError,
    apsw.PermissionsError,
    apsw.ReadOnlyError,
)
# Only a tool from outside can hold the database; it gets this long before an operation fails.
BUSY_MILLISECONDS = 5_000
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class CollectionRow:
    """A collection as it is kept. `number` is never given twice; a name may be."""

    number: int
    name: str
    encoder: str
    fingerprint: str
    dimension: int
    fields: tuple[Field, ...]
    created: datetime
    sequence: int


@dataclass(frozen=True, slots=True)
class ItemRow:
    """An item as it is kept, with its vector as little-endian float32."""

    key: int
    collection: int
    id: str
    payload: bytes
    vector: bytes


class Store:
    """One connection writes and checkpoints, under one thread at a time; every other thread reads by one of its own."""

    def __init__(self, directory: Path) -> None:
        self._path = str(directory / DATABASE)
        self._readers: list[apsw.Connection] = []
        self._thread = threading.local()
        try:
            self._open(directory)
        except UNUSABLE as error:
            raise FailedPrecondition(
                f"the data directory {directory} cannot be used: {error}; mend that, or give another one",
                data_dir=directory,
            ) from error

    def _open(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        with ExitStack() as opened:
            opened.enter_context(closing(DirectoryLock(directory)))
            self._connection = opened.enter_context(closing(apsw.Connection(self._path)))
            self._connection.set_busy_timeout(BUSY_MILLISECONDS)
            self._connection.pragma("page_size", PAGE_BYTES)
            self._connection.pragma("journal_mode", "wal")
            self._connection.pragma("synchronous", "full")
            self._check_schema(directory)
            opened.callback(self._finish)
            self._opened = opened.pop_all()

    def close(self) -> None:
        """Brings the whole log into the database file. No other thread may use the store any more."""
        self._opened.close()

    # By the writer.

    def begin(self) -> None:
        self._connection.execute("BEGIN IMMEDIATE")

    def commit(self) -> None:
        self._connection.execute("COMMIT")

    def roll_back(self) -> None:
        """Undoes the transaction, if SQLite has not done so of its own accord, as it does after some errors."""
        if self._connection.in_transaction:
            self._connection.execute("ROLLBACK")

    @contextmanager
    def savepoint(self) -> Iterator[None]:
        """Undoes what the block wrote if it raises; an error of SQLite itself is left to `roll_back`."""
        self._connection.execute("SAVEPOINT operation")
        try:
            yield
        except apsw.Error:
            raise
        except Exception:
            self._connection.execute("ROLLBACK TO operation")
            self._connection.execute("RELEASE operation")
            raise
        self._connection.execute("RELEASE operation")

    def add_collection(
        self, name: str, encoder: str, fingerprint: str, dimension: int, fields: Sequence[Field]
    ) -> CollectionRow | None:
        """Returns the new collection; None if the name is taken."""
        created = datetime.now(UTC)
        numbers: list[Any] = self._connection.execute(
            "INSERT INTO collections (name, encoder, fingerprint, dimension, fields, created_microseconds, sequence)"
            " VALUES (?, ?, ?, ?, ?, ?, 0) ON CONFLICT (name) DO NOTHING RETURNING number",
            (
                name,
                encoder,
                fingerprint,
                dimension,
                json.dumps([[field.name, field.type] for field in fields]),
                (created - EPOCH) // timedelta(microseconds=1),
            ),
        ).fetchall()
        if not numbers:
            return None
        return CollectionRow(numbers[0][0], name, encoder, fingerprint, dimension, tuple(fields), created, 0)

    def remove_collection(self, number: int) -> bool:
        """Returns whether there was one."""
        self._connection.execute("DELETE FROM items WHERE collection = ?", (number,))
        return bool(
            self._connection.execute("DELETE FROM collections WHERE number = ? RETURNING 1", (number,)).fetchall()
        )

    def next_sequence(self, number: int) -> int:
        """Counts one more write to a collection; raises NotFound if it is gone."""
        sequences: list[Any] = self._connection.execute(
            "UPDATE collections SET sequence = sequence + 1 WHERE number = ? RETURNING sequence", (number,)
        ).fetchall()
        if not sequences:
            raise NotFound("the collection was deleted")
        sequence: int = sequences[0][0]
        return sequence

    def put_items(self, number: int, sequence: int, items: Sequence[NewItem], vectors: Matrix) -> tuple[list[int], int]:
        """Returns the keys of the new rows, and how many rows they replace."""
        replaced = self.remove_items(number, [item.id for item in items])
        little_endian = vectors.astype("<f4", copy=False)
        rows = (
            (number, sequence, item.id, item.payload, vector.tobytes())
            for item, vector in zip(items, little_endian, strict=True)
        )
        keys = self._connection.executemany(
            "INSERT INTO items (collection, sequence, id, payload, vector) VALUES (?, ?, ?, ?, ?) RETURNING key", rows
        )
        return [key for (key,) in keys], replaced

    def remove_items(self, number: int, ids: Sequence[str]) -> int:
        """Returns how many there were."""
        before = self._connection.total_changes()
        self._connection.executemany("DELETE FROM items WHERE collection = ? AND id = ?", ((number, id) for id in ids))
        return self._connection.total_changes() - before

    # At the start, before there is a writer.

    def collections(self) -> list[CollectionRow]:
        rows = self._connection.execute(
            "SELECT number, name, encoder, fingerprint, dimension, fields, created_microseconds, sequence"
            " FROM collections"
        )
        return [
            CollectionRow(
                number,
                name,
                encoder,
                fingerprint,
                dimension,
                tuple(Field(field, FieldType(type)) for field, type in json.loads(fields)),
                EPOCH + timedelta(microseconds=created),
                sequence,
            )
            for number, name, encoder, fingerprint, dimension, fields, created, sequence in rows
        ]

    def items(self) -> Iterator[ItemRow]:
        """Streams all items of all collections, in the order in which they lie on disk."""
        rows = self._connection.execute("SELECT key, collection, id, payload, vector FROM items ORDER BY key")
        return (ItemRow(*row) for row in rows)

    # By reader threads.

    def items_by_key(self, keys: Sequence[int]) -> dict[int, StoredItem]:
        """Returns the rows that still exist."""
        rows = self._reader().execute(
            "SELECT key, id, payload, sequence FROM items WHERE key IN (SELECT value FROM json_each(?))",
            (json.dumps(keys),),
        )
        return {key: StoredItem(id, payload, sequence) for key, id, payload, sequence in rows}

    def items_by_id(self, number: int, ids: Sequence[str]) -> dict[str, tuple[StoredItem, bytes]]:
        """Returns the items that exist and their vectors, all as of one moment."""
        reader = self._reader()
        with reader:
            rows: list[Any] = reader.executemany(
                "SELECT id, payload, sequence, vector FROM items WHERE collection = ? AND id = ?",
                ((number, id) for id in ids),
            ).fetchall()
        return {id: (StoredItem(id, payload, sequence), vector) for id, payload, sequence, vector in rows}

    def items_after(self, number: int, id: str, limit: int) -> list[StoredItem]:
        """Returns the next items in the order of the UTF-8 bytes of their ids; those from the first after ''."""
        rows = self._reader().execute(
            "SELECT id, payload, sequence FROM items WHERE collection = ? AND id > ? ORDER BY id LIMIT ?",
            (number, id, limit),
        )
        return [StoredItem(*row) for row in rows]

    def _reader(self) -> apsw.Connection:
        reader: apsw.Connection | None = getattr(self._thread, "reader", None)
        if reader is None:
            reader = apsw.Connection(self._path, flags=apsw.SQLITE_OPEN_READWRITE)
            reader.set_busy_timeout(BUSY_MILLISECONDS)
            reader.pragma("query_only", True)
            # Two connections that checkpoint are what SQLite's WAL-reset bug needs.
            reader.wal_autocheckpoint(0)
            self._thread.reader = reader
            self._readers.append(reader)
        return reader

    def _finish(self) -> None:
        for reader in self._readers:
            reader.close()
        self.roll_back()
        # If the disk has no room for that, nothing is lost: the log stays, and the next start reads it.
        with suppress(apsw.FullError, apsw.IOError, apsw.BusyError):
            self._connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)

    def _check_schema(self, directory: Path) -> None:
        version: Any = self._connection.pragma("user_version")
        if version > SCHEMA_VERSION:
            raise FailedPrecondition(
                f"the data directory {directory} has schema version {version}; this server knows {SCHEMA_VERSION}",
                data_dir=directory,
                version=version,
                known=SCHEMA_VERSION,
            )
        if version == 0:
            with self._connection:
                self._connection.execute(SCHEMA)
                self._connection.pragma("user_version", SCHEMA_VERSION)
