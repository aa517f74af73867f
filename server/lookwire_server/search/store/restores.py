"""The table of restores: which collections are being made of a snapshot, so that nobody may see them yet."""

from lookwire_server.search.store.database import Database


class RestoreTable:
    """Numbers of collections; only the writer changes them."""

    def __init__(self, database: Database) -> None:
        self._database = database
        # Numbers are never given twice, so that one may stay when its collection is gone.
        self._given_up: set[int] = set()

    def begin(self, number: int) -> None:
        self._database.connection.execute("INSERT INTO restores (collection) VALUES (?)", (number,))

    def end(self, number: int) -> None:
        """Makes the collection one like any other, or forgets it."""
        self._database.connection.execute("DELETE FROM restores WHERE collection = ?", (number,))

    def give_up(self, number: int) -> None:
        """Notes, in memory and whatever becomes of the transaction, that nobody goes on with a restore."""
        self._given_up.add(number)

    def given_up(self, number: int) -> bool:
        return number in self._given_up
