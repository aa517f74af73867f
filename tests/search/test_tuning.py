"""Effort is tuned by recall, and the recall holds for queries that the tuning did not see."""

import time
from collections.abc import Iterator
from dataclasses import dataclass

import faiss
import numpy as np
import pytest

from benchmarks.load.embeddings import Embeddings
from lookwire_server.search.index import hnsw
from lookwire_server.search.index.exact import ExactIndex
from lookwire_server.search.index.hnsw import HnswIndex
from lookwire_server.search.index.ivf import IvfIndex
from lookwire_server.search.index.sealed import Answer, Effort, Mask, Sealed, Slots
from lookwire_server.search.index.tuning import FAR_EFFORT, Tuned, faster, measure, tune
from lookwire_server.search.vectors import HalfMatrix, Matrix

COUNT = 12_000
DIMENSION = 64
KINDS = pytest.mark.parametrize("kind", ["ivf", "hnsw"])


@pytest.fixture(autouse=True, scope="module")
def one_core() -> Iterator[None]:
    """As the server's threads have it."""
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    yield
    faiss.omp_set_num_threads(before)


@pytest.fixture(scope="module")
def world() -> Embeddings:
    return Embeddings(DIMENSION)


@pytest.fixture(scope="module")
def vectors(world: Embeddings) -> HalfMatrix:
    return world.items(COUNT).vectors.astype(np.float16)


@pytest.fixture(scope="module")
def indexes(vectors: HalfMatrix) -> dict[str, Sealed]:
    return {"ivf": IvfIndex.build(vectors, None), "hnsw": HnswIndex.build(vectors)}


@pytest.fixture(scope="module")
def slots() -> Slots:
    return np.linspace(0, COUNT - 1, 256).astype(np.int64)


@pytest.fixture(scope="module")
def near(vectors: HalfMatrix, slots: Slots) -> Matrix:
    return vectors[slots].astype(np.float32)


@pytest.fixture(scope="module")
def far(world: Embeddings) -> Matrix:
    return world.far_queries(556)[300:]


def recall(index: Sealed, vectors: HalfMatrix, queries: Matrix, effort: int, selected: Mask | None = None) -> float:
    """Recall at 10, counted apart from the code under test."""
    matches = COUNT if selected is None else int(selected.sum())
    products = queries @ vectors.astype(np.float32).T
    if selected is not None:
        products[:, ~selected] = -1
    tenth = np.sort(products, axis=1)[:, -10]
    found = np.take_along_axis(products, index.search(queries, 10, selected, matches, effort).slots, 1)
    return float((found >= tenth[:, None] - 1e-5).mean())


