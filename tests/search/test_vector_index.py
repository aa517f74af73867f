"""The index finds the nearest vectors, and what a reader holds never changes."""

from collections.abc import Collection

import numpy as np
import pytest
from numpy.typing import NDArray

from lookwire_server.search.fields import Field, FieldType, Values
from lookwire_server.search.filters import Equals, Filter, Ids, Range
from lookwire_server.search.index import live
from lookwire_server.search.index.live import Delete, Upsert, VectorIndex
from lookwire_server.search.index.view import Hits, Scope, View, Wanted
from lookwire_server.search.plan import Method
from lookwire_server.search.vectors import Vector

FIELDS = [Field("number", FieldType.INT64), Field("word", FieldType.STRING)]
RANDOM = np.random.default_rng(7)
# What a cosine may lose by one vector of float16, whose elements have 11 significant bits.
ROUNDING = 2**-11


def unit(count: int, dimension: int = 32) -> NDArray[np.float32]:
    rows = RANDOM.standard_normal((count, dimension))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return rows.astype(np.float32)


def filled(vectors: NDArray[np.float32]) -> VectorIndex:
    index = VectorIndex(vectors.shape[1], FIELDS, 0)
    numbers = range(len(vectors))
    values: list[Values] = [{"number": number, "word": f"w{number % 7}"} for number in numbers]
    index.upsert(Upsert(1, [f"i{number}" for number in numbers], numbers, vectors, values))
    index.publish()
    return index


def nearest(view: View, query: Vector, k: int, filter: Filter | None = None, excluded: Collection[str] = ()) -> Hits:
    return view.search([Wanted(query, k, Scope(filter), excluded)])[0]


@pytest.mark.parametrize(
    ("filter", "matches", "method"),
    [
        (None, 3_000, Method.EXACT),
        (Range("number", lt=2_500), 2_500, Method.EXACT),
        (Range("number", gte=1_499), 1_501, Method.EXACT),
        (Range("number", gte=1_500), 1_500, Method.GATHER),
        (Range("number", lt=3), 3, Method.GATHER),
        (Range("number", lt=0), 0, Method.GATHER),
    ],
)
@pytest.mark.parametrize("k", [1, 10, 1_000])
def test_search_is_exact(filter: Filter | None, matches: int, method: Method, k: int) -> None:
    """By every plan and for every k the scores are those of the best matching vectors, best first, as float16 gives them."""
    vectors = unit(3_000)
    view = filled(vectors).view
    query = unit(1)[0]

    hits = nearest(view, query, k, filter, ["i0", "i0", "nobody"])

    scores = vectors @ query
    allowed = view.matching(filter).copy()
    allowed[0] = False
    expected = np.sort(scores[allowed])[::-1][:k]
    assert (hits.plan.method, hits.plan.item_count, hits.plan.match_count) == (method, 3_000, matches)
    np.testing.assert_allclose(hits.scores, expected, atol=ROUNDING)
    np.testing.assert_allclose(hits.scores, scores[hits.slots], atol=ROUNDING)
    assert (np.diff(hits.scores) <= 0).all()
    assert allowed[hits.slots].all()
    assert hits.ids == [f"i{slot}" for slot in hits.slots]
    assert len(set(hits.ids)) == len(hits.ids)


def test_empty_index_has_no_hits() -> None:
    """A search among no items finds none."""
    view = VectorIndex(32, FIELDS, 0).view

    hits = nearest(view, unit(1)[0], 10)

    assert hits.ids == []
    assert hits.plan.item_count == 0


@pytest.mark.parametrize("filter", [None, Range("number", lt=300)])
def test_searches_together_are_as_each_alone(filter: Filter | None) -> None:
    """A batch of searches, each with its own k and its own exclusions, answers as one search after the other."""
    vectors = unit(1_000)
    view = filled(vectors).view
    searches = [
        Wanted(vectors[number], 1 + number % 20, Scope(filter), [f"i{number}"] if number % 2 else [])
        for number in range(40)
    ]

    together = view.search(searches)

    for search, hits in zip(searches, together, strict=True):
        alone = view.search([search])[0]
        assert len(hits.ids) == search.k
        assert not set(hits.ids) & set(search.excluded_ids)
        np.testing.assert_allclose(hits.scores, alone.scores, atol=ROUNDING)
        np.testing.assert_allclose(hits.scores, vectors[hits.slots] @ search.query, atol=ROUNDING)
        assert hits.plan.batch_size == 40


