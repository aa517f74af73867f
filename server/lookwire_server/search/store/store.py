"""The store: all tables of the database, and the changes that concern several of them."""

from collections.abc import Sequence
from pathlib import Path

from lookwire_server.search.items import CheckedItems
from lookwire_server.search.store.collections import CollectionRow, CollectionTable, NewCollection
from lookwire_server.search.store.copies import CopyTable
from lookwire_server.search.store.database import Database
from lookwire_server.search.store.items import ItemTable
from lookwire_server.search.store.requests import RequestTable
from lookwire_server.search.store.restores import RestoreTable
from lookwire_server.search.store.sources import SourceTable
from lookwire_server.search.store.words import WordTable
from lookwire_server.search.vectors import Matrix


class Store:
    """Opens the data directory, alone; raises FailedPrecondition if that cannot be.

    With `writes=False` it only reads, beside the process that has the directory.
    """

    def __init__(self, directory: Path, *, writes: bool = True) -> None:
        self.directory = directory
        self.database = Database(directory, writes=writes)
        self.collections = CollectionTable(self.database)
        self.copies = CopyTable(self.database)
        self.restores = RestoreTable(self.database)
        self.items = ItemTable(self.database)
        self.requests = RequestTable(self.database)
        self.sources = SourceTable(self.database)
        self.words = WordTable(self.database)
        self.identity = str(self.database.connection.execute("SELECT store FROM identity").get)

    def close(self) -> None:
        self.database.close()

    # By the writer.

    def add_collection(self, new: NewCollection, *, sequence: int = 0) -> CollectionRow | None:
        """Returns the new collection, with the tables of its own; None if the name is taken, be it by an alias."""
        self.remove_given_up(new.name)
        row = self.collections.add(new, sequence=sequence)
        if row is not None:
            self.words.create(row)
        return row

    def set_alias(self, alias: str, number: int) -> bool:
        """Returns whether it could: False for the name of a collection. Raises NotFound if the collection is gone."""
        self.remove_given_up(alias)
        return self.collections.set_alias(alias, number)

    def put_items(self, row: CollectionRow, sequence: int, new: CheckedItems, vectors: Matrix) -> tuple[list[int], int]:
        """Returns the keys of the new rows, and how many rows they replace."""
        replaced = self.remove_items(row, [item.id for item in new.items])
        keys = self.items.add(row.number, sequence, new.items, vectors)
        self.words.add(row, keys, new.values)
        if row.keeps_sources:
            self.sources.add(
                {key: item.source for key, item in zip(keys, new.items, strict=True) if item.source is not None}
            )
        return keys, replaced

    def put_payloads(self, row: CollectionRow, sequence: int, new: CheckedItems, vectors: Matrix) -> list[int]:
        """Gives items that exist another payload, with the vectors that they have; returns the keys of the new rows."""
        removed = self.items.remove(row.number, [item.id for item in new.items])
        keys = self.items.add(row.number, sequence, new.items, vectors)
        self.words.remove(row, removed)
        self.words.add(row, keys, new.values)
        if row.keeps_sources:
            self.sources.move(removed, keys)
        return keys

    def remove_items(self, row: CollectionRow, ids: Sequence[str]) -> int:
        """Returns how many there were."""
        removed = self.items.remove(row.number, ids)
        self._removed(row, removed)
        return len(removed)

    def remove_versions(self, row: CollectionRow, keys: Sequence[int]) -> list[int]:
        """Removes items by key; returns the keys of those that there were."""
        removed = self.items.remove_keys(keys)
        self._removed(row, removed)
        return removed

    def _removed(self, row: CollectionRow, keys: Sequence[int]) -> None:
        self.words.remove(row, keys)
        if row.keeps_sources:
            self.sources.remove(keys)

    def remove_collection(self, row: CollectionRow) -> bool:
        """Removes the collection and all that belongs to it; returns whether there was one."""
        self.sources.remove_all(row.number)
        self.items.remove_all(row.number)
        self.requests.remove_all(row.number)
        self.words.drop(row.number)
        self.copies.end(row.number)
        self.restores.end(row.number)
        return self.collections.remove(row.number)

    def remove_unfinished(self) -> None:
        """Removes the collections that a restore left which did not come to its end."""
        for row in self.collections.unfinished():
            self.remove_collection(row)

    def remove_given_up(self, name: str) -> None:
        """Removes what a restore that was given up has left under the name, because the disk refused to remove it then."""
        for row in self.collections.unfinished():
            if row.name == name and self.restores.given_up(row.number):
                self.remove_collection(row)
