"""The table of restores: which collections are being made of a snapshot, so that nobody may see them yet."""

from lookwire_server.search.store.database import Database


class RestoreTable:
    """Numbers of collections; only the writer changes them."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def begin(self, number: int) -> None:
        self._database.connection.execute("INSERT INTO restores (collection) VALUES (?)", (number,))

    def end(self, number: int) -> None:
        """Makes the collection one like any other, or forgets it."""
        self._database.connection.execute("DELETE FROM restores WHERE collection = ?", (number,))
