"""One collection: named items that one encoder embedded."""

import asyncio
import heapq
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lookwire_server.errors import FailedPrecondition, NotFound
from lookwire_server.search.backgrounds import Backgrounds
from lookwire_server.search.engine import Engine
from lookwire_server.search.facets import Facets, check_facets, count_facets
from lookwire_server.search.far_queries import ENOUGH_QUERIES, FarQueries
from lookwire_server.search.fields import shown
from lookwire_server.search.filters import Filter, check_filter
from lookwire_server.search.index.generation import described
from lookwire_server.search.index.generations import Generations
from lookwire_server.search.index.live import VectorIndex
from lookwire_server.search.item_writes import (
    Deleted,
    DeleteItems,
    DeleteMatching,
    Imported,
    ImportItems,
    UpdatePayloads,
    UpsertItems,
    Written,
)
from lookwire_server.search.items import (
    CheckedItems,
    NewItem,
    PayloadUpdate,
    StoredItem,
    check_ids,
    check_items,
    check_updates,
)
from lookwire_server.search.latest import latest
from lookwire_server.search.pages import last_id, members_on_page, token_after
from lookwire_server.search.recall import Recall, fell, measured
from lookwire_server.search.search_options import Calibrate, SearchOptions
from lookwire_server.search.searcher import ATTEMPTS, Searcher, SearchResult
from lookwire_server.search.statistics import Statistics
from lookwire_server.search.store.collections import CollectionRow, IndexSettings
from lookwire_server.search.store.requests import Request
from lookwire_server.search.swap import Swap
from lookwire_server.search.vectors import Matrix, Vector, normalised
from lookwire_server.search.writer import Result, Write


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


