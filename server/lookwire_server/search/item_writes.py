"""The changes to the items of one collection, as the writer carries them out."""

from collections.abc import Sequence
from dataclasses import dataclass

from lookwire_server.metrics import Metrics
from lookwire_server.search.index import VectorIndex
from lookwire_server.search.items import CheckedItems
from lookwire_server.search.store import CollectionRow, Store
from lookwire_server.search.vectors import Matrix


@dataclass(frozen=True, slots=True)
class Written:
    """The number of an upsert, and how many of its ids were new and how many existed."""

    sequence: int
    inserted: int
    replaced: int


@dataclass(frozen=True, slots=True)
class Deleted:
    """The number of a deletion, and how many items there were to delete."""

    sequence: int
    count: int


class UpsertItems:
    """Adds items, and replaces those whose id exists."""

    def __init__(
        self, row: CollectionRow, index: VectorIndex, metrics: Metrics, items: CheckedItems, vectors: Matrix
    ) -> None:
        self._row = row
        self._index = index
        self._metrics = metrics
        self._items = items
        self._vectors = vectors
        self._keys: list[int] = []
        self._written = Written(0, 0, 0)
        self.size = vectors.nbytes + sum(len(item.payload) for item in items.items)

    def persist(self, store: Store) -> None:
        items = self._items.items
        sequence = store.next_sequence(self._row.number)
        self._keys, replaced = store.put_items(self._row.number, sequence, items, self._vectors)
        self._written = Written(sequence, len(items) - replaced, replaced)

    def apply(self) -> Written:
        ids = [item.id for item in self._items.items]
        self._index.upsert(self._written.sequence, ids, self._keys, self._vectors, self._items.values)
        self._metrics.collection_items.labels(self._row.name).set(self._index.item_count)
        return self._written

    def publish(self) -> None:
        self._index.publish()


class DeleteItems:
    """Removes items by id."""

    def __init__(self, row: CollectionRow, index: VectorIndex, metrics: Metrics, ids: Sequence[str]) -> None:
        self._row = row
        self._index = index
        self._metrics = metrics
        self._ids = ids
        self._deleted = Deleted(0, 0)
        self.size = sum(len(id) for id in ids)

    def persist(self, store: Store) -> None:
        sequence = store.next_sequence(self._row.number)
        self._deleted = Deleted(sequence, store.remove_items(self._row.number, self._ids))

    def apply(self) -> Deleted:
        self._index.delete(self._deleted.sequence, self._ids)
        self._metrics.collection_items.labels(self._row.name).set(self._index.item_count)
        return self._deleted

    def publish(self) -> None:
        self._index.publish()
