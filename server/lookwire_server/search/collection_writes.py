"""The changes to the collections of a data directory and to their names, as the writer carries them out."""

from typing import Protocol

import numpy as np

from lookwire_server.errors import AlreadyExists, NotFound
from lookwire_server.search.collection import Collection
from lookwire_server.search.index.live import VectorIndex
from lookwire_server.search.store.collections import CollectionRow, NewCollection
from lookwire_server.search.store.copies import Copy
from lookwire_server.search.store.store import Store
from lookwire_server.search.writer import Alone


class Directory(Protocol):
    """The collections by name; changed in the writer's thread."""

    def adopt(self, row: CollectionRow, index: VectorIndex) -> Collection: ...
    def remove(self, collection: Collection) -> None: ...
    def point(self, alias: str, collection: Collection | None) -> None: ...


class CreateCollection:
    """Makes an empty collection; with `copy_of` as the unfinished copy of the collection with that number."""

    size = 0

    def __init__(self, directory: Directory, new: NewCollection, copy_of: int | None = None) -> None:
        self._directory = directory
        self._new = new
        self._copy_of = copy_of
        self._row: CollectionRow

    def persist(self, store: Store) -> None:
        row = store.add_collection(self._new)
        if row is None:
            raise taken(self._new.name)
        if self._copy_of is not None:
            store.copies.begin(row.number, self._copy_of)
        self._row = row

    def apply(self) -> Collection:
        return self._directory.adopt(self._row, VectorIndex(self._row.dimension, self._row.fields, self._row.sequence))

    def publish(self) -> None:
        pass


class DeleteCollection:
    """Removes a collection with its items and aliases."""

    size = 0

    def __init__(self, directory: Directory, collection: Collection) -> None:
        self._directory = directory
        self._collection = collection

    def persist(self, store: Store) -> None:
        if not store.remove_collection(self._collection.row):
            name = self._collection.name
            raise NotFound(f"no collection {name!r}", collection=name)

    def apply(self) -> None:
        self._directory.remove(self._collection)

    def publish(self) -> None:
        pass


class SetAlias:
    """Points an alias, be it new or not, to a collection."""

    size = 0

    def __init__(self, directory: Directory, alias: str, collection: Collection) -> None:
        self._directory = directory
        self._alias = alias
        self._collection = collection

    def persist(self, store: Store) -> None:
        if not store.set_alias(self._alias, self._collection.row.number):
            raise taken(self._alias, "alias")

    def apply(self) -> Collection:
        self._directory.point(self._alias, self._collection)
        return self._collection

    def publish(self) -> None:
        pass


class RemoveAlias:
    """Removes an alias."""

    size = 0

    def __init__(self, directory: Directory, alias: str) -> None:
        self._directory = directory
        self._alias = alias

    def persist(self, store: Store) -> None:
        if not store.collections.remove_alias(self._alias):
            raise NotFound(f"no alias {self._alias!r}", field="alias", alias=self._alias)

    def apply(self) -> None:
        self._directory.point(self._alias, None)

    def publish(self) -> None:
        pass


class BeginCopy(Alone):
    """Makes an existing collection the unfinished copy of another; alone, so that it is empty in memory and on disk."""

    size = 0

    def __init__(self, target: Collection, source: Collection) -> None:
        self._target = target
        self._source = source

    def persist(self, store: Store) -> None:
        if self._target.deleted or self._target.item_count:
            raise taken(self._target.name, "target")
        store.copies.begin(self._target.row.number, self._source.row.number)

    def apply(self) -> None:
        pass

    def publish(self) -> None:
        pass


class EndCopy(Alone):
    """Ends a copy that has all that its source has, and points an alias to it, unless that is empty.

    Alone, so that no write to either falls between. Its result is the number of items, or None if something is still to be done.
    """

    size = 0

    def __init__(self, directory: Directory, source: Collection, target: Collection, copy: Copy, alias: str) -> None:
        self._directory = directory
        self._source = source
        self._target = target
        self._copy = copy
        self._alias = alias
        self._equal = False

    def persist(self, store: Store) -> None:
        for collection in (self._source, self._target):
            if collection.deleted:
                raise NotFound(f"collection {collection.name!r} was deleted", collection=collection.name)
        view = self._source.index.view
        living = np.flatnonzero(view.alive)
        newest = int(view.rows.keys(view.count)[living[-1]]) if len(living) else 0
        self._equal = newest <= self._copy.copied_key and view.item_count == self._target.item_count
        if self._equal:
            store.copies.end(self._target.row.number)
            if self._alias and not store.set_alias(self._alias, self._target.row.number):
                raise taken(self._alias, "alias")

    def apply(self) -> int | None:
        if self._equal and self._alias:
            self._directory.point(self._alias, self._target)
        return self._target.item_count if self._equal else None

    def publish(self) -> None:
        pass


def taken(name: str, field: str = "name") -> AlreadyExists:
    """The error that a name, which the request has at `field`, belongs to something else."""
    return AlreadyExists(f"there is a collection or an alias {name!r} already", field=field, collection=name)
