"""Re-embedding: the items of a collection, embedded by another encoder, in a new collection, while both serve."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from lookwire_server.errors import FailedPrecondition, InvalidArgument, LookwireError
from lookwire_server.search.collection import Collection
from lookwire_server.search.engine import Engine
from lookwire_server.search.fields import shown
from lookwire_server.search.index.view import View
from lookwire_server.search.item_writes import UpsertItems
from lookwire_server.search.items import MAX_ITEMS, CheckedItems, NewItem
from lookwire_server.search.store.copies import Copy
from lookwire_server.search.store.store import Store
from lookwire_server.search.vectors import Matrix, normalised

# A chunk is read, embedded and written as one; it ends with the item that brings it past the bytes.
CHUNK_ITEMS = 64
CHUNK_BYTES = 16 * 1024 * 1024
# When no more is left, writes to the source wait until it is copied, but no longer than the time.
LAST_ITEMS = 64
HELD_SECONDS = 10.0

Result = TypeVar("Result")


class Embedded(Protocol):
    """Vectors [n, d] of sources, and the errors of those that have none, by their position."""

    @property
    def vectors(self) -> Matrix: ...
    @property
    def errors(self) -> Mapping[int, LookwireError]: ...


Embed = Callable[[Sequence[str | bytes]], Awaitable[Embedded]]
# Ends the copy if both are equal: returns the number of items, or None.
End = Callable[[Copy], Awaitable[int | None]]


@dataclass(frozen=True, slots=True)
class Progress:
    """How many of the source's items the target has, and how many there are; `done` in the last."""

    copied_count: int
    item_count: int
    done: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Chunk:
    """Items with their sources and vectors [n, d]; `keys` is how many keys they were read from, the last is `last_key`."""

    items: Sequence[NewItem]
    vectors: Matrix
    keys: int
    last_key: int


