"""The file of a snapshot: one collection as of one moment, in a SQLite database of its own.

After the last page comes a mark and the SHA-256 of all bytes before it, so that a flipped bit anywhere, be it in a part of a
page that SQLite never looks at, and a file cut short are found before SQLite reads it. SQLite takes the size of a database from
its header, so it does not see what follows.
"""

import hashlib
import json
import os
import stat
import threading
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, BinaryIO

import apsw

from lookwire_server.errors import FailedPrecondition, NotFound
from lookwire_server.search.fields import Field, FieldType, shown
from lookwire_server.search.items import MAX_ITEMS
from lookwire_server.search.store.collections import EPOCH, IndexKind, IndexSettings, NewCollection
from lookwire_server.search.store.database import BUSY_MILLISECONDS, DATABASE, PAGE_BYTES

SUFFIX = ".snapshot"
FORMAT = 1
# "LwSn", by which the program `file` and we know what a SQLite database is for.
APPLICATION = 0x4C77536E
# Where SQLite's header has what we look at (https://sqlite.org/fileformat.html, section 1.3).
HEADER_BYTES = 100
SQLITE = b"SQLite format 3\0"
VERSION, APPLICATION_ID = slice(60, 64), slice(68, 72)
MARK = b"lookwire digest\n"
TRAILER_BYTES = len(MARK) + hashlib.sha256().digest_size
READ_BYTES = 1 << 24
# A chunk of items is brought back by one write, which others wait for.
CHUNK_BYTES = 1 << 20
# SQLite asks so often, counted in instructions of its virtual machine, whether to go on: about every millisecond.
INSTRUCTIONS = 10_000

SCHEMA = """
CREATE TABLE manifest (
    collection TEXT NOT NULL,
    encoder TEXT NOT NULL,
    fingerprint TEXT NOT NULL,
    dimension INTEGER NOT NULL,
    fields TEXT NOT NULL,
    index_kind TEXT NOT NULL,
    target_recall REAL NOT NULL,
    keeps_sources INTEGER NOT NULL,
    sequence INTEGER NOT NULL,
    created_microseconds INTEGER NOT NULL,
    item_count INTEGER NOT NULL,
    digest BLOB NOT NULL
) STRICT;
CREATE TABLE items (
    key INTEGER PRIMARY KEY,
    sequence INTEGER NOT NULL,
    id TEXT NOT NULL,
    payload BLOB NOT NULL,
    vector BLOB NOT NULL
) STRICT;
CREATE TABLE sources (
    key INTEGER PRIMARY KEY,
    is_text INTEGER NOT NULL,
    content BLOB NOT NULL
) STRICT;
"""
# The keys are collected first, from an index, because rows are read fastest as they lie on disk.
COPY = """
INSERT INTO items SELECT key, sequence, id, payload, vector FROM store.items
    WHERE key IN (SELECT key FROM store.items WHERE collection = :number) ORDER BY key;
INSERT INTO sources SELECT key, is_text, content FROM store.sources
    WHERE key IN (SELECT key FROM main.items) ORDER BY key;
"""
DESCRIBE = """
SELECT name, encoder, fingerprint, dimension, fields, index_kind, target_recall, keeps_sources, sequence, :created,
    (SELECT count(*) FROM main.items) FROM store.collections WHERE number = :number
"""


class GivenUp(Exception):
    """Nobody waits for the work any more."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a snapshot holds; `sequence` is the number of the last write that is part of it, `size` that of the file in bytes."""

    collection: NewCollection
    item_count: int
    sequence: int
    created: datetime
    size: int


@dataclass(frozen=True, slots=True)
class CopiedItem:
    """An item as the snapshot has it, with its vector as little-endian float32."""

    sequence: int
    id: str
    payload: bytes
    vector: bytes
    source: str | bytes | None

    @property
    def size(self) -> int:
        return len(self.payload) + len(self.vector) + len(self.source or b"")


