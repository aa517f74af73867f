"""One collection: named items that one encoder embedded."""

import asyncio
import heapq
import math
from collections.abc import Collection as Container
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lookwire_server.errors import FailedPrecondition, InvalidArgument, NotFound
from lookwire_server.search.engine import Engine
from lookwire_server.search.fields import Field, shown
from lookwire_server.search.filters import Filter, check_filter
from lookwire_server.search.index import VectorIndex
from lookwire_server.search.item_writes import Deleted, DeleteItems, UpsertItems, Written
from lookwire_server.search.items import CheckedItems, NewItem, StoredItem, check_ids, check_items
from lookwire_server.search.pages import last_id, members_on_page, token_after
from lookwire_server.search.plan import Plan
from lookwire_server.search.store import CollectionRow
from lookwire_server.search.vectors import Matrix, Vector, normalised
from lookwire_server.search.view import Hits, View
from lookwire_server.search.writer import Result, Write

MAX_TOP_K = 1_000
# A search is done again if an item was replaced between its score and its payload. Once is nearly always enough; under
# constant replacement of the best items the last try goes without those that are gone.
ATTEMPTS = 4


@dataclass(frozen=True, slots=True, eq=False)
class Found:
    """The items that exist, in the order of the ids asked for, their vectors if asked for, and the missing ids."""

    items: list[StoredItem]
    vectors: Matrix | None
    missing: list[str]


@dataclass(frozen=True, slots=True)
class Page:
    """Items in the order of their ids; the token is empty on the last page."""

    items: list[StoredItem]
    next_page_token: str


@dataclass(frozen=True, slots=True, eq=False)
class SearchResult:
    """Hits as parallel lists, best first; `sequence` is the last write that the search saw."""

    ids: list[str]
    scores: Vector
    payloads: list[bytes]
    vectors: Matrix | None
    plan: Plan
    sequence: int
    search_seconds: float
    fetch_seconds: float


