"""The table of unfinished copies: which collection is being made from which, and how far."""

from dataclasses import dataclass
from typing import Any

from lookwire_server.search.store.database import Database


@dataclass(frozen=True, slots=True)
class Copy:
    """An unfinished copy of the collection with the number `source`; its items up to `copied_key` were copied."""

    source: int
    copied_key: int = 0


class CopyTable:
    """Copies by the number of the collection that is being made."""

    def __init__(self, database: Database) -> None:
        self._database = database

    # By the writer.

    def begin(self, target: int, source: int) -> None:
        self._database.connection.execute(
            "INSERT OR REPLACE INTO copies (target, source, copied_key) VALUES (?, ?, 0)", (target, source)
        )

    def advance(self, target: int, before: Copy, copied_key: int) -> bool:
        """Returns whether the copy stood where it was thought to; otherwise nothing is changed."""
        rows = self._database.connection.execute(
            "UPDATE copies SET copied_key = ? WHERE target = ? AND source = ? AND copied_key = ? RETURNING 1",
            (copied_key, target, before.source, before.copied_key),
        )
        return bool(rows.fetchall())

    def end(self, target: int) -> None:
        """Forgets a copy, be there one or not."""
        self._database.connection.execute("DELETE FROM copies WHERE target = ?", (target,))

    # By reader threads.

    def of(self, target: int) -> Copy | None:
        rows: Any = self._database.reader().execute("SELECT source, copied_key FROM copies WHERE target = ?", (target,))
        return next((Copy(*row) for row in rows.fetchall()), None)
