"""The words of TEXT fields: a full-text index for each collection that declares such fields.

It is a table of SQLite's FTS5, written in the same transactions as the items. It holds no texts, only where words are; its
columns are the TEXT fields, and one more with a digest of each text, by which equal texts are found.
"""

from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from hashlib import blake2b
from itertools import islice
from typing import cast

import numpy as np
from numpy.typing import NDArray

from lookwire_server.errors import FailedPrecondition
from lookwire_server.search.fields import FieldType, Values, folded, read_stored_payload
from lookwire_server.search.store.collections import CollectionRow
from lookwire_server.search.store.database import Database
from lookwire_server.search.vectors import Vector

# Beyond these, that an item is equal to the words says little about it.
MAX_EQUAL = 10_000
DIGEST_BYTES = 16
# Rows that are brought from SQLite at once, and from the table of items when an index is made again.
FETCHED_ROWS = 1_024

Keys = NDArray[np.int64]
# Tells which of some keys are wanted.
Accepts = Callable[[Keys], NDArray[np.bool_]]


class WordTable:
    """Words by the key of their item."""

    def __init__(self, database: Database) -> None:
        self._database = database

    # By the writer.

    def create(self, row: CollectionRow) -> None:
        """Makes an empty index if the collection declares TEXT fields."""
        names = text_fields(row)
        if names:
            columns = ", ".join([*map(_column, names), "equal"])
            self._database.connection.execute(
                f"CREATE VIRTUAL TABLE {_table(row.number)} USING fts5({columns}, content='', contentless_delete=1,"
                " tokenize='unicode61 remove_diacritics 2')"
            )

    def drop(self, number: int) -> None:
        """Removes the index of a collection, if it has one."""
        self._database.connection.execute(f"DROP TABLE IF EXISTS {_table(number)}")

    def rebuild(self, row: CollectionRow) -> None:
        """Makes the index again, for the fields that `row` declares, from the payloads of the items; they must fit."""
        self.drop(row.number)
        self.create(row)
        if not text_fields(row):
            return
        connection = self._database.connection
        items = connection.execute("SELECT key FROM items WHERE collection = ?", (row.number,))
        # By rising key: FTS5 writes out what it has gathered whenever a key is smaller than the one before.
        keys = sorted(key for (key,) in items)
        for start in range(0, len(keys), FETCHED_ROWS):
            some = keys[start : start + FETCHED_ROWS]
            payloads = connection.executemany("SELECT payload FROM items WHERE key = ?", ((key,) for key in some))
            self.add(row, some, [read_stored_payload(payload, row.fields) for (payload,) in payloads])

    def add(self, row: CollectionRow, keys: Sequence[int], values: Iterable[Values]) -> None:
        """Adds the texts of new items; quickest by rising key."""
        names = text_fields(row)
        if names:
            places = ", ".join("?" * (len(names) + 2))
            columns = ", ".join(["rowid", *map(_column, names), "equal"])
            self._database.connection.executemany(
                f"INSERT INTO {_table(row.number)} ({columns}) VALUES ({places})",  # noqa: S608 - names of ours
                (_words_of(key, names, item) for key, item in zip(keys, values, strict=True)),
            )

    def remove(self, row: CollectionRow, keys: Sequence[int]) -> None:
        """Removes those of items that are gone."""
        if text_fields(row):
            self._database.connection.executemany(
                f"DELETE FROM {_table(row.number)} WHERE rowid = ?",  # noqa: S608 - a name of ours
                ((key,) for key in keys),
            )

    # By reader threads. Both raise FailedPrecondition if the collection no longer has the fields that `row` declares.

    def search(
        self, row: CollectionRow, fields: Sequence[str], words: str, limit: int, accepts: Accepts | None = None
    ) -> tuple[Keys, Vector]:
        """Returns keys [n] and BM25 scores [n], higher is better, of the best `limit` items that have any of the words.

        Only the given TEXT fields are looked at, all of them if none is given. Words are parted by spaces, and case and
        diacritics make no difference; one that the index would part further, such as "t-shirt", is found as a phrase. Items
        that `accepts` refuses are passed over and do not count. The time grows with the number of items that have any of the
        words, whatever the limit: BM25 is computed for each of them.
        """
        columns = [_column(name) for name in fields or text_fields(row)]
        sought = {folded(word): word for word in words.replace("\0", " ").split()}
        if not (columns and sought):
            return np.empty(0, np.int64), np.empty(0, np.float32)
        # In quotes, in which only the quote has a meaning, words are never taken for the syntax of FTS5.
        quoted = " OR ".join('"' + word.replace('"', '""') + '"' for word in sought.values())
        return self._found(row, columns, f"({quoted})", limit, accepts, score="-rank", order="rank")

    def equal(self, row: CollectionRow, words: str, accepts: Accepts | None = None) -> Keys:
        """Returns the keys of items with a TEXT field that is equal to the words, both `folded`.

        At most MAX_EQUAL of those that `accepts` does not refuse; none for words that are empty.
        """
        if not folded(words) or not text_fields(row):
            return np.empty(0, np.int64)
        return self._found(row, ["equal"], f'"{_digest(words)}"', MAX_EQUAL, accepts, score="0.0", order="rowid")[0]

    def _found(
        self,
        row: CollectionRow,
        columns: Sequence[str],
        expression: str,
        limit: int,
        accepts: Accepts | None,
        *,
        score: str,
        order: str,
    ) -> tuple[Keys, Vector]:
        table, reader = _table(row.number), self._database.reader()
        statement = f"SELECT rowid, {score} FROM {table} WHERE {table} MATCH ? ORDER BY {order}"  # noqa: S608 - names of ours
        keys: list[Keys] = []
        scores: list[Vector] = []
        count = 0
        with reader:
            present = {name for (name,) in reader.execute("SELECT name FROM pragma_table_info(?)", (table,))}
            if not present.issuperset(columns):
                raise FailedPrecondition(
                    f"the fields of collection {row.name!r} were changed during the search", collection=row.name
                )
            with closing(reader.execute(statement, (f"{{{' '.join(columns)}}}: {expression}",))) as rows:
                while count < limit and (some := list(islice(rows, FETCHED_ROWS))):
                    part = np.array([key for key, _ in some], np.int64)
                    accepted = np.ones(len(part), np.bool_) if accepts is None else accepts(part)
                    keys.append(part[accepted])
                    scores.append(np.array([score for _, score in some], np.float32)[accepted])
                    count += len(keys[-1])
        return (
            np.concatenate([np.empty(0, np.int64), *keys])[:limit],
            np.concatenate([np.empty(0, np.float32), *scores])[:limit],
        )


def text_fields(row: CollectionRow) -> list[str]:
    """Returns the names of the TEXT fields that a collection declares."""
    return [field.name for field in row.fields if field.type is FieldType.TEXT]


def _table(number: int) -> str:
    return f"words_{number}"


def _column(name: str) -> str:
    """A name for SQL, which knows no case: a field may be called anything."""
    return "f" + name.encode().hex()


def _words_of(key: int, names: Sequence[str], values: Values) -> tuple[int | str | None, ...]:
    texts = [cast(str | None, values.get(name)) for name in names]
    return key, *texts, " ".join(_digest(text) for text in texts if text is not None)


def _digest(text: str) -> str:
    return blake2b(folded(text).encode(), digest_size=DIGEST_BYTES).hexdigest()
