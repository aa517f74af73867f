"""Sealed indexes answer alike, obey filters, and do so from their files and from many threads at once."""

import resource
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import faiss
import numpy as np
import pytest
from numpy.typing import NDArray

from benchmarks.load.embeddings import Embeddings
from lookwire_server.search.index import exact, hnsw, ivf
from lookwire_server.search.index.exact import ExactIndex, nearest, widened
from lookwire_server.search.index.hnsw import HnswIndex
from lookwire_server.search.index.ivf import IvfIndex
from lookwire_server.search.index.sealed import Effort, Sealed
from lookwire_server.search.plan import Method
from lookwire_server.search.vectors import HalfMatrix, Matrix

COUNT = 9_000
DIMENSION = 64
EFFORTS = {"exact": 0, "ivf": 80, "hnsw": 200}
CLASSES: dict[str, type[ExactIndex] | type[IvfIndex] | type[HnswIndex]] = {
    "exact": ExactIndex,
    "ivf": IvfIndex,
    "hnsw": HnswIndex,
}
KINDS = pytest.mark.parametrize("kind", CLASSES)
Mask = NDArray[np.bool_]


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
def queries(world: Embeddings) -> Matrix:
    """Float32 numbers that float16 has too, so that scores depend on no rounding."""
    return np.concatenate([world.near_queries(20), world.far_queries(20)]).astype(np.float16).astype(np.float32)


@pytest.fixture(scope="module")
def indexes(vectors: HalfMatrix) -> dict[str, Sealed]:
    return {"exact": ExactIndex(vectors), "ivf": IvfIndex.build(vectors, None), "hnsw": HnswIndex.build(vectors)}


def mask(share: float) -> Mask:
    return np.random.default_rng(3).random(COUNT) < share


def best_scores(queries: Matrix, vectors: HalfMatrix, k: int, selected: Mask | None) -> Matrix:
    scores = queries @ vectors.astype(np.float32).T
    return -np.sort(-(scores if selected is None else scores[:, selected]), axis=1)[:, :k]


@pytest.mark.parametrize("query_count", [1, 5, 6, 40])
@pytest.mark.parametrize("share", [None, 0.99, 0.4, 0.1, 0.0003, 0.0])
@pytest.mark.parametrize("k", [1, 10, 2_000])
def test_nearest_is_exact(vectors: HalfMatrix, queries: Matrix, query_count: int, share: float | None, k: int) -> None:
    """For few and many queries, few and many selected rows, the best of them are returned, best first."""
    selected = None if share is None else mask(share)

    scores, rows = nearest(queries[:query_count], vectors, k, selected)

    expected = best_scores(queries[:query_count], vectors, k, selected)
    assert rows.shape == expected.shape
    np.testing.assert_allclose(scores, expected, atol=1e-5)
    products = queries[:query_count] @ vectors.astype(np.float32).T
    np.testing.assert_allclose(scores, np.take_along_axis(products, rows, 1), atol=1e-5)
    assert all(len(set(row)) == len(row) for row in rows.tolist())
    assert selected is None or selected[rows].all()


@pytest.mark.parametrize("query_count", [1, 40])
def test_scores_are_off_by_the_rounding_of_both(world: Embeddings, query_count: int) -> None:
    """Float16 vectors, and queries that are rounded to float16 as well, change a cosine by less than 1e-3."""
    exactly = world.items(COUNT).vectors
    queries = world.far_queries(query_count)

    scores, rows = nearest(queries, exactly.astype(np.float16), 100)

    assert abs(scores - np.take_along_axis(queries @ exactly.T, rows, 1)).max() < 1e-3


@pytest.mark.parametrize("query_count", [3, 12])
@pytest.mark.parametrize("share", [None, 0.9, 0.1])
def test_searches_leave_no_memory_behind(
    vectors: HalfMatrix, queries: Matrix, query_count: int, share: float | None
) -> None:
    """Tens of thousands of queries take no more memory than some."""
    selected = None if share is None else mask(share)[:64]

    def search(times: int) -> int:
        for _ in range(times):
            nearest(queries[:query_count], vectors[:64], 5, selected)
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()

    before = search(500)
    assert search(3_000) - before < 2_000_000