def test_old_view_does_not_change() -> None:
    """A view that a reader holds finds the old versions after the items were replaced, deleted and compacted."""
    vectors = unit(2_000)
    index = filled(vectors)
    old = index.view

    index.delete(Delete(2, ["i5"]))
    index.upsert(Upsert(3, ["i6"], [9_006], unit(1), [{"number": 1}]))
    index.upsert(Upsert(4, ["i6"], [9_106], unit(1), [{"number": 2}]))
    index.delete(Delete(5, [f"i{number}" for number in range(10, 1_900)]))
    index.publish()

    assert old.sequence == 1
    assert old.item_count == 2_000
    for number in (5, 6, 1_000):
        hits = nearest(old, vectors[number], 1)
        assert hits.ids == [f"i{number}"]
        assert hits.keys == [number]
    assert nearest(old, vectors[6], 1, Equals("number", 6)).ids == ["i6"]
    assert nearest(old, vectors[6], 1, Ids(("i6", "i5"))).keys == [6]
    assert nearest(old, vectors[6], 1, None, ["i6"]).ids != ["i6"]
    assert index.view.slot_of("i5") is None
    assert nearest(index.view, vectors[6], 1, Ids(("i6",))).keys == [9_106]


def test_changes_are_invisible_until_published() -> None:
    """Writes show in no view before `publish`, and then all at once."""
    vectors = unit(10)
    index = filled(vectors)

    index.delete(Delete(2, ["i1"]))
    index.upsert(Upsert(3, ["new"], [99], unit(1), [{}]))
    before = index.view
    index.publish()

    assert before.slot_of("new") is None
    assert before.slot_of("i1") is not None
    assert before.item_count == 10
    assert index.view.slot_of("new") is not None
    assert index.view.slot_of("i1") is None
    assert index.view.sequence == 3


def test_compaction_drops_the_dead_and_keeps_the_living() -> None:
    """When more than a quarter of the slots is dead they are dropped, and every search answers as before."""
    vectors = unit(2_000)
    index = filled(vectors)

    index.delete(Delete(2, [f"i{number}" for number in range(500)]))
    index.publish()
    at_a_quarter = index.view.count
    index.delete(Delete(3, ["i500"]))
    index.publish()

    assert at_a_quarter == 2_000
    assert index.view.count == index.view.item_count == 1_499
    for number in (501, 1_234, 1_999):
        hits = nearest(index.view, vectors[number], 1)
        assert (hits.ids, hits.keys) == ([f"i{number}"], [number])
        assert nearest(index.view, vectors[number], 3, Equals("number", number)).ids == [f"i{number}"]
    assert int(index.view.matching(Equals("word", "w3")).sum()) == sum(n % 7 == 3 for n in range(501, 2_000))
    assert index.view.slot_of("i500") is None


def test_deleted_id_can_return() -> None:
    """An id that was deleted and written again is found once, with the new vector."""
    vectors = unit(3)
    index = filled(vectors)

    index.delete(Delete(2, ["i1"]))
    index.upsert(Upsert(3, ["i1"], [77], vectors[:1], [{"number": 5}]))
    index.publish()

    hits = nearest(index.view, vectors[0], 10)
    assert sorted(hits.ids) == ["i0", "i1", "i2"]
    assert hits.keys[hits.ids.index("i1")] == 77
    np.testing.assert_allclose(hits.scores[:2], 1.0, atol=ROUNDING)


def test_all_items_deleted_leaves_an_index_that_works(monkeypatch: pytest.MonkeyPatch) -> None:
    """An index whose every slot is dead compacts to nothing and takes items again."""
    monkeypatch.setattr(live, "COMPACTION_SLOTS", 1)
    vectors = unit(5)
    index = filled(vectors)

    index.delete(Delete(2, [f"i{number}" for number in range(5)]))
    index.publish()
    emptied = nearest(index.view, vectors[0], 3)
    index.upsert(Upsert(3, ["again"], [8], vectors[:1], [{"word": "x"}]))
    index.publish()

    assert emptied.ids == []
    assert nearest(index.view, vectors[0], 3, Equals("word", "x")).ids == ["again"]