class Reembedding:
    """Copies by rising key, so that what is written meanwhile comes later, and `copy` says how far it is, across restarts."""

    def __init__(
        self, engine: Engine, source: Collection, target: Collection, copy: Copy, embed: Embed, end: End
    ) -> None:
        self._engine = engine
        self._source = source
        self._target = target
        self._copy = copy
        self._embed = embed
        self._end = end

    async def run(self) -> AsyncGenerator[Progress, None]:
        """Yields after each chunk, and when it is done; whenever it is given up, the target stays as it is.

        Raises FailedPrecondition, naming the item, if one has no source, cannot be embedded or does not fit the target's fields.
        """
        while True:
            keys, item_count = await self._left()
            while len(keys):
                chunk = await self._next(keys)
                await self._write(chunk)
                keys = keys[chunk.keys :]
                yield Progress(item_count - len(keys), item_count)
            await self._remove_gone()
            keys, _ = await self._left()
            if len(keys) <= LAST_ITEMS and (count := await self._finish()) is not None:
                yield Progress(count, count, done=True)
                return

    async def _finish(self) -> int | None:
        """Copies the rest while writes to the source wait; returns the number of items, None if it took too long."""
        until = asyncio.get_running_loop().time() + HELD_SECONDS
        with self._source.writes_held():
            while (count := await self._end(self._copy)) is None:
                try:
                    async with asyncio.timeout_at(until):
                        keys, _ = await self._left()
                        chunk = await self._next(keys) if len(keys) else None
                except TimeoutError:
                    return None
                if chunk is not None:
                    await self._write(chunk)
                await self._remove_gone()
        return count

    async def _left(self) -> tuple[NDArray[np.int64], int]:
        """Returns the keys that are to be copied, rising, and the number of items."""
        self._source.check_exists()
        return await self._engine.reading.run(partial(_keys_after, self._source.index.view, self._copy.copied_key))

    async def _next(self, keys: NDArray[np.int64]) -> Chunk:
        """Reads and embeds the items of the first of the keys."""
        items, count, last_key = await self._engine.reading.run(partial(self._read, keys[:CHUNK_ITEMS].tolist()))
        if not items:
            return Chunk(items, np.empty((0, self._target.row.dimension), np.float32), count, last_key)
        embedded = await _patiently(partial(self._embed, [item.source for item in items if item.source is not None]))
        for position, error in sorted(embedded.errors.items()):
            raise self._refused(items[position].id, f"cannot be embedded: {error.message}")
        return Chunk(items, embedded.vectors, count, last_key)

    def _read(self, keys: list[int]) -> tuple[list[NewItem], int, int]:
        """Returns the items that there still are, of how many of the keys, and the last of those."""
        store = self._engine.store
        items: list[NewItem] = []
        nbytes = count = 0
        with store.database.reader():
            payloads = store.items.payloads(keys)
            for count, key in enumerate(keys, 1):  # noqa: B007 - it is returned
                if key not in payloads:
                    continue  # replaced or removed since
                id, payload = payloads[key]
                source = store.sources.by_key([key]).get(key)
                if source is None:
                    raise self._refused(id, "was given as a vector: there is nothing to embed")
                items.append(NewItem(id, payload, source))
                nbytes += len(source) + len(payload)
                if nbytes >= CHUNK_BYTES:
                    break
        return items, count, key

    async def _write(self, chunk: Chunk) -> None:
        if chunk.items:
            vectors = normalised(chunk.vectors, self._target.row.dimension, lambda position: f"items[{position}]")
            after = Copy(self._copy.source, chunk.last_key)
            write = partial(CopyItems, self._target, self._checked(chunk.items), vectors, self._copy, after)
            await _patiently(lambda: self._target.write(write()))
            self._copy = after

    def _checked(self, items: Sequence[NewItem]) -> CheckedItems:
        try:
            return self._target.check(items)
        except InvalidArgument:
            for item in items:
                try:
                    self._target.check([item])
                except InvalidArgument as error:
                    raise self._refused(
                        item.id, f"does not fit collection {self._target.name!r}: {error.message}"
                    ) from error
            raise

    async def _remove_gone(self) -> None:
        """Removes from the target what the source no longer has."""
        source, target = self._source.index.view, self._target.index.view
        if target.item_count <= source.item_count:
            return
        gone = await self._engine.reading.run(partial(_ids_gone, source, target))
        for start in range(0, len(gone), MAX_ITEMS):
            await _patiently(partial(self._target.delete_items, gone[start : start + MAX_ITEMS]))

    def _refused(self, id: str, why: str) -> FailedPrecondition:
        return FailedPrecondition(
            f"item {shown(id)} of collection {self._source.name!r} {why}", collection=self._source.name, item=id
        )


class CopyItems(UpsertItems):
    """Writes a chunk, together with how far the copy then is."""

    def __init__(self, target: Collection, items: CheckedItems, vectors: Matrix, before: Copy, after: Copy) -> None:
        super().__init__(target, items, vectors)
        self._target = target
        self._before = before
        self._after = after

    def persist(self, store: Store) -> None:
        """Raises FailedPrecondition if another call has copied, ended the copy or deleted the target."""
        if not store.copies.advance(self._target.row.number, self._before, self._after.copied_key):
            name = self._target.name
            raise FailedPrecondition(f"collection {name!r} is no longer filled by this call alone", collection=name)
        super().persist(store)


def _keys_after(view: View, key: int) -> tuple[NDArray[np.int64], int]:
    keys: NDArray[np.int64] = view.rows.keys(view.count)[view.alive]
    return keys[np.searchsorted(keys, key, "right") :], view.item_count


def _ids_gone(source: View, target: View) -> list[str]:
    return [id for id in target.rows.ids(np.flatnonzero(target.alive)) if source.slot_of(id) is None]


async def _patiently(work: Callable[[], Awaitable[Result]]) -> Result:
    """Does the work again for as long as it is refused only for now."""
    while True:
        try:
            return await work()
        except LookwireError as error:
            if error.retry_after is None:
                raise
            await asyncio.sleep(error.retry_after)
