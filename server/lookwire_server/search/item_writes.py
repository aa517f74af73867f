"""The changes to the items of one collection, as the writer carries them out."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from lookwire_server.errors import Conflict, LookwireError, NotFound
from lookwire_server.search.fields import read_payload, shown
from lookwire_server.search.filters import Filter
from lookwire_server.search.index.live import Delete, Upsert, VectorIndex
from lookwire_server.search.items import (
    EMPTY_PAYLOAD,
    CheckedItems,
    NewItem,
    PayloadUpdate,
    check_each,
    check_items,
    conflict,
)
from lookwire_server.search.merge_patch import MergePatch
from lookwire_server.search.store.collections import CollectionRow
from lookwire_server.search.store.requests import Request
from lookwire_server.search.store.store import Store
from lookwire_server.search.vectors import Matrix
from lookwire_server.search.writer import Alone

# Items that a deletion by filter takes from memory and from SQLite at a time.
DELETED_AT_ONCE = 10_000


class Changing(Protocol):
    """A collection, as far as changing its items goes."""

    @property
    def row(self) -> CollectionRow: ...
    @property
    def index(self) -> VectorIndex: ...
    def published(self) -> None:
        """Is called in the writer's thread when changes have become visible."""


@dataclass(frozen=True, slots=True)
class Written:
    """The number of an upsert, and how many of its ids were new and how many existed."""

    sequence: int
    inserted: int
    replaced: int


@dataclass(frozen=True, slots=True)
class Imported:
    """What was written of a chunk, with sequence 0 if that is nothing, and the errors of the rest by position."""

    written: Written
    errors: Mapping[int, LookwireError]


@dataclass(frozen=True, slots=True)
class Deleted:
    """The number of a deletion, and how many items there were to delete."""

    sequence: int
    count: int


class ItemWrite:
    """Base of the changes that put new versions of items in the place of the old."""

    def __init__(self, collection: Changing, items: CheckedItems, vectors: Matrix) -> None:
        self._collection = collection
        self._items = items
        self._vectors = vectors
        self._keys: list[int] = []
        self._written = Written(0, 0, 0)

    def _put(self, store: Store, row: CollectionRow) -> None:
        sequence = store.collections.next_sequence(row.number)
        self._keys, replaced = store.put_items(row, sequence, self._items, self._vectors)
        self._written = Written(sequence, len(self._items.items) - replaced, replaced)

    def _append(self) -> None:
        if self._keys:
            ids = [item.id for item in self._items.items]
            self._collection.index.upsert(
                Upsert(self._written.sequence, ids, self._keys, self._vectors, self._items.values)
            )

    def publish(self) -> None:
        self._collection.index.publish()
        self._collection.published()


class UpsertItems(ItemWrite):
    """Adds items, and replaces those whose id exists; all or none, and nothing if `request` was carried out before."""

    def __init__(
        self, collection: Changing, items: CheckedItems, vectors: Matrix, request: Request | None = None
    ) -> None:
        super().__init__(collection, items, vectors)
        self._request = request
        self.size = size_of(items, vectors)

    def persist(self, store: Store) -> None:
        row = self._collection.row
        if self._request and (answer := store.requests.answered_before(row.number, self._request)):
            self._keys, self._written = [], Written(*answer)
            return
        if row.fields is not self._items.fields:
            # The declared fields were changed since the items were checked.
            self._items = check_items(self._items.items, row.fields)
        for error in conflicts(store, row, enumerate(self._items.items)).values():
            raise error
        self._put(store, row)
        if self._request:
            written = self._written
            store.requests.add(row.number, self._request, (written.sequence, written.inserted, written.replaced))

    def apply(self) -> Written:
        self._append()
        return self._written


class ImportItems(ItemWrite):
    """Adds and replaces those of some items, whose ids differ, that may be; `positions` are theirs in the chunk."""

    def __init__(self, collection: Changing, positions: Sequence[int], items: CheckedItems, vectors: Matrix) -> None:
        super().__init__(collection, items, vectors)
        self._offered = positions, items, vectors
        self._errors: dict[int, LookwireError] = {}
        self.size = size_of(items, vectors)

    def persist(self, store: Store) -> None:
        row = self._collection.row
        positions, items, vectors = self._offered
        self._errors = {}
        if row.fields is not items.fields:
            # The declared fields were changed since the items were checked.
            fitting, items, self._errors = check_each(zip(positions, items.items, strict=True), row.fields)
            vectors, positions = vectors[np.isin(positions, fitting)], fitting
        self._errors.update(conflicts(store, row, zip(positions, items.items, strict=True)))
        kept = [place for place, position in enumerate(positions) if position not in self._errors]
        self._items, self._vectors = items.at(kept), vectors[kept]
        self._keys, self._written = [], Written(0, 0, 0)
        if kept:
            self._put(store, row)

    def apply(self) -> Imported:
        self._append()
        return Imported(self._written, self._errors)


