"""The table of collections, and that of their aliases."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any

from lookwire_server.errors import NotFound
from lookwire_server.search.fields import Field, FieldType
from lookwire_server.search.store.database import Database

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
DEFAULT_TARGET_RECALL = 0.98


class IndexKind(StrEnum):
    AUTOMATIC = "automatic"
    EXACT = "exact"
    IVF = "ivf"
    HNSW = "hnsw"


@dataclass(frozen=True, slots=True)
class IndexSettings:
    """How a collection is to be indexed; the recall is that at 10, in (0, 1]."""

    kind: IndexKind = IndexKind.AUTOMATIC
    target_recall: float = DEFAULT_TARGET_RECALL


@dataclass(frozen=True, slots=True)
class NewCollection:
    """What a collection is made with."""

    name: str
    encoder: str
    fingerprint: str
    dimension: int
    fields: tuple[Field, ...]
    index: IndexSettings = IndexSettings()
    keeps_sources: bool = False


@dataclass(frozen=True, slots=True)
class CollectionRow(NewCollection):
    """A collection as it is kept. `number` is never given twice; a name may be. `sequence` is that of the start."""

    number: int = 0
    created: datetime = EPOCH
    sequence: int = 0

    @property
    def described(self) -> NewCollection:
        return NewCollection(
            self.name, self.encoder, self.fingerprint, self.dimension, self.fields, self.index, self.keeps_sources
        )


class CollectionTable:
    """Rows by number; only the writer changes them."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, new: NewCollection, *, sequence: int = 0) -> CollectionRow | None:
        """Returns the new collection; None if the name is taken, be it by an alias."""
        connection = self._database.connection
        if connection.execute("SELECT 1 FROM aliases WHERE alias = ?", (new.name,)).fetchall():
            return None
        created = datetime.now(UTC)
        numbers: list[Any] = connection.execute(
            "INSERT INTO collections (name, encoder, fingerprint, dimension, fields, created_microseconds, sequence,"
            " index_kind, target_recall, keeps_sources)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (name) DO NOTHING RETURNING number",
            (
                new.name,
                new.encoder,
                new.fingerprint,
                new.dimension,
                _written(new.fields),
                (created - EPOCH) // timedelta(microseconds=1),
                sequence,
                new.index.kind,
                new.index.target_recall,
                new.keeps_sources,
            ),
        ).fetchall()
        if not numbers:
            return None
        return CollectionRow(
            new.name,
            new.encoder,
            new.fingerprint,
            new.dimension,
            new.fields,
            new.index,
            new.keeps_sources,
            numbers[0][0],
            created,
            sequence,
        )

    def remove(self, number: int) -> bool:
        """Removes the collection with its aliases; returns whether there was one."""
        connection = self._database.connection
        connection.execute("DELETE FROM aliases WHERE collection = ?", (number,))
        return bool(connection.execute("DELETE FROM collections WHERE number = ? RETURNING 1", (number,)).fetchall())

    def update(self, row: CollectionRow) -> None:
        """Writes the fields and the index settings of a row; raises NotFound if the collection is gone."""
        self._found(
            "UPDATE collections SET fields = ?, index_kind = ?, target_recall = ? WHERE number = ? RETURNING 1",
            (_written(row.fields), row.index.kind, row.index.target_recall, row.number),
        )

    def next_sequence(self, number: int) -> int:
        """Counts one more write to a collection; raises NotFound if it is gone."""
        sequence: int = self._found(
            "UPDATE collections SET sequence = sequence + 1 WHERE number = ? RETURNING sequence", (number,)
        )
        return sequence

    def set_alias(self, alias: str, number: int) -> bool:
        """Returns whether it could: False for the name of a collection. Raises NotFound if the collection is gone."""
        self._found("SELECT 1 FROM collections WHERE number = ?", (number,))
        rows = self._database.connection.execute(
            "INSERT INTO aliases (alias, collection)"
            " SELECT ?1, ?2 WHERE NOT EXISTS (SELECT 1 FROM collections WHERE name = ?1)"
            " ON CONFLICT (alias) DO UPDATE SET collection = excluded.collection RETURNING 1",
            (alias, number),
        )
        return bool(rows.fetchall())

    def remove_alias(self, alias: str) -> bool:
        """Returns whether there was one."""
        rows = self._database.connection.execute("DELETE FROM aliases WHERE alias = ? RETURNING 1", (alias,))
        return bool(rows.fetchall())

    def all(self) -> list[CollectionRow]:
        """Reads all collections; at the start, before there is a writer, or in a process that only reads."""
        return self._rows(restored=False)

    def unfinished(self) -> list[CollectionRow]:
        """Reads the collections that are being made of a snapshot, which are none of `all`; by the writer."""
        return self._rows(restored=True)

    def _rows(self, *, restored: bool) -> list[CollectionRow]:
        rows = self._database.connection.execute(
            "SELECT number, name, encoder, fingerprint, dimension, fields, created_microseconds, sequence, index_kind,"
            " target_recall, keeps_sources FROM collections WHERE (number IN (SELECT collection FROM restores)) = ?",
            (restored,),
        )
        return [
            CollectionRow(
                name,
                encoder,
                fingerprint,
                dimension,
                tuple(Field(field, FieldType(type)) for field, type in json.loads(fields)),
                IndexSettings(IndexKind(kind), recall),
                bool(keeps),
                number,
                EPOCH + timedelta(microseconds=created),
                sequence,
            )
            for number, name, encoder, fingerprint, dimension, fields, created, sequence, kind, recall, keeps in rows
        ]

    def sequence(self, number: int) -> int:
        """Returns the number of the last write; by a reader thread. Raises NotFound if the collection is gone."""
        rows: list[Any] = (
            self._database.reader().execute("SELECT sequence FROM collections WHERE number = ?", (number,)).fetchall()
        )
        if not rows:
            raise NotFound("the collection was deleted")
        sequence: int = rows[0][0]
        return sequence

    def aliases(self) -> dict[str, int]:
        """Reads the number of each alias's collection; at the start."""
        rows: list[Any] = self._database.connection.execute("SELECT alias, collection FROM aliases").fetchall()
        return dict(rows)

    def _found(self, statement: str, bindings: tuple[Any, ...]) -> Any:
        rows: list[Any] = self._database.connection.execute(statement, bindings).fetchall()
        if not rows:
            raise NotFound("the collection was deleted")
        return rows[0][0]


def _written(fields: Sequence[Field]) -> str:
    return json.dumps([[field.name, field.type] for field in fields])
