"""Any order of writes, reads, index builds and restarts answers as a dictionary and numpy would."""

import asyncio
import json
import random
import tempfile
from collections.abc import Awaitable
from pathlib import Path
from typing import Any, TypeVar

import faiss
import numpy as np
import pytest
from hypothesis import HealthCheck, event, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from numpy.typing import NDArray

from lookwire_server.metrics import Metrics
from lookwire_server.search import collection as collection_module
from lookwire_server.search.collection import Collection
from lookwire_server.search.collections import Collections
from lookwire_server.search.filters import Filter
from lookwire_server.search.index import build, builder, hnsw, ivf, live
from lookwire_server.search.index.generation import Generation
from lookwire_server.search.index.load import load
from lookwire_server.search.items import NewItem
from lookwire_server.search.plan import Method
from lookwire_server.search.search_options import SearchOptions
from lookwire_server.search.searcher import SearchResult
from lookwire_server.search.store.collections import CollectionRow, IndexKind, IndexSettings, NewCollection
from lookwire_server.search.store.store import Store

from .conftest import DIMENSION, FIELDS
from .plain_filter import DOUBLES, IDS, INTEGERS, STRINGS, filters, payloads, satisfies

T = TypeVar("T")
VECTORS = st.lists(st.integers(-2, 2), min_size=DIMENSION, max_size=DIMENSION).filter(any)
SOME_IDS = st.lists(st.sampled_from(IDS), max_size=3)
ITEMS = st.dictionaries(st.sampled_from(IDS), st.tuples(payloads(), VECTORS), min_size=1, max_size=4)
Items = dict[str, tuple[dict[str, Any], list[int]]]
# Steps of a build between which items are written: before changes are recorded, before the store is read, and after it.
MOMENTS = ("swap.before_load", "load", "swap.before_swap")
# Items that come at once, so many that an approximate index leaves some of them out.
CROWD = 80
TARGET_RECALL = 0.9
# Queries that the recall is measured with; their mean may be this much below what was measured with others.
MEASURED_QUERIES = 64
SLACK = 0.15


class CollectionMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        # FAISS's threads would wait for each other longer than such small indexes take.
        self.threads = faiss.omp_get_max_threads()
        faiss.omp_set_num_threads(1)
        self.directory = tempfile.TemporaryDirectory()
        self.loop = asyncio.new_event_loop()
        self.patch = pytest.MonkeyPatch()
        # So small that a few items reach every plan and the compaction.
        self.patch.setattr(live, "COMPACTION_SLOTS", 6)
        self.patch.setattr(builder, "APPROXIMATE_ITEMS", 4)
        self.patch.setattr(ivf, "EXACT_MATCHES", 3)
        self.patch.setattr(hnsw, "EXACT_MATCHES", 3)
        self.patch.setattr(build, "faster", lambda *_: True)
        self.patch.setattr(ivf, "MIN_CELL_VECTORS", 4)
        self.patch.setattr(collection_module, "ENOUGH_QUERIES", 4)
        # A child process for each build would take a second.
        self.patch.setattr(builder.Builder, "_run_child", lambda _, order: build.build(order))
        self.meanwhile: dict[str, tuple[Items, list[str]]] = {}
        self.patch.setattr(builder, "reach", self.reach)
        self.patch.setattr(builder, "load", self.load)
        self.payloads: dict[str, dict[str, Any]] = {}
        self.vectors: dict[str, NDArray[np.float64]] = {}
        self.sequences: dict[str, int] = {}
        self.sequence = 0
        self.generation = 0
        self.collections = self.opened()

    def reach(self, moment: str) -> None:
        if moment in self.meanwhile:
            items, deleted = self.meanwhile.pop(moment)
            self.upsert(items)
            self.delete(deleted, None)

    def load(self, store: Store, row: CollectionRow, generation: Generation) -> live.VectorIndex:
        self.reach("load")
        return load(store, row, generation)

    def opened(self) -> Collections:
        return Collections.open(Path(self.directory.name), Metrics(), search_threads=1, on_failure=print)

    def teardown(self) -> None:
        self.collections.close()
        self.patch.undo()
        faiss.omp_set_num_threads(self.threads)
        self.loop.close()
        self.directory.cleanup()

    def wait(self, work: Awaitable[T]) -> T:
        return self.loop.run_until_complete(work)

    @property
    def collection(self) -> Collection:
        return self.collections.get("c")

    def matching(self, filter: Filter | None) -> list[str]:
        return sorted(
            (id for id, payload in self.payloads.items() if filter is None or satisfies(filter, id, payload)),
            key=str.encode,
        )

    @initialize(kind=st.sampled_from(IndexKind), crowd=st.none() | st.integers(0, 99))
    def create(self, kind: IndexKind, crowd: int | None) -> None:
        new = NewCollection("c", "clip", "f", DIMENSION, FIELDS, IndexSettings(kind, TARGET_RECALL))
        self.wait(self.collections.create(new))
        if crowd is not None:
            self.upsert_a_crowd(crowd)

    @rule(items=ITEMS)
    def upsert(self, items: Items) -> None:
        self.write({id: (payload, np.array(vector, np.float64)) for id, (payload, vector) in items.items()})

    @rule(seed=st.integers(0, 99))
    def upsert_a_crowd(self, seed: int) -> None:
        chance, vectors = random.Random(seed), np.random.default_rng(seed).standard_normal((CROWD, DIMENSION))
        members = [
            {"brand": chance.choice(STRINGS), "stock": chance.choice(INTEGERS), "price": chance.choice(DOUBLES)}
            for _ in vectors
        ]
        first = chance.randrange(CROWD)
        self.write({f"n{first + place}": pair for place, pair in enumerate(zip(members, vectors, strict=True))})

    def write(self, items: dict[str, tuple[dict[str, Any], NDArray[np.float64]]]) -> None:
        replaced = len(items.keys() & self.payloads.keys())

        written = self.wait(
            self.collection.upsert(
                [NewItem(id, json.dumps(payload).encode()) for id, (payload, _) in items.items()],
                np.stack([vector for _, vector in items.values()]),
            )
        )

        self.sequence += 1
        assert (written.sequence, written.replaced) == (self.sequence, replaced)
        assert written.inserted == len(items) - replaced
        for id, (payload, vector) in items.items():
            self.payloads[id] = payload
            self.vectors[id] = vector / np.linalg.norm(vector)
            self.sequences[id] = self.sequence

    @rule(ids=SOME_IDS.filter(bool), crowd=st.none() | st.integers(0, CROWD))
    def delete(self, ids: list[str], crowd: int | None) -> None:
        ids = ids if crowd is None else [*ids, *(f"n{crowd + place}" for place in range(CROWD // 4))]
        gone = set(ids) & self.payloads.keys()

        deleted = self.wait(self.collection.delete_items(ids))

        self.sequence += 1
        assert (deleted.sequence, deleted.count) == (self.sequence, len(gone))
        for id in gone:
            del self.payloads[id], self.vectors[id], self.sequences[id]

    @rule(
        query=VECTORS,
        filter=st.none() | filters(),
        k=st.integers(1, 12),
        excluded=SOME_IDS,
        threshold=st.none() | st.sampled_from([-0.75, 0.05, 0.6]),
        far=st.booleans(),
        exact=st.booleans(),
    )
    def search(
        self,
        query: list[int],
        filter: Filter | None,
        k: int,
        excluded: list[str],
        threshold: float | None,
        far: bool,
        exact: bool,
    ) -> None:
        options = SearchOptions(
            filter=filter,
            far=far,
            top_k=k,
            excluded_ids=excluded,
            score_threshold=threshold,
            include_vectors=True,
            exact=exact,
        )
        result = self.wait(self.collection.search(np.array(query), options, min_sequence=self.sequence))

        event(f"searched by {result.plan.method} in generation {min(result.plan.generation, 1)}")
        matching = self.matching(filter)
        unit = np.array(query) / np.linalg.norm(query)
        scores = {id: float(self.vectors[id] @ unit) for id in matching if id not in excluded}
        best = sorted(scores.values(), reverse=True)[:k]
        expected = [score for score in best if threshold is None or score >= threshold]
        if result.plan.method in (Method.EXACT, Method.GATHER):
            np.testing.assert_allclose(result.scores, expected, atol=1e-6)
        else:
            assert not exact
            assert threshold is not None or len(result.ids) == len(expected)
            assert (np.diff(result.scores) <= 0).all()
        # That these are scores of matching items means that no other item is among the hits.
        np.testing.assert_allclose(result.scores, [scores[id] for id in result.ids], atol=1e-6)
        assert threshold is None or (result.scores >= np.float32(threshold)).all()
        assert len(set(result.ids)) == len(result.ids)
        assert [json.loads(payload) for payload in result.payloads] == [self.payloads[id] for id in result.ids]
        assert result.vectors is not None
        np.testing.assert_allclose(result.vectors, self.rows(result.ids), atol=1e-6)
        assert (result.plan.item_count, result.plan.match_count) == (len(self.payloads), len(matching))
        assert (result.sequence, result.plan.generation) == (self.sequence, self.generation)

    @rule(seed=st.integers(0, 99), filter=st.none() | filters())
    def recall(self, seed: int, filter: Filter | None) -> None:
        queries = np.random.default_rng(seed).standard_normal((MEASURED_QUERIES, DIMENSION))
        matching = self.matching(filter)
        options = SearchOptions(filter=filter, far=False)

        async def together() -> list[SearchResult]:
            return await asyncio.gather(*(self.collection.search(query, options) for query in queries))

        recalls = []
        for query, result in zip(queries, self.wait(together()), strict=True):
            true = np.sort(self.rows(matching) @ query / np.linalg.norm(query))[::-1][: options.top_k]
            assert len(result.ids) == len(true)
            recalls += [score >= true[-1] - 1e-6 for score in result.scores]

        if recalls:
            event(f"recall by {result.plan.method}")
            assert np.mean(recalls) >= TARGET_RECALL - SLACK

    @rule(writes=st.dictionaries(st.sampled_from(MOMENTS), ITEMS), deleted=SOME_IDS.filter(bool), query=VECTORS)
    def build_index(self, writes: dict[str, Items], deleted: list[str], query: list[int]) -> None:
        """Some items are written while the index is built and put in place, each time with a deletion after it."""
        self.meanwhile = {moment: (items, deleted) for moment, items in writes.items()}

        self.collections._engine.builder._build(self.collection)

        self.generation += 1
        assert self.meanwhile == {}
        assert self.collection.generations.numbers() == [self.generation]
        self.search(query, None, 10, [], None, far=False, exact=False)

    @rule(filter=st.none() | filters(), page_size=st.integers(1, 4))
    def list_and_count(self, filter: Filter | None, page_size: int) -> None:
        page_size = page_size if len(self.payloads) < CROWD else page_size * 10
        items, token = [], None
        while token != "":
            page = self.wait(self.collection.list_items(filter, page_size=page_size, page_token=token or ""))
            assert len(page.items) <= page_size
            items += page.items
            token = page.next_page_token

        assert [item.id for item in items] == self.matching(filter)
        assert [json.loads(item.payload) for item in items] == [self.payloads[item.id] for item in items]
        assert self.wait(self.collection.count(filter)) == len(items)

    @rule(ids=SOME_IDS.filter(bool))
    def get(self, ids: list[str]) -> None:
        found = self.wait(self.collection.get_items(ids, include_vectors=True))

        present = [id for id in ids if id in self.payloads]
        assert [(item.id, item.sequence) for item in found.items] == [(id, self.sequences[id]) for id in present]
        assert found.missing == [id for id in ids if id not in self.payloads]
        assert found.vectors is not None
        np.testing.assert_allclose(found.vectors, self.rows(present), atol=1e-6)
        np.testing.assert_array_equal(found.vectors, self.wait(self.collection.vectors_of(present, "ids")))

    @rule()
    def restart(self) -> None:
        self.collections.close()
        self.collections = self.opened()

    @invariant()
    def counts_agree(self) -> None:
        collection = self.collections.list()[0] if self.collections.list() else None
        if collection is not None:
            assert (collection.item_count, collection.sequence) == (len(self.payloads), self.sequence)

    def rows(self, ids: list[str]) -> NDArray[np.float64]:
        return np.array([self.vectors[id] for id in ids]).reshape(len(ids), DIMENSION)


# A failure takes minutes to be cut down to the few steps that it needs.
TestCollections = pytest.mark.timeout(600)(CollectionMachine.TestCase)
TestCollections.settings = settings(
    max_examples=30, stateful_step_count=30, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