class SnapshotFile:
    """One file, whose name without the suffix is the snapshot's. What is wrong with it is raised as FailedPrecondition."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = path.name.removesuffix(SUFFIX)

    def write(self, data_dir: Path, number: int, created: datetime, given_up: threading.Event) -> None:
        """Copies the collection with that number from the database of the data directory, as of one moment; then it is on disk.

        Raises NotFound if there is no such collection, GivenUp soon after the event is set.
        """
        try:
            with closing(self._new()) as connection:
                connection.set_progress_handler(given_up.is_set, INSTRUCTIONS)
                connection.execute("ATTACH ? AS store", ((data_dir / DATABASE).absolute().as_uri() + "?mode=ro",))
                bindings = {"number": number, "created": (created - EPOCH) // timedelta(microseconds=1)}
                # One transaction, which sees the store as of its first statement. If it fails the file is thrown away.
                connection.execute("BEGIN")
                connection.execute(COPY, bindings)
                described: Any = connection.execute(DESCRIBE, bindings).fetchone()
                if described is None:
                    raise NotFound("the collection was deleted")
                row = (*described, _digest_of(described))
                connection.execute("INSERT INTO manifest VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", row)
                connection.execute("COMMIT")
        except apsw.InterruptError:
            raise GivenUp from None
        with self.path.open("r+b") as file:
            size = file.seek(0, os.SEEK_END)
            digest = _digest(file, size, given_up)
            file.seek(size)
            file.write(MARK + digest)
            file.flush()
            os.fsync(file.fileno())

    def manifest(self) -> Manifest:
        """Returns what the file says of itself, without reading the rest of it. Raises NotFound if there is no file."""
        with self._readable() as file:
            size = self._check_ends(file)
        with self._database() as connection:
            rows: Any = connection.execute("SELECT * FROM manifest").fetchall()
            *row, digest = rows[0] if rows else (None,)
            if digest != _digest_of(row):
                raise ValueError("the manifest does not have its checksum")
            collection, encoder, fingerprint, dimension, fields, kind, recall, keeps, sequence, created, items = row
            return Manifest(
                NewCollection(
                    collection,
                    encoder,
                    fingerprint,
                    dimension,
                    tuple(Field(field, FieldType(type)) for field, type in json.loads(fields)),
                    IndexSettings(IndexKind(kind), recall),
                    bool(keeps),
                ),
                items,
                sequence,
                EPOCH + timedelta(microseconds=created),
                size,
            )

    def check(self, given_up: threading.Event) -> None:
        """Compares the whole file with its digest. Raises NotFound if there is no file, GivenUp once the event is set."""
        with self._readable() as file:
            size = self._check_ends(file)
            digest = _digest(file, size - TRAILER_BYTES, given_up)
            file.seek(size - TRAILER_BYTES)
            if file.read() != MARK + digest:
                raise self._damaged("its content does not have the checksum at its end")

    def chunks(self) -> Generator[list[CopiedItem], None, None]:
        """Yields the items of a file that was checked, in the order in which they were written, by up to MAX_ITEMS."""
        with self._database() as connection:
            chunk: list[CopiedItem] = []
            size = 0
            for sequence, id, payload, vector, is_text, content in connection.execute(
                "SELECT sequence, id, payload, vector, is_text, content FROM items LEFT JOIN sources USING (key)"
                " ORDER BY items.key"
            ):
                source = content.decode() if is_text else content
                chunk.append(CopiedItem(sequence, id, payload, vector, source))
                size += chunk[-1].size
                if size >= CHUNK_BYTES or len(chunk) == MAX_ITEMS:
                    yield chunk
                    chunk, size = [], 0
            if chunk:
                yield chunk

    def _new(self) -> apsw.Connection:
        flags = apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_CREATE | apsw.SQLITE_OPEN_URI
        connection = apsw.Connection(str(self.path), flags=flags)
        connection.set_busy_timeout(BUSY_MILLISECONDS)
        # Only the store's own connection checkpoints the store.
        connection.wal_autocheckpoint(0)
        connection.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
        connection.pragma("page_size", PAGE_BYTES)
        # Nobody sees the file before it is whole, and it is brought to disk at the end.
        connection.pragma("journal_mode", "off")
        connection.pragma("synchronous", "off")
        connection.pragma("application_id", APPLICATION)
        connection.pragma("user_version", FORMAT)
        connection.execute(SCHEMA)
        return connection

    @contextmanager
    def _readable(self) -> Iterator[BinaryIO]:
        try:
            with open(self.path, "rb", opener=_open) as file:
                if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                    raise self._refused("is no regular file; give one that CreateSnapshot made")
                yield file
        except FileNotFoundError:
            raise NotFound(f"no snapshot {shown(self.name)}", field="snapshot", snapshot=self.name) from None
        except OSError as error:
            raise self._refused(f"cannot be read: {error.strerror}") from error

    @contextmanager
    def _database(self) -> Iterator[apsw.Connection]:
        """A connection that takes no lock, reads no journal beside the file, and changes nothing."""
        flags = apsw.SQLITE_OPEN_READONLY | apsw.SQLITE_OPEN_URI
        try:
            with closing(apsw.Connection(self.path.absolute().as_uri() + "?immutable=1", flags=flags)) as connection:
                yield connection
        except (apsw.Error, ValueError, TypeError) as error:
            raise self._damaged(str(error)) from error

    def _check_ends(self, file: BinaryIO) -> int:
        """Returns the size in bytes; raises FailedPrecondition unless header and mark are those of a snapshot of this format."""
        header = file.read(HEADER_BYTES)
        if not header.startswith(SQLITE) or int.from_bytes(header[APPLICATION_ID]) != APPLICATION:
            raise self._refused("is no snapshot; give one that CreateSnapshot made")
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - TRAILER_BYTES))
        if not file.read().startswith(MARK):
            raise self._damaged("its end is missing")
        version = int.from_bytes(header[VERSION])
        if version > FORMAT:
            raise self._refused(
                f"has format {version}, this server knows {FORMAT}: a newer server made it; restore it there, or take "
                "that release here",
                version=version,
                known=FORMAT,
            )
        return size

    def _damaged(self, how: str) -> FailedPrecondition:
        return self._refused(f"is damaged: {how}; copy the file again from where it came from, or restore another one")

    def _refused(self, why: str, **metadata: object) -> FailedPrecondition:
        return FailedPrecondition(
            f"{self.path.name} {why}; nothing was changed", field="snapshot", snapshot=self.name, **metadata
        )


def _open(path: str, flags: int) -> int:
    """Opens a pipe too without waiting for somebody who writes to it."""
    return os.open(path, flags | os.O_NONBLOCK)


def _digest_of(row: Sequence[object]) -> bytes:
    return hashlib.sha256(json.dumps(row).encode()).digest()


def _digest(file: BinaryIO, size: int, given_up: threading.Event) -> bytes:
    """The SHA-256 of the first `size` bytes."""
    hashed = hashlib.sha256()
    file.seek(0)
    while size > 0 and (content := file.read(min(size, READ_BYTES))):
        if given_up.is_set():
            raise GivenUp
        hashed.update(content)
        size -= len(content)
    return hashed.digest()
