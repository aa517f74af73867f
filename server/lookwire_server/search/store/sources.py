"""The texts and images that items were embedded from, where their collection keeps them."""

from collections.abc import Mapping, Sequence
from typing import Any

from lookwire_server.search.store.database import Database


class SourceTable:
    """Sources by the key of their item."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, sources: Mapping[int, str | bytes]) -> None:
        rows = (
            (key, isinstance(source, str), source.encode() if isinstance(source, str) else source)
            for key, source in sources.items()
        )
        self._database.connection.executemany("INSERT INTO sources (key, is_text, content) VALUES (?, ?, ?)", rows)

    def remove(self, keys: Sequence[int]) -> None:
        self._database.connection.executemany("DELETE FROM sources WHERE key = ?", ((key,) for key in keys))

    def move(self, keys: Sequence[int], to: Sequence[int]) -> None:
        """Gives the sources of `keys`, where there are any, to the items that took their places."""
        self._database.connection.executemany("UPDATE sources SET key = ? WHERE key = ?", zip(to, keys, strict=True))

    def remove_all(self, number: int) -> None:
        """Removes those of all items of a collection, which must still be there."""
        self._database.connection.execute(
            "DELETE FROM sources WHERE key IN (SELECT key FROM items WHERE collection = ?)", (number,)
        )

    def by_key(self, keys: Sequence[int]) -> dict[int, str | bytes]:
        """Returns a text as str and an image as bytes; by a reader thread."""
        rows = self._database.reader().executemany(
            "SELECT key, is_text, content FROM sources WHERE key = ?", ((key,) for key in keys)
        )
        return {key: content.decode() if is_text else content for key, is_text, content in rows}

    def first_without(self, number: int) -> str | None:
        """Returns the id of an item of a collection that has no source; None if all have one. By a reader thread."""
        rows: Any = self._database.reader().execute(
            "SELECT id FROM items WHERE collection = ? AND NOT EXISTS (SELECT 1 FROM sources WHERE sources.key = items.key)"
            " LIMIT 1",
            (number,),
        )
        return next((id for (id,) in rows.fetchall()), None)