class UpdatePayloads(ItemWrite):
    """Changes the payloads of items that exist, and keeps their vectors and sources; all or none."""

    def __init__(self, collection: Changing, updates: Sequence[PayloadUpdate]) -> None:
        super().__init__(collection, CheckedItems((), ()), np.empty((0, collection.row.dimension), np.float32))
        self._updates = updates
        self.size = sum(
            update.change.size if isinstance(update.change, MergePatch) else len(update.change) for update in updates
        )

    def persist(self, store: Store) -> None:
        row = self._collection.row
        stored = store.items.versions(row.number, [update.id for update in self._updates])
        items, values = [], []
        for position, update in enumerate(self._updates):
            path = f"updates[{position}]"
            if update.id not in stored:
                raise NotFound(
                    f"collection {row.name!r} has no item {shown(update.id)}",
                    field=f"{path}.id",
                    collection=row.name,
                    item=update.id,
                )
            before, _ = stored[update.id]
            if error := conflict(update.id, update.if_sequence, before.sequence, path):
                raise error
            if isinstance(update.change, MergePatch):
                payload, member = update.change.applied(before.payload), "merge_patch"
            else:
                payload, member = update.change or EMPTY_PAYLOAD, "replacement"
            values.append(read_payload(payload, row.fields, f"{path}.{member}"))
            items.append(NewItem(update.id, payload))
        self._items = CheckedItems(tuple(items), tuple(values), row.fields)
        content = b"".join(stored[item.id][1] for item in items)
        self._vectors = np.frombuffer(content, "<f4").reshape(len(items), row.dimension)
        sequence = store.collections.next_sequence(row.number)
        self._keys = store.put_payloads(row, sequence, self._items, self._vectors)
        self._written = Written(sequence, 0, len(items))

    def apply(self) -> int:
        """Returns the number of the write."""
        self._append()
        return self._written.sequence


class DeleteItems:
    """Removes items by id."""

    def __init__(self, collection: Changing, ids: Sequence[str]) -> None:
        self._collection = collection
        self._ids = ids
        self._deleted = Deleted(0, 0)
        self.size = sum(len(id) for id in ids)

    def persist(self, store: Store) -> None:
        row = self._collection.row
        sequence = store.collections.next_sequence(row.number)
        self._deleted = Deleted(sequence, store.remove_items(row, self._ids))

    def apply(self) -> Deleted:
        self._collection.index.delete(Delete(self._deleted.sequence, self._ids))
        return self._deleted

    def publish(self) -> None:
        self._collection.index.publish()
        self._collection.published()


class DeleteMatching(Alone):
    """Removes the items that match a filter, decided when all earlier writes are in memory."""

    # The filter is part of a request that waits, and is counted with it.
    size = 0

    def __init__(self, collection: Changing, filter: Filter) -> None:
        self._collection = collection
        self._filter = filter
        self._sequence = 0
        self._ids: list[str] = []

    def persist(self, store: Store) -> None:
        row = self._collection.row
        self._sequence = store.collections.next_sequence(row.number)
        view = self._collection.index.view
        slots = np.flatnonzero(view.matching(self._filter))
        # Ids and keys that memory has already; no payload is read.
        self._ids = view.rows.ids(slots)
        keys = view.rows.keys(view.count)[slots]
        for start in range(0, len(keys), DELETED_AT_ONCE):
            store.remove_versions(row, keys[start : start + DELETED_AT_ONCE].tolist())

    def apply(self) -> Deleted:
        for start in range(0, max(1, len(self._ids)), DELETED_AT_ONCE):
            self._collection.index.delete(Delete(self._sequence, self._ids[start : start + DELETED_AT_ONCE]))
        return Deleted(self._sequence, len(self._ids))

    def publish(self) -> None:
        self._collection.index.publish()
        self._collection.published()


def size_of(items: CheckedItems, vectors: Matrix) -> int:
    """Returns the bytes that items hold in memory until they are written."""
    return vectors.nbytes + sum(len(item.payload) + len(item.source or b"") for item in items.items)


def conflicts(store: Store, row: CollectionRow, items: Iterable[tuple[int, NewItem]]) -> dict[int, Conflict]:
    """Returns the errors of items, by position, that are not at the sequence that their write is conditional on."""
    conditional = [(position, item) for position, item in items if item.if_sequence is not None]
    if not conditional:
        return {}
    current = store.items.current(row.number, [item.id for _, item in conditional])
    errors = {}
    for position, item in conditional:
        _, sequence = current.get(item.id, (0, 0))
        if error := conflict(item.id, item.if_sequence, sequence, f"items[{position}]"):
            errors[position] = error
    return errors
