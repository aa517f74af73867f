"""The change of a collection to a new generation of its index."""

from typing import Protocol

from lookwire_server.search.index.generation import Doubtful
from lookwire_server.search.index.live import VectorIndex
from lookwire_server.search.store.collections import CollectionRow
from lookwire_server.search.store.store import Store


class Swapped(Protocol):
    """A collection, as far as changing its index goes."""

    @property
    def row(self) -> CollectionRow: ...
    @property
    def index(self) -> VectorIndex: ...
    @property
    def deleted(self) -> bool: ...


class Swap:
    """Puts an index that was loaded aside in the place of the collection's own, with what was written meanwhile."""

    size = 0

    def __init__(self, collection: Swapped, index: VectorIndex) -> None:
        self._collection = collection
        self._index = index

    def persist(self, store: Store) -> None:
        """Raises Doubtful if the collection is another than it was when the index was loaded."""
        recorded = self._collection.index.is_recording
        if not recorded or self._collection.deleted or self._index.view.columns.fields != self._collection.row.fields:
            raise Doubtful("the collection was changed while its index was built")

    def apply(self) -> None:
        self._collection.index.succeed(self._index)

    def publish(self) -> None:
        self._collection.index.publish()
