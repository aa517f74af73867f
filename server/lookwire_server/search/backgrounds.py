"""The backgrounds of a collection: how alike its items are to queries that have nothing to do with them."""

import asyncio
from dataclasses import dataclass
from functools import partial

import numpy as np

from lookwire_server.search.engine import Engine
from lookwire_server.search.far_queries import FarQueries
from lookwire_server.search.index.live import VectorIndex
from lookwire_server.search.index.view import View
from lookwire_server.search.ranking.calibration import Background
from lookwire_server.search.vectors import Matrix

# They make half a million pairs of two items, and a quarter of a million with queries: more would not change the figures.
SAMPLED_ITEMS = 1_024
# A collection that has grown or shrunk by this share is sampled again.
CHANGED_SHARE = 0.1


@dataclass(frozen=True, slots=True)
class _Sampled:
    background: Background
    item_count: int
    by_queries: bool


class Backgrounds:
    """Sampled when they are asked for, and kept until the collection is another one; for the event loop."""

    def __init__(self, engine: Engine, index: VectorIndex, far_queries: FarQueries, dimension: int) -> None:
        self._engine = engine
        self._index = index
        self._far_queries = far_queries
        self._dimension = dimension
        self._sampled: dict[bool, _Sampled] = {}
        self._sampling = asyncio.Lock()

    async def of(self, far: bool) -> Background:
        """Returns that of queries of another kind than the items, or of items as queries."""
        if not self._is_current(far):
            # One sample serves all who wait for it.
            async with self._sampling:
                if not self._is_current(far):
                    view, by_queries = self._index.view, self._far_queries.are_enough
                    background = await self._engine.reading.run(partial(self._sample, view, far))
                    self._sampled[far] = _Sampled(background, view.item_count, by_queries)
        return self._sampled[far].background

    def _is_current(self, far: bool) -> bool:
        known = self._sampled.get(far)
        if known is None or (far and known.by_queries != self._far_queries.are_enough):
            return False
        return abs(self._index.view.item_count - known.item_count) <= CHANGED_SHARE * known.item_count

    def _sample(self, view: View, far: bool) -> Background:
        items = self._items(view)
        if not far:
            first, second = np.triu_indices(len(items), 1)
            return Background.of((items @ items.T)[first, second], self._dimension)
        queries = self._far_queries.matrix()
        cosines = np.empty(0, np.float32) if queries is None else (queries @ items.T).ravel()
        return Background.of(cosines, self._dimension)

    def _items(self, view: View) -> Matrix:
        """Returns the vectors of items at random; by a reader thread."""
        slots = np.flatnonzero(view.alive)
        # The same for the same state of the collection, so that its scores are too.
        random = np.random.default_rng(view.sequence)
        chosen = random.choice(slots, min(SAMPLED_ITEMS, len(slots)), replace=False)
        stored = self._engine.store.items.by_key(view.rows.keys(view.count)[chosen].tolist())
        content = b"".join(vector for _, vector in stored.values())
        return np.frombuffer(content, "<f4").reshape(-1, self._dimension)