class Collection:
    """Writes and finds items. Every method may be called while any other runs.

    `row` describes it, and is replaced whole when fields or settings change. `index` is what is in memory, for the writer.
    """

    def __init__(self, row: CollectionRow, index: VectorIndex, engine: Engine) -> None:
        self.row = row
        self.index = index
        self.generations = Generations(engine.store.directory, engine.store.identity, row.number)
        self._engine = engine
        self._searcher = Searcher(engine, index)
        self._write_times = engine.metrics.stage_seconds.labels("write")
        self._far_queries = FarQueries()
        self._backgrounds = Backgrounds(engine, index, self._far_queries, row.dimension)
        # Its further names, in order; replaced whole, by the writer's thread.
        self.aliases: tuple[str, ...] = ()
        self._measured: Recall | None = None
        self._held: asyncio.Event | None = None
        self.deleted = False

    @property
    def name(self) -> str:
        return self.row.name

    @property
    def item_count(self) -> int:
        return self.index.view.item_count

    @property
    def sequence(self) -> int:
        """The number of the last write that a search sees."""
        return self.index.view.sequence

    @property
    def recall(self) -> Recall:
        """What was measured last on the index that is in use."""
        measured, built = self._measured, Recall.built(self.index.view)
        return measured if measured is not None and measured.generation == built.generation else built

    # By the writer and the builder.

    def published(self) -> None:
        """Changes have become visible; those before a deletion that was committed with them concern nobody any more."""
        if self.deleted:
            return
        self._engine.metrics.collection_items.labels(self.name).set(self.index.item_count)
        if self.needs_generation:
            self._engine.builder.request(self)

    @property
    def needs_generation(self) -> bool:
        """Whether much was written since the last generation, it was made by other declarations, or its recall has fallen."""
        if self.index.view.generation is None:
            return self.index.wants_generation
        manifest = self.index.view.generation.manifest
        made_by = IndexSettings(manifest.requested, manifest.target_recall), manifest.fields
        fallen = self._measured is not None and fell(self._measured, self.index.view)
        return self.index.wants_generation or made_by != (self.row.index, described(self.row.fields)) or fallen

    def mark_deleted(self) -> None:
        """Makes every further call raise NotFound. Searches that run are not disturbed."""
        self.deleted = True
        self._engine.builder.forget(self.row.number)
        self.generations.remove()

    def far_queries(self) -> Matrix | None:
        """Returns queries [n, d] of another kind than the items, as they came, or probes; None if they are too few."""
        if self.wants_probes:
            self._engine.probe(self)
        queries = self._far_queries.matrix()
        return queries if queries is not None and len(queries) >= ENOUGH_QUERIES else None

    def measure_recall(self, stopped: Callable[[], bool]) -> None:
        """Measures what searches find now, and asks for a new generation if that is too little."""
        far = self.far_queries()
        recall = None if far is None else measured(self._engine.store, self.index.view, far, stopped)
        if recall is not None:
            self._measured = recall
            if self.needs_generation:
                self._engine.builder.request(self)

    def swap(self, index: VectorIndex) -> None:
        """Makes a loaded index the collection's own; returns when it is visible."""
        self._engine.writer.submit(Swap(self, index)).result()

    # By the event loop.

    @property
    def wants_probes(self) -> bool:
        """Whether few queries of another kind than the items have come, and no probes."""
        return self._far_queries.want_probes

    def set_probes(self, probes: Matrix) -> None:
        """Takes vectors [n, d] of length 1, of texts such as queries may be, to measure with until queries have come."""
        self._far_queries.set_probes(probes)

    def check(self, items: Sequence[NewItem]) -> CheckedItems:
        """Returns the items with the values that filters use; raises InvalidArgument if they may not be written."""
        return check_items(items, self.row.fields)

    def normalised(self, vector: NDArray[Any], field: str) -> Vector:
        """Returns the vector with length 1; raises InvalidVector with the path `field`."""
        row: Vector = normalised(vector.reshape(1, -1), self.row.dimension, lambda _: field)[0]
        return row

    async def written_before(self, request: Request) -> Written | None:
        """Returns what an earlier request of the same key wrote, when that is visible; None if there was none.

        Raises InvalidArgument if it asked for something else.
        """
        self.check_exists()
        answer = await self._engine.reading.run(partial(self._engine.store.requests.answered, self.row.number, request))
        if answer is None:
            return None
        await asyncio.wrap_future(self._engine.writer.settled())
        return Written(*answer)

    async def upsert(
        self, items: Sequence[NewItem] | CheckedItems, vectors: NDArray[Any], request: Request | None = None
    ) -> Written:
        """Writes all items or none; when it returns they are on disk and visible. `vectors` has a row for each item.

        With a `request` that was carried out before nothing is written, and what it wrote then is returned. Raises Conflict
        for an item that is not at its `if_sequence`.
        """
        self.check_exists()
        checked = items if isinstance(items, CheckedItems) else self.check(items)
        if len(vectors) != len(checked.items):
            raise ValueError(f"{len(vectors)} vectors for {len(checked.items)} items")
        rows = normalised(vectors, self.row.dimension, lambda position: f"items[{position}].vector")
        return await self.write(UpsertItems(self, checked, rows, request))

    async def import_items(self, positions: Sequence[int], items: CheckedItems, vectors: Matrix) -> Imported:
        """Writes those items, whose ids differ, that can be written; the others have errors by their `positions`.

        `vectors` has a row of length 1 for each item. Calls write in the order in which they begin.
        """
        self.check_exists()
        return await self.write(ImportItems(self, positions, items, vectors))

    async def update_payloads(self, updates: Sequence[PayloadUpdate]) -> int:
        """Changes all payloads or none; returns the number of the write when it is on disk and visible.

        Raises NotFound for an item that does not exist, Conflict for one that is not at its `if_sequence`.
        """
        self.check_exists()
        check_updates(updates)
        return await self.write(UpdatePayloads(self, updates))

    async def delete_items(self, ids: Sequence[str]) -> Deleted:
        """Removes the items that exist; when it returns this is on disk and visible."""
        self.check_exists()
        check_ids(ids)
        return await self.write(DeleteItems(self, ids))

    async def delete_matching(self, filter: Filter) -> Deleted:
        """Removes the items that match when the write comes to its turn; when it returns this is on disk and visible."""
        self.check_exists()
        self.check_filter(filter)
        return await self.write(DeleteMatching(self, filter))

    async def get_items(self, ids: Sequence[str], *, include_vectors: bool = False) -> Found:
        self.check_exists()
        check_ids(ids)
        stored = await self._engine.reading.run(partial(self._engine.store.items.by_id, self.row.number, ids))
        present = [stored[id] for id in ids if id in stored]
        vectors = None
        if include_vectors:
            content = b"".join(vector for _, vector in present)
            vectors = np.frombuffer(content, "<f4").reshape(len(present), self.row.dimension)
        return Found([item for item, _ in present], vectors, [id for id in ids if id not in stored])

    async def list_items(self, filter: Filter | None = None, *, page_size: int = 0, page_token: str = "") -> Page:
        """Returns the items that match, in the order of the UTF-8 bytes of their ids."""
        self.check_exists()
        self.check_filter(filter)
        size = members_on_page(page_size)
        after = last_id(page_token, self._scope(filter)) if page_token else ""
        if filter is None:
            # One more than fits, to know whether there is a further page.
            store = self._engine.store
            items = await self._engine.reading.run(partial(store.items.after, self.row.number, after, size + 1))
        else:
            return await self._matching_page(filter, after, size)
        token = token_after(items[size - 1].id, self._scope(filter)) if len(items) > size else ""
        return Page(items[:size], token)

    async def count(self, filter: Filter | None = None) -> int:
        self.check_exists()
        self.check_filter(filter)
        view = self.index.view
        if filter is None:
            return view.item_count
        return await self._engine.searching.run(lambda: int(np.count_nonzero(view.matching(filter))))

    async def facets(self, names: Sequence[str], filter: Filter | None = None, *, limit: int = 10) -> Facets:
        """Counts the items that match by the values of fields; returns the `limit` commonest values of each."""
        self.check_exists()
        view = self.index.view
        fields = {field.name: field for field in view.columns.fields}
        check_facets(names, limit, fields)
        if filter is not None:
            check_filter(filter, fields)
        return await self._engine.searching.run(partial(count_facets, view, names, filter, limit))

    async def vectors_of(self, ids: Sequence[str], field: str) -> Matrix:
        """Returns a row for each id; raises NotFound, with the path `field`, for the first that does not exist."""
        self.check_exists()
        stored = await self._engine.reading.run(partial(self._engine.store.items.by_id, self.row.number, ids))
        for id in ids:
            if id not in stored:
                raise NotFound(
                    f"collection {self.name!r} has no item {shown(id)}", field=field, collection=self.name, item=id
                )
        content = b"".join(stored[id][1] for id in ids)
        rows: Matrix = np.frombuffer(content, "<f4").reshape(len(ids), self.row.dimension)
        return rows

    async def search(
        self,
        vector: NDArray[Any],
        options: SearchOptions = SearchOptions(),  # noqa: B008 - it cannot change
        *,
        min_sequence: int | None = None,
    ) -> SearchResult:
        """Returns the items of the highest cosine with the vector, best first, each with the payload of that version."""
        self.check_exists()
        self.check_filter(options.filter)
        row = self.row
        options.check(row.fields)
        if min_sequence is not None and min_sequence > self.sequence:
            raise FailedPrecondition(
                f"collection {self.name!r} is at sequence {self.sequence}, not yet at {min_sequence}",
                field="min_sequence",
                sequence=self.sequence,
                min_sequence=min_sequence,
            )
        query = self.normalised(vector, "query.vector")
        if options.far:
            self._far_queries.add(query)
        result = await self._searcher.search(row, query, options, await self._calibrate(options))
        self.check_exists()
        return result

    async def _calibrate(self, options: SearchOptions) -> Calibrate | None:
        if not options.calibrated:
            return None
        if options.probability is not None:
            return options.probability
        background = await self._backgrounds.of(options.far)
        return partial(background.scores, item_count=self.item_count)

    def check_filter(self, filter: Filter | None) -> None:
        """Raises InvalidArgument unless the filter fits the declared fields."""
        if filter is not None:
            check_filter(filter, {field.name: field for field in self.row.fields})

    async def statistics(self) -> Statistics:
        self.check_exists()
        building = self._engine.builder.building(self.row.number)
        return await self._engine.reading.run(
            partial(Statistics.of, self.index.view, self.generations, self.recall, building=building)
        )

    @contextmanager
    def writes_held(self) -> Iterator[None]:
        """Lets writes that come wait until the block ends; those that the writer has already are carried out."""
        held = self._held = asyncio.Event()
        try:
            yield
        finally:
            self._held = None
            held.set()

    async def write(self, write: Write[Result]) -> Result:
        """Has the writer carry out a change; returns when it is on disk and visible."""
        while self._held is not None:
            await self._held.wait()
        started = perf_counter()
        result = await asyncio.wrap_future(self._engine.writer.submit(write))
        self._write_times.observe(perf_counter() - started)
        return result

    def _scope(self, filter: Filter | None) -> str:
        """What binds a page token to one list; as long as the filter."""
        return f"{self.row.number} {filter!r}"

    async def _matching_page(self, filter: Filter, after: str, size: int) -> Page:
        for _ in range(ATTEMPTS):
            # One more than fits, to know whether there is a further page.
            keys = await self._engine.searching.run(partial(self._next_keys, filter, after, size + 1))
            shown = dict(list(keys.items())[:size])
            stored = await self._engine.reading.run(partial(self._engine.store.items.by_key, list(shown.values())))
            if len(stored) == len(shown):
                break
            # Some were replaced meanwhile; the next view has what the disk has.
            await asyncio.wrap_future(self._engine.writer.settled())
            self.check_exists()
        items = {id: stored[key][0] for id, key in shown.items() if key in stored}
        replaced = [id for id in shown if id not in items]
        if replaced:
            # They are replaced all the time.
            found = await self._engine.reading.run(partial(latest, self._engine.store, self.row, replaced, filter))
            items.update({id: item for id, (item, _) in found.items()})
        last = list(shown)[-1:]
        token = token_after(last[0], self._scope(filter)) if len(keys) > size else ""
        return Page([items[id] for id in shown if id in items], token)

    def _next_keys(self, filter: Filter, after: str, limit: int) -> dict[str, int]:
        """Returns the keys of the next items by id, in the order of the ids."""
        view = self.index.view
        slots = np.flatnonzero(view.matching(filter))
        # Python orders text by code points, which is the order of its UTF-8 bytes.
        named = zip(view.rows.ids(slots), view.rows.keys(view.count)[slots].tolist(), strict=True)
        return dict(heapq.nsmallest(limit, (pair for pair in named if pair[0] > after)))

    def check_exists(self) -> None:
        """Raises NotFound if the collection was deleted."""
        if self.deleted:
            raise NotFound(f"collection {self.name!r} was deleted", collection=self.name)