@pytest.mark.parametrize("query_count", [3, 40])
@pytest.mark.parametrize("share", [None, 0.9, 0.1])
def test_threads_share_one_search(
    vectors: HalfMatrix, queries: Matrix, query_count: int, share: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What several threads find together is what one finds."""
    selected = None if share is None else mask(share)
    alone = nearest(queries[:query_count], vectors, 1_500 if share == 0.1 else 10, selected)

    monkeypatch.setattr(exact, "COMPARISONS_OF_A_THREAD", 100)
    monkeypatch.setattr(faiss, "omp_get_max_threads", lambda: 3)
    together = nearest(queries[:query_count], vectors, 1_500 if share == 0.1 else 10, selected)

    np.testing.assert_allclose(together[0], alone[0], atol=1e-6)


def test_widening_is_exact() -> None:
    """Every finite float16, subnormal ones and both zeros as well, becomes the float32 of the same value."""
    bits = np.arange(1 << 16).astype(np.uint16).view(np.float16)
    halves = bits[np.isfinite(bits)].reshape(-1, 1)

    wide = widened(halves, np.empty(halves.shape, np.float32))

    np.testing.assert_array_equal(wide.view(np.uint32), halves.astype(np.float32).view(np.uint32))


@KINDS
def test_effort_zero_compares_every_item(
    kind: str, indexes: dict[str, Sealed], vectors: HalfMatrix, queries: Matrix
) -> None:
    """Without effort every kind of index gives the exact answer, with and without a filter, and says so."""
    for selected in (None, mask(0.5)):
        matches = COUNT if selected is None else int(selected.sum())
        answer = indexes[kind].search(queries, 10, selected, matches, 0)

        assert answer.method is Method.EXACT
        np.testing.assert_allclose(answer.scores, best_scores(queries, vectors, 10, selected), atol=1e-5)


@KINDS
@pytest.mark.parametrize("k", [1, 10, 100])
@pytest.mark.parametrize(
    ("share", "methods"),
    [
        (None, {"exact": Method.EXACT, "ivf": Method.IVF, "hnsw": Method.HNSW}),
        (0.7, {"exact": Method.EXACT, "ivf": Method.IVF, "hnsw": Method.HNSW}),
        (0.45, {"exact": Method.EXACT, "ivf": Method.IVF, "hnsw": Method.EXACT}),
        (0.003, {"exact": Method.EXACT, "ivf": Method.EXACT, "hnsw": Method.EXACT}),
    ],
)
def test_filters_are_obeyed_by_every_plan(
    kind: str,
    share: float | None,
    methods: dict[str, Method],
    k: int,
    indexes: dict[str, Sealed],
    vectors: HalfMatrix,
    queries: Matrix,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whatever share matches and whatever the plan, all results match, are as many as asked for, and most are the true ones."""
    monkeypatch.setattr(ivf, "EXACT_MATCHES", 1_000)
    monkeypatch.setattr(hnsw, "EXACT_MATCHES", 1_000)
    selected = None if share is None else mask(share)
    matches = COUNT if selected is None else int(selected.sum())

    answer = indexes[kind].search(queries, k, selected, matches, EFFORTS[kind])

    assert answer.method is methods[kind]
    assert answer.slots.shape == answer.scores.shape == (len(queries), min(k, matches))
    assert answer.slots.min() >= 0
    assert selected is None or selected[answer.slots].all()
    assert (np.diff(answer.scores, axis=1) <= 0).all()
    expected = best_scores(queries, vectors, k, selected)
    assert (answer.scores >= expected[:, -1:] - 1e-5).mean() > (0.95 if k <= 10 else 0.85)


@KINDS
def test_no_match_has_no_results(kind: str, indexes: dict[str, Sealed], queries: Matrix) -> None:
    """A filter that nothing matches gives empty results."""
    answer = indexes[kind].search(queries, 10, np.zeros(COUNT, np.bool_), 0, EFFORTS[kind])

    assert answer.slots.shape == answer.scores.shape == (len(queries), 0)


@pytest.mark.parametrize(("kind", "effort", "k"), [("ivf", 1, 3_000), ("hnsw", 1, 8_000)])
def test_search_that_finds_too_few_compares_every_item(
    kind: str, effort: int, k: int, indexes: dict[str, Sealed], vectors: HalfMatrix, queries: Matrix
) -> None:
    """A query for which the cells or the graph have fewer than k results gets the exact answer, and the reason says so."""
    answer = indexes[kind].search(queries, k, None, COUNT, effort)

    assert (answer.slots >= 0).all()
    if kind == "ivf":
        assert "went through all" in answer.reason
        np.testing.assert_allclose(answer.scores, best_scores(queries, vectors, k, None), atol=1e-5)


def test_probes_rise_as_matches_fall(
    indexes: dict[str, Sealed], queries: Matrix, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An inverted file probes 2 ** 1.5 times the cells where half of the items match, and never more than there are."""
    monkeypatch.setattr(ivf, "EXACT_MATCHES", 100)
    index = indexes["ivf"]

    probes = [index.search(queries, 10, mask(1), matches, 10).probes for matches in (COUNT, COUNT // 2, 101)]

    assert probes == [10, 29, index.max_effort]


@KINDS
def test_saved_index_answers_alike(kind: str, indexes: dict[str, Sealed], queries: Matrix, tmp_path: Path) -> None:
    """An index that was opened from its file gives what the one that wrote it gives, and states its size truly."""
    path = tmp_path / "vectors"
    indexes[kind].save(path)

    opened = CLASSES[kind].open(path)

    assert opened.count == COUNT
    assert opened.nbytes == indexes[kind].nbytes
    assert opened.nbytes == pytest.approx(path.stat().st_size, rel=0.05)
    for selected, matches in ((None, COUNT), (mask(0.6), int(mask(0.6).sum()))):
        for effort in (0, EFFORTS[kind]):
            expected = indexes[kind].search(queries, 10, selected, matches, effort)
            answer = opened.search(queries, 10, selected, matches, effort)
            np.testing.assert_array_equal(answer.slots, expected.slots)
            np.testing.assert_array_equal(answer.scores, expected.scores)


@KINDS
def test_file_of_another_kind_is_refused(kind: str, indexes: dict[str, Sealed], tmp_path: Path) -> None:
    """A file that holds something else is refused with an error that names it."""
    path = tmp_path / "vectors"
    indexes["hnsw" if kind == "ivf" else "ivf"].save(path)

    with pytest.raises((ValueError, RuntimeError), match="magic string" if kind == "exact" else "vectors"):
        CLASSES[kind].open(path)


def test_empty_exact_index_can_be_kept(tmp_path: Path) -> None:
    """A collection of no items has a sealed index as well."""
    ExactIndex(np.empty((0, 8), np.float16)).save(tmp_path / "vectors")

    opened = ExactIndex.open(tmp_path / "vectors")

    assert opened.count == 0
    assert opened.search(np.ones((2, 8), np.float32), 3, None, 0, 0).slots.shape == (2, 0)


def test_cells_of_the_previous_index_are_used_again(
    indexes: dict[str, Sealed], world: Embeddings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a previous index nothing is trained, and the new vectors are found in its cells."""
    previous = indexes["ivf"]
    assert isinstance(previous, IvfIndex)
    grown = world.items(12_000).vectors.astype(np.float16)
    monkeypatch.setattr(ivf, "trained", None)

    index = IvfIndex.build(grown, previous)

    assert index.max_effort == previous.max_effort
    assert index.count == 12_000
    assert previous.count == COUNT
    answer = index.search(grown[-50:].astype(np.float32), 1, None, 12_000, 20)
    np.testing.assert_allclose(answer.scores, 1, atol=2e-3)


def test_no_vectors_cannot_be_trained_with() -> None:
    """An inverted file of nothing is refused."""
    with pytest.raises(ValueError, match="needs vectors"):
        IvfIndex.build(np.empty((0, 8), np.float16), None)


@pytest.mark.parametrize("build", [lambda rows: IvfIndex.build(rows, None), HnswIndex.build])
@pytest.mark.parametrize("count", [1, 2, 50])
def test_few_vectors_can_be_indexed(build: Callable[[HalfMatrix], Sealed], count: int, vectors: HalfMatrix) -> None:
    """A handful of vectors makes an index that finds all of them."""
    index = build(vectors[:count])

    answer = index.search(vectors[:1].astype(np.float32), 100, None, count, 1)

    assert sorted(answer.slots[0]) == list(range(count))


@KINDS
def test_threads_search_at_once(kind: str, indexes: dict[str, Sealed], queries: Matrix) -> None:
    """Searches of different efforts and filters, all at the same time, answer as each alone."""
    index = indexes[kind]
    selected = mask(0.8)
    cases = [
        (None, COUNT, 0),
        (None, COUNT, 2),
        (selected, int(selected.sum()), EFFORTS[kind]),
        (None, COUNT, EFFORTS[kind]),
    ]
    expected = [index.search(queries, 10, *case).slots for case in cases]

    def searches(number: int) -> bool:
        faiss.omp_set_num_threads(1)
        case = number % len(cases)
        return bool((index.search(queries, 10, *cases[case]).slots == expected[case]).all())

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(searches, range(80)))


def test_filtered_queries_take_the_far_effort() -> None:
    """A query for which its own kind may be filtered out is searched as one that is far from the items."""
    effort = Effort(near=3, far=12)

    assert effort.of(far=False, filtered=False) == 3
    assert effort.of(far=True, filtered=False) == effort.of(far=False, filtered=True) == 12