@KINDS
@pytest.mark.parametrize("target", [0.9, 0.98])
def test_recall_holds_for_new_queries(
    kind: str,
    target: float,
    indexes: dict[str, Sealed],
    world: Embeddings,
    vectors: HalfMatrix,
    near: Matrix,
    far: Matrix,
    slots: Slots,
) -> None:
    """With the tuned effort, new pictures and new texts have the recall wanted; with half of it texts have not."""
    index = indexes[kind]

    tuned = tune(index, near, far, target, slots)

    assert tuned.reached(target)
    assert recall(index, vectors, world.near_queries(300), tuned.effort.near) >= target - 0.01
    assert recall(index, vectors, world.far_queries(300), tuned.effort.far) >= target - 0.01
    assert tuned.effort.far > tuned.effort.near
    assert recall(index, vectors, far, tuned.effort.far // 2) < target


def test_filter_by_content_keeps_the_recall(
    indexes: dict[str, Sealed],
    world: Embeddings,
    vectors: HalfMatrix,
    near: Matrix,
    far: Matrix,
    slots: Slots,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A filter that takes whole kinds away keeps the recall of new pictures, many of which then resemble no item."""
    monkeypatch.setattr("lookwire_server.search.index.ivf.EXACT_MATCHES", 1_000)
    monkeypatch.setattr("lookwire_server.search.index.hnsw.EXACT_MATCHES", 1_000)
    kinds = world.items(COUNT).kinds
    queries = world.near_queries(300)

    for index in indexes.values():
        effort = tune(index, near, far, 0.98, slots).effort
        for kept in (0.6, 0.2):
            selected = (np.random.default_rng(1).random(600) < kept)[kinds]
            assert recall(index, vectors, queries, effort.of(far=False, filtered=True), selected) >= 0.99


@KINDS
def test_without_far_queries_the_effort_is_a_multiple(
    kind: str, indexes: dict[str, Sealed], near: Matrix, slots: Slots
) -> None:
    """Where there are no far queries to measure with, none is claimed to be measured."""
    tuned = tune(indexes[kind], near, None, 0.95, slots)

    assert tuned.effort.far == min(FAR_EFFORT * tuned.effort.near, indexes[kind].max_effort)
    assert tuned.far_recall is None
    assert tuned.near_recall is not None


def test_exact_index_needs_no_effort(vectors: HalfMatrix, near: Matrix, far: Matrix, slots: Slots) -> None:
    """An index that compares every item has a recall of 1 at effort 0."""
    assert tune(ExactIndex(vectors), near, far, 0.98, slots) == Tuned(Effort(0, 0), 1.0, 1.0)


def test_recall_of_every_cell_is_whole(indexes: dict[str, Sealed], near: Matrix, far: Matrix, slots: Slots) -> None:
    """A target of 1 is reached, at the latest by probing every cell."""
    tuned = tune(indexes["ivf"], near, far, 1.0, slots)

    assert (tuned.near_recall, tuned.far_recall) == (1.0, 1.0)
    assert tuned.effort.far <= indexes["ivf"].max_effort


def test_recall_out_of_reach_is_told(
    vectors: HalfMatrix, near: Matrix, far: Matrix, slots: Slots, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where no effort reaches the target, the largest is taken and the recall is the one that it has."""
    monkeypatch.setattr(hnsw, "MAX_EF_SEARCH", 2)

    tuned = tune(HnswIndex.build(vectors[:5_000]), near[:60], far, 0.999, slots[:60])

    assert tuned.effort.far == 2
    assert not tuned.reached(0.999)


def test_recall_is_measured_among_what_is_alive(
    indexes: dict[str, Sealed], vectors: HalfMatrix, far: Matrix, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A later measurement leaves out the slots that are dead, and measures only what there are queries for."""
    monkeypatch.setattr("lookwire_server.search.index.ivf.EXACT_MATCHES", 1_000)
    alive = np.random.default_rng(2).random(COUNT) < 0.9
    index = indexes["ivf"]

    measured = measure(index, Effort(2, 2), None, far, None, alive)

    assert measured.near_recall is None
    assert measured.far_recall == pytest.approx(recall(index, vectors, far, 2, alive), abs=0.02)
    assert measured.far_recall is not None
    assert measured.far_recall < 0.9


def test_equal_items_are_equally_good() -> None:
    """Which of many copies of one item is found makes no difference to the recall."""
    one = np.random.default_rng(0).standard_normal((40, 16)).astype(np.float32)
    one /= np.linalg.norm(one, axis=1, keepdims=True)
    vectors = np.repeat(one, 50, axis=0).astype(np.float16)
    index = IvfIndex.build(vectors, None)

    tuned = tune(index, vectors[::50].astype(np.float32), None, 1.0, np.arange(0, 2_000, 50))

    assert tuned.near_recall == 1.0
    assert tuned.effort.near < index.max_effort


@dataclass
class Slow:
    """An index that takes its time, and longer for a batch if told so."""

    index: ExactIndex
    seconds: float
    seconds_of_query: float = 0.0
    count: int = 100
    max_effort: int = 1
    nbytes: int = 0

    def search(self, queries: Matrix, k: int, selected: Mask | None, match_count: int, effort: int) -> Answer:
        time.sleep(self.seconds + len(queries) * self.seconds_of_query)
        return self.index.search(queries, k, selected, match_count, effort)

    def save(self, path: object) -> None:
        raise NotImplementedError


def test_faster_compares_lone_queries_and_batches(vectors: HalfMatrix) -> None:
    """An index is faster only if it is so both for one query and for eight."""
    exact = ExactIndex(vectors[:100])
    queries = vectors[:8].astype(np.float32)
    slow, quick, bad_at_batches = Slow(exact, 0.006), Slow(exact, 0.001), Slow(exact, 0.0, 0.002)

    assert faster(quick, slow, queries, Effort(1, 1))
    assert not faster(slow, quick, queries, Effort(1, 1))
    assert not faster(bad_at_batches, slow, queries, Effort(1, 1))
