"""All collections of a data directory."""

import asyncio
import re
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path

import numpy as np

from lookwire_server.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound
from lookwire_server.metrics import Metrics
from lookwire_server.search.collection import Collection
from lookwire_server.search.engine import Engine
from lookwire_server.search.fields import MAX_SHOWN_NAMES, Field, check_fields, listed, read_payload, shown
from lookwire_server.search.index import VectorIndex
from lookwire_server.search.store import CollectionRow, ItemRow, Store

NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]{0,127}")
# Items that the start brings to memory at once: enough for numpy to be quick, little memory besides the index.
LOADED_ROWS = 2_048


class Collections:
    """Opens a data directory, and finds, makes and deletes collections in it."""

    def __init__(self, engine: Engine, collections: dict[str, Collection]) -> None:
        self._engine = engine
        # Never changed but replaced whole, by the writer's thread.
        self._by_name = collections

    @classmethod
    def open(
        cls,
        data_dir: Path,
        metrics: Metrics,
        *,
        search_threads: int,
        on_failure: Callable[[BaseException], None],
    ) -> "Collections":
        """Reads all into memory. `on_failure` is called once, in another thread, if writing becomes impossible."""
        store = Store(data_dir)
        try:
            loaded = _load(store)
        except BaseException:
            store.close()
            raise
        engine = Engine.start(store, metrics, search_threads=search_threads, on_failure=on_failure)
        collections = {row.name: Collection(row, index, engine) for row, index in loaded}
        for collection in collections.values():
            metrics.collection_items.labels(collection.name).set(collection.item_count)
        return cls(engine, collections)

    def close(self) -> None:
        """Writes what waits, finishes what runs, and closes the database."""
        self._engine.close()

    def get(self, name: str) -> Collection:
        collection = self._by_name.get(name)
        if collection is None:
            names = sorted(self._by_name)
            existing = "there are none" if not names else f"existing: {listed(names)}"
            raise NotFound(
                f"no collection {shown(name)}" + (f"; {existing}" if len(names) <= MAX_SHOWN_NAMES else ""),
                collection=name,
            )
        return collection

    def list(self) -> list[Collection]:
        """Returns all, by name."""
        return [collection for _, collection in sorted(self._by_name.items())]

    async def create(
        self, name: str, encoder: str, fingerprint: str, dimension: int, fields: Sequence[Field]
    ) -> Collection:
        """Makes an empty collection; when it returns this is on disk. Raises AlreadyExists for a taken name."""
        if not NAME.fullmatch(name):
            raise InvalidArgument(
                "a collection's name has 1 to 128 of the characters a-z, A-Z, 0-9, '_', '-' and '.',"
                " a letter or digit first",
                field="name",
            )
        check_fields(fields)
        write = _Create(self, name, encoder, fingerprint, dimension, tuple(fields))
        return await asyncio.wrap_future(self._engine.writer.submit(write))

    async def delete(self, name: str) -> None:
        """Removes a collection and its items; when it returns this is on disk. Searches that run are not disturbed."""
        write = _Delete(self, self.get(name))
        await asyncio.wrap_future(self._engine.writer.submit(write))

    def _add(self, row: CollectionRow) -> Collection:
        index = VectorIndex(row.dimension, row.fields, row.sequence)
        collection = Collection(row, index, self._engine)
        self._by_name = {**self._by_name, row.name: collection}
        self._engine.metrics.collection_items.labels(row.name).set(0)
        return collection

    def _remove(self, collection: Collection) -> None:
        self._by_name = {name: other for name, other in self._by_name.items() if other is not collection}
        collection.mark_deleted()
        self._engine.metrics.collection_items.remove(collection.name)


class _Create:
    size = 0

    def __init__(
        self,
        collections: Collections,
        name: str,
        encoder: str,
        fingerprint: str,
        dimension: int,
        fields: tuple[Field, ...],
    ) -> None:
        self._collections = collections
        self._described = (name, encoder, fingerprint, dimension, fields)
        self._row: CollectionRow

    def persist(self, store: Store) -> None:
        row = store.add_collection(*self._described)
        if row is None:
            raise AlreadyExists(f"there is a collection {self._described[0]!r} already", collection=self._described[0])
        self._row = row

    def apply(self) -> Collection:
        return self._collections._add(self._row)

    def publish(self) -> None:
        pass


class _Delete:
    size = 0

    def __init__(self, collections: Collections, collection: Collection) -> None:
        self._collections = collections
        self._collection = collection

    def persist(self, store: Store) -> None:
        if not store.remove_collection(self._collection.number):
            name = self._collection.name
            raise NotFound(f"no collection {name!r}", collection=name)

    def apply(self) -> None:
        self._collections._remove(self._collection)

    def publish(self) -> None:
        pass


def _load(store: Store) -> list[tuple[CollectionRow, VectorIndex]]:
    """Rebuilds every index, in one pass over the items as they lie on disk."""
    loaded = {row.number: (row, VectorIndex(row.dimension, row.fields, row.sequence)) for row in store.collections()}
    items = store.items()
    while chunk := list(islice(items, LOADED_ROWS)):
        by_collection: dict[int, list[ItemRow]] = {}
        for item in chunk:
            by_collection.setdefault(item.collection, []).append(item)
        for number, members in by_collection.items():
            _load_items(*loaded[number], members)
    for _, index in loaded.values():
        index.publish()
    return list(loaded.values())


def _load_items(row: CollectionRow, index: VectorIndex, items: list[ItemRow]) -> None:
    content = b"".join(item.vector for item in items)
    if len(content) != len(items) * row.dimension * 4:
        raise FailedPrecondition(
            f"the database is damaged: collection {row.name!r} has vectors of another length than its dimension",
            collection=row.name,
        )
    index.upsert(
        row.sequence,
        [item.id for item in items],
        [item.key for item in items],
        np.frombuffer(content, "<f4").reshape(len(items), row.dimension),
        [read_payload(item.payload, row.fields, "payload") for item in items],
    )
