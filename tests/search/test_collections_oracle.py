"""Any order of writes, reads and restarts answers as a dictionary and numpy would."""

import asyncio
import json
import tempfile
from collections.abc import Awaitable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from numpy.typing import NDArray

from lookwire_server.metrics import Metrics
from lookwire_server.search import index, view
from lookwire_server.search.collection import Collection
from lookwire_server.search.collections import Collections
from lookwire_server.search.filters import Filter
from lookwire_server.search.items import NewItem

from .conftest import DIMENSION, FIELDS
from .plain_filter import IDS, filters, payloads, satisfies

T = TypeVar("T")
VECTORS = st.lists(st.integers(-2, 2), min_size=DIMENSION, max_size=DIMENSION).filter(any)
SOME_IDS = st.lists(st.sampled_from(IDS), max_size=3)


class CollectionMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.directory = tempfile.TemporaryDirectory()
        self.loop = asyncio.new_event_loop()
        self.patch = pytest.MonkeyPatch()
        # So small that a few items reach both plans and the compaction.
        self.patch.setattr(index, "COMPACTION_SLOTS", 6)
        self.patch.setattr(view, "GATHER_MATCHES", 2)
        self.payloads: dict[str, dict[str, Any]] = {}
        self.vectors: dict[str, NDArray[np.float64]] = {}
        self.sequences: dict[str, int] = {}
        self.sequence = 0
        self.collections = self.opened()

    def opened(self) -> Collections:
        return Collections.open(Path(self.directory.name), Metrics(), search_threads=1, on_failure=print)

    def teardown(self) -> None:
        self.collections.close()
        self.patch.undo()
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

    @initialize()
    def create(self) -> None:
        self.wait(self.collections.create("c", "clip", "f", DIMENSION, FIELDS))

    @rule(items=st.dictionaries(st.sampled_from(IDS), st.tuples(payloads(), VECTORS), min_size=1, max_size=4))
    def upsert(self, items: dict[str, tuple[dict[str, Any], list[int]]]) -> None:
        replaced = len(items.keys() & self.payloads.keys())
        vectors = np.array([vector for _, vector in items.values()], np.float64)

        written = self.wait(
            self.collection.upsert(
                [NewItem(id, json.dumps(payload).encode()) for id, (payload, _) in items.items()], vectors
            )
        )

        self.sequence += 1
        assert (written.sequence, written.replaced) == (self.sequence, replaced)
        assert written.inserted == len(items) - replaced
        for (id, (payload, _)), vector in zip(items.items(), vectors, strict=True):
            self.payloads[id] = payload
            self.vectors[id] = vector / np.linalg.norm(vector)
            self.sequences[id] = self.sequence

    @rule(ids=SOME_IDS.filter(bool))
    def delete(self, ids: list[str]) -> None:
        gone = set(ids) & self.payloads.keys()

        deleted = self.wait(self.collection.delete_items(ids))

        self.sequence += 1
        assert (deleted.sequence, deleted.count) == (self.sequence, len(gone))
        for id in gone:
            del self.payloads[id], self.vectors[id], self.sequences[id]

    @rule(
        query=VECTORS,
        filter=st.none() | filters(),
        k=st.integers(1, 6),
        excluded=SOME_IDS,
        threshold=st.none() | st.sampled_from([-0.75, 0.05, 0.6]),
    )
    def search(
        self, query: list[int], filter: Filter | None, k: int, excluded: list[str], threshold: float | None
    ) -> None:
        result = self.wait(
            self.collection.search(
                np.array(query),
                filter=filter,
                top_k=k,
                excluded_ids=excluded,
                score_threshold=threshold,
                include_vectors=True,
                min_sequence=self.sequence,
            )
        )

        matching = self.matching(filter)
        unit = np.array(query) / np.linalg.norm(query)
        scores = {id: float(self.vectors[id] @ unit) for id in matching if id not in excluded}
        best = sorted(scores.values(), reverse=True)[:k]
        expected = [score for score in best if threshold is None or score >= threshold]
        np.testing.assert_allclose(result.scores, expected, atol=1e-6)
        np.testing.assert_allclose(result.scores, [scores[id] for id in result.ids], atol=1e-6)
        assert len(set(result.ids)) == len(result.ids)
        assert [json.loads(payload) for payload in result.payloads] == [self.payloads[id] for id in result.ids]
        assert result.vectors is not None
        np.testing.assert_allclose(result.vectors, self.rows(result.ids), atol=1e-6)
        assert (result.plan.item_count, result.plan.match_count) == (len(self.payloads), len(matching))
        assert result.sequence == self.sequence

    @rule(filter=st.none() | filters(), page_size=st.integers(1, 4))
    def list_and_count(self, filter: Filter | None, page_size: int) -> None:
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
        np.testing.assert_array_equal(found.vectors, self.collection.vectors_of(present, "ids"))

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


TestCollections = CollectionMachine.TestCase
TestCollections.settings = settings(
    max_examples=40, stateful_step_count=30, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