class Collection:
    """Writes and finds items. Every method may be called while any other runs."""

    def __init__(self, row: CollectionRow, index: VectorIndex, engine: Engine) -> None:
        self._row = row
        self._index = index
        self._engine = engine
        self._fields = {field.name: field for field in row.fields}
        self._deleted = False

    @property
    def name(self) -> str:
        return self._row.name

    @property
    def encoder(self) -> str:
        return self._row.encoder

    @property
    def fingerprint(self) -> str:
        return self._row.fingerprint

    @property
    def dimension(self) -> int:
        return self._row.dimension

    @property
    def fields(self) -> tuple[Field, ...]:
        return self._row.fields

    @property
    def created(self) -> datetime:
        return self._row.created

    @property
    def item_count(self) -> int:
        return self._index.view.item_count

    @property
    def sequence(self) -> int:
        """The number of the last write that a search sees."""
        return self._index.view.sequence

    @property
    def number(self) -> int:
        """What the store knows the collection by; never given twice."""
        return self._row.number

    def mark_deleted(self) -> None:
        """Makes every further call raise NotFound. Searches that run are not disturbed."""
        self._deleted = True

    def check(self, items: Sequence[NewItem]) -> CheckedItems:
        """Returns the items with the values that filters use; raises InvalidArgument if they may not be written."""
        return check_items(items, self.fields)

    def normalised(self, vector: NDArray[Any], field: str) -> Vector:
        """Returns the vector with length 1; raises InvalidVector with the path `field`."""
        row: Vector = normalised(vector.reshape(1, -1), self.dimension, lambda _: field)[0]
        return row

    async def upsert(self, items: Sequence[NewItem] | CheckedItems, vectors: NDArray[Any]) -> Written:
        """Writes all items or none; when it returns they are on disk and visible. `vectors` has a row for each item."""
        self._check_exists()
        checked = items if isinstance(items, CheckedItems) else self.check(items)
        if len(vectors) != len(checked.items):
            raise ValueError(f"{len(vectors)} vectors for {len(checked.items)} items")
        rows = normalised(vectors, self.dimension, lambda position: f"items[{position}].vector")
        return await self._write(UpsertItems(self._row, self._index, self._engine.metrics, checked, rows))

    async def delete_items(self, ids: Sequence[str]) -> Deleted:
        """Removes the items that exist; when it returns this is on disk and visible."""
        self._check_exists()
        check_ids(ids)
        return await self._write(DeleteItems(self._row, self._index, self._engine.metrics, ids))

    async def get_items(self, ids: Sequence[str], *, include_vectors: bool = False) -> Found:
        self._check_exists()
        check_ids(ids)
        store = self._engine.store
        stored = await self._engine.reading.run(partial(store.items_by_id, self.number, ids))
        present = [stored[id] for id in ids if id in stored]
        vectors = None
        if include_vectors:
            content = b"".join(vector for _, vector in present)
            vectors = np.frombuffer(content, "<f4").reshape(len(present), self.dimension)
        return Found([item for item, _ in present], vectors, [id for id in ids if id not in stored])

    async def list_items(self, filter: Filter | None = None, *, page_size: int = 0, page_token: str = "") -> Page:
        """Returns the items that match, in the order of the UTF-8 bytes of their ids."""
        self._check_exists()
        self._check_filter(filter)
        size = members_on_page(page_size)
        scope = f"{self.number} {filter!r}"
        after = last_id(page_token, scope)
        # One more than fits, to know whether there is a further page.
        if filter is None:
            store = self._engine.store
            items = await self._engine.reading.run(partial(store.items_after, self.number, after, size + 1))
        else:
            items = await self._matching_items(filter, after, size + 1)
        token = token_after(items[size - 1].id, scope) if len(items) > size else ""
        return Page(items[:size], token)

    async def count(self, filter: Filter | None = None) -> int:
        self._check_exists()
        self._check_filter(filter)
        view = self._index.view
        if filter is None:
            return view.item_count
        return await self._engine.searching.run(lambda: int(np.count_nonzero(view.matching(filter))))

    def vectors_of(self, ids: Sequence[str], field: str) -> Matrix:
        """Returns a row for each id; raises NotFound, with the path `field`, for the first that does not exist."""
        self._check_exists()
        view = self._index.view
        slots = []
        for id in ids:
            slot = view.slot_of(id)
            if slot is None:
                raise NotFound(
                    f"collection {self.name!r} has no item {shown(id)}", field=field, collection=self.name, item=id
                )
            slots.append(slot)
        rows: Matrix = view.vectors[slots]
        return rows

    async def search(
        self,
        vector: NDArray[Any],
        *,
        filter: Filter | None = None,
        excluded_ids: Container[str] = (),
        top_k: int = 10,
        score_threshold: float | None = None,
        include_payloads: bool = True,
        include_vectors: bool = False,
        min_sequence: int | None = None,
    ) -> SearchResult:
        """Returns the items of the highest cosine with the vector, best first, each with the payload of that version."""
        self._check_exists()
        self._check_filter(filter)
        self._check_search(top_k, score_threshold, min_sequence)
        query = self.normalised(vector, "query.vector")
        search_seconds = fetch_seconds = 0.0
        stored: dict[int, StoredItem] = {}
        for _ in range(ATTEMPTS):
            started = perf_counter()
            view, hits = await self._engine.searching.run(
                partial(self._search_newest, query, top_k, filter, excluded_ids, score_threshold)
            )
            searched = perf_counter()
            search_seconds += searched - started
            if not include_payloads:
                break
            stored = await self._engine.reading.run(partial(self._engine.store.items_by_key, hits.keys))
            complete = len(stored) == len(hits.keys)
            if not complete:
                await self._settled()
            fetch_seconds += perf_counter() - searched
            if complete:
                break
        kept = [position for position, key in enumerate(hits.keys) if key in stored or not include_payloads]
        self._observe("search", search_seconds)
        if include_payloads:
            self._observe("fetch", fetch_seconds)
        return SearchResult(
            ids=[hits.ids[position] for position in kept],
            scores=hits.scores[kept],
            payloads=[stored[hits.keys[position]].payload for position in kept] if include_payloads else [],
            vectors=view.vectors[hits.slots[kept]] if include_vectors else None,
            plan=hits.plan,
            sequence=view.sequence,
            search_seconds=search_seconds,
            fetch_seconds=fetch_seconds,
        )

    def _search_newest(
        self, query: Vector, k: int, filter: Filter | None, excluded_ids: Container[str], threshold: float | None
    ) -> tuple[View, Hits]:
        view = self._index.view
        hits = view.search(query, k, filter, excluded_ids)
        return view, hits if threshold is None else hits.at_least(threshold)

    async def _matching_items(self, filter: Filter, after: str, limit: int) -> list[StoredItem]:
        for _ in range(ATTEMPTS):
            keys = await self._engine.searching.run(partial(self._next_keys, filter, after, limit))
            stored = await self._engine.reading.run(partial(self._engine.store.items_by_key, keys))
            if len(stored) == len(keys):
                break
            await self._settled()
        return [stored[key] for key in keys if key in stored]

    def _next_keys(self, filter: Filter, after: str, limit: int) -> list[int]:
        view = self._index.view
        slots = np.flatnonzero(view.matching(filter))
        # Python orders text by code points, which is the order of its UTF-8 bytes.
        named = zip(view.rows.ids(slots), view.rows.keys(slots), strict=True)
        return [key for _, key in heapq.nsmallest(limit, (pair for pair in named if pair[0] > after))]

    async def _write(self, write: Write[Result]) -> Result:
        started = perf_counter()
        result = await asyncio.wrap_future(self._engine.writer.submit(write))
        self._observe("write", perf_counter() - started)
        return result

    async def _settled(self) -> None:
        """Waits until the view has what the disk has; raises NotFound if that is the collection's end."""
        await asyncio.wrap_future(self._engine.writer.settled())
        self._check_exists()

    def _check_exists(self) -> None:
        if self._deleted:
            raise NotFound(f"collection {self.name!r} was deleted", collection=self.name)

    def _check_filter(self, filter: Filter | None) -> None:
        if filter is not None:
            check_filter(filter, self._fields)

    def _check_search(self, top_k: int, threshold: float | None, min_sequence: int | None) -> None:
        if not 1 <= top_k <= MAX_TOP_K:
            raise InvalidArgument(f"top_k is 1 to {MAX_TOP_K}, not {top_k}", field="top_k", limit=MAX_TOP_K)
        if threshold is not None and not (math.isfinite(threshold) and -1 <= threshold <= 1):
            raise InvalidArgument("a score threshold is a cosine, in [-1, 1]", field="score_threshold")
        if min_sequence is not None and min_sequence > self.sequence:
            raise FailedPrecondition(
                f"collection {self.name!r} is at sequence {self.sequence}, not yet at {min_sequence}",
                field="min_sequence",
                sequence=self.sequence,
                min_sequence=min_sequence,
            )

    def _observe(self, stage: str, seconds: float) -> None:
        self._engine.metrics.stage_seconds.labels(stage).observe(seconds)
