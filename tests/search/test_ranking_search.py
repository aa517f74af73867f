"""Searches with every way of ranking, against plain Python over all items."""

import asyncio
import json
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from lookwire_server.errors import FailedPrecondition, InvalidArgument
from lookwire_server.search.backgrounds import Backgrounds
from lookwire_server.search.collection import Collection
from lookwire_server.search.collections import Collections
from lookwire_server.search.fields import Field, FieldType
from lookwire_server.search.filters import Equals, NoneOf, Range
from lookwire_server.search.items import NewItem, StoredItem
from lookwire_server.search.ranking.calibration import Background
from lookwire_server.search.ranking.diversity import Diversity
from lookwire_server.search.ranking.fusion import Hybrid
from lookwire_server.search.ranking.groups import GroupBy
from lookwire_server.search.search_options import SearchOptions
from lookwire_server.search.searcher import SearchResult
from lookwire_server.search.store.collections import NewCollection
from lookwire_server.search.store.items import ItemTable
from lookwire_server.search.store.words import WordTable

DIMENSION = 6
FIELDS = (
    Field("title", FieldType.TEXT),
    Field("brand", FieldType.STRING),
    Field("product", FieldType.INT64),
    Field("new", FieldType.BOOL),
    Field("price", FieldType.DOUBLE),
)
RANDOM = np.random.default_rng(11)


def unit(count: int) -> NDArray[np.float32]:
    rows = RANDOM.standard_normal((count, DIMENSION))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return rows.astype(np.float32)


def made(collections: Collections, payloads: Sequence[dict[str, Any]], vectors: NDArray[np.float32]) -> Collection:
    """A collection of items with the ids "0", "1", ..."""
    collection = asyncio.run(collections.create(NewCollection("shop", "clip", "f1", DIMENSION, FIELDS)))
    for start in range(0, len(payloads), 1_000):
        items = [
            NewItem(str(start + place), json.dumps(payload).encode())
            for place, payload in enumerate(payloads[start : start + 1_000])
        ]
        asyncio.run(collection.upsert(items, vectors[start : start + 1_000]))
    return collection


def search(collection: Collection, query: NDArray[np.float32], **options: Any) -> SearchResult:
    return asyncio.run(collection.search(query, SearchOptions(**options)))


@pytest.fixture
def shop(collections: Collections) -> tuple[Collection, list[dict[str, Any]], NDArray[np.float32]]:
    """300 items of 40 products, a tenth of them near-duplicates of the item before; some have no product."""
    vectors = unit(300)
    vectors[1::10] = vectors[::10] + 0.02 * unit(30)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    payloads: list[dict[str, Any]] = [
        {"product": int(product), "new": bool(product % 2)} if product else {}
        for product in RANDOM.integers(0, 40, 300)
    ]
    return made(collections, payloads, vectors), payloads, vectors


@given(
    top_k=st.integers(1, 60),
    threshold=st.none() | st.floats(-1, 0.9),
    collapse=st.none() | st.floats(0.5, 1),
    group=st.none() | st.tuples(st.sampled_from(["product", "new"]), st.integers(1, 8)),
    seed=st.integers(0, 100),
)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_ranking_is_that_of_all_items(
    shop: tuple[Collection, list[dict[str, Any]], NDArray[np.float32]],
    top_k: int,
    threshold: float | None,
    collapse: float | None,
    group: tuple[str, int] | None,
    seed: int,
) -> None:
    """Threshold, collapse and groups choose as they would from all items, few as the candidates are."""
    collection, payloads, vectors = shop
    query = vectors[seed] + np.random.default_rng(seed).standard_normal(DIMENSION).astype(np.float32) / 3
    query /= np.linalg.norm(query)
    scores = vectors @ query
    groups: dict[Any, list[int]] = {}
    for place in np.argsort(-scores).tolist():
        value = place if group is None else payloads[place].get(group[0])
        hits = [other for members in groups.values() for other in members]
        if (
            value is not None
            and (threshold is None or scores[place] >= threshold)
            and (value in groups or len(groups) < top_k)
            and len(groups.get(value, ())) < (1 if group is None else group[1])
            and (collapse is None or all(float(vectors[place] @ vectors[other]) < collapse for other in hits))
        ):
            groups.setdefault(value, []).append(place)

    result = search(
        collection,
        query,
        top_k=top_k,
        score_threshold=threshold,
        collapse_cosine=collapse,
        group_by=None if group is None else GroupBy(*group),
    )

    expected = [place for members in groups.values() for place in members]
    assert result.ids == [str(place) for place in expected]
    np.testing.assert_allclose(result.scores, scores[expected], atol=1e-6)
    if group is not None:
        assert result.group_values == [payloads[place][group[0]] for place in expected]


@pytest.fixture
def crowded(collections: Collections) -> Collection:
    """2,500 items of one brand nearest to the first axis, then 20 brands of 3 items each, then 40 items of no brand."""
    axis = np.eye(DIMENSION, dtype=np.float32)[0]
    nearness = np.repeat([0.1, 1.0, 0.5], [2_500, 60, 40])[:, np.newaxis]
    vectors = (axis + nearness * unit(2_600)).astype(np.float32)
    payloads = [{"brand": "big"}] * 2_500 + [{"brand": f"b{place % 20}"} for place in range(60)] + [{}] * 40
    return made(collections, payloads, vectors)


def test_groups_beyond_a_crowd_are_found(crowded: Collection) -> None:
    """Thousands of nearer items of one value hide no other value, and every group is filled."""
    result = search(crowded, np.eye(DIMENSION, dtype=np.float32)[0], top_k=21, group_by=GroupBy("brand", 3))

    assert result.group_values is not None
    assert result.group_values[:3] == ["big"] * 3
    assert sorted(map(str, result.group_values[3:])) == sorted(f"b{place % 20}" for place in range(60))
    assert (np.diff(result.scores[::3]) <= 0).all()


def test_further_rounds_obey_the_filter(crowded: Collection) -> None:
    """Items that are looked for beyond the first candidates match the filter too, and are none of the excluded."""
    axis = np.eye(DIMENSION, dtype=np.float32)[0]
    filter = NoneOf((Equals("brand", "b3"),))

    result = search(crowded, axis, top_k=21, group_by=GroupBy("brand", 3), filter=filter, excluded_ids={"2504"})

    assert set(map(str, result.group_values or ())) == {"big", *(f"b{place}" for place in range(20) if place != 3)}
    assert {"2524", "2544"} <= set(result.ids)
    assert "2504" not in result.ids


def test_distinct_items_beyond_copies_are_found(collections: Collections) -> None:
    """A hundred times as many copies of the best item as hits leave no gap among the hits."""
    vectors = np.concatenate([np.tile(np.eye(DIMENSION)[0], (1_500, 1)), unit(40)]).astype(np.float32)
    collection = made(collections, [{}] * len(vectors), vectors)

    result = search(collection, np.eye(DIMENSION, dtype=np.float32)[0], top_k=15, collapse_cosine=0.9999)

    expected = np.argsort(-vectors[1_500:, 0])[:14] + 1_500
    assert result.ids[1:] == [str(place) for place in expected]
    assert result.scores[0] == 1


def test_diversity_chooses_among_the_nearest(shop: tuple[Collection, Any, NDArray[np.float32]]) -> None:
    """The hits are those of the formula among as many of the nearest as were asked for, by default four times top_k."""
    collection, _, vectors = shop
    query = vectors[17:20].sum(axis=0) / np.linalg.norm(vectors[17:20].sum(axis=0))

    def expected(candidates: int) -> list[str]:
        nearest = np.argsort(-(vectors @ query))[:candidates]
        chosen = [int(nearest[0])]
        while len(chosen) < 5:
            gain = 0.5 * vectors[nearest] @ query - 0.5 * (vectors[nearest] @ vectors[chosen].T).max(axis=1)
            gain[np.isin(nearest, chosen)] = -9
            chosen.append(int(nearest[np.argmax(gain)]))
        return [str(place) for place in chosen]

    assert search(collection, query, top_k=5, diversity=Diversity(0.5)).ids == expected(20)
    assert search(collection, query, top_k=5, diversity=Diversity(0.5, 90)).ids == expected(90)
    assert search(collection, query, top_k=5, diversity=Diversity(0.0)).ids == search(collection, query, top_k=5).ids


def test_diverse_groups_stay_together(shop: tuple[Collection, Any, NDArray[np.float32]]) -> None:
    """With groups, diversity chooses among their best items, and the others of a group follow."""
    collection, _, vectors = shop

    result = search(
        collection, vectors[17], top_k=5, diversity=Diversity(0.6), group_by=GroupBy("product", 3), include_vectors=True
    )

    values = result.group_values
    assert values is not None
    assert len(dict.fromkeys(values)) == 5
    assert values == sorted(values, key=list(dict.fromkeys(values)).index)
    assert values != search(collection, vectors[17], top_k=5, group_by=GroupBy("product", 3)).group_values


TITLES = ("red shoe", "blue shoe", "Red  SHOE", "green hat", "a red shoe for the city", "hat")


@pytest.fixture
def words(collections: Collections) -> Collection:
    """Six items with titles, the first farthest from the first axis."""
    vectors = np.array([[place, 6 - place, 0, 0, 0, 0] for place in range(6)], np.float32)
    payloads = [{"title": title, "brand": "Acme" if place == 3 else "x"} for place, title in enumerate(TITLES)]
    return made(collections, payloads, vectors)


AXIS = np.eye(DIMENSION, dtype=np.float32)[0]


def test_hybrid_puts_what_is_equal_first(words: Collection) -> None:
    """Items with a text equal to the words but for case and spaces are first; the legs' ranks and scores are told."""
    result = search(words, AXIS, hybrid=Hybrid("red shoe"))

    legs = result.legs
    assert legs is not None
    assert set(result.ids[:2]) == {"0", "2"}
    assert legs.equal.tolist() == [True, True, False, False, False, False]
    assert dict(zip(result.ids, legs.vector_ranks.tolist(), strict=True)) == {
        str(place): 6 - place for place in range(6)
    }
    assert {id for id, rank in zip(result.ids, legs.word_ranks.tolist(), strict=True) if rank} == {"0", "1", "2", "4"}
    assert ((legs.word_scores > 0) == (legs.word_ranks > 0)).all()
    by_hand = 1 / (60 + legs.vector_ranks) + np.where(legs.word_ranks, 1 / (60 + legs.word_ranks), 0)
    np.testing.assert_allclose(legs.fused, by_hand)
    assert (np.diff(legs.fused[:2]) <= 0).all()
    assert (np.diff(legs.fused[2:]) <= 0).all()


def test_hybrid_weights(words: Collection) -> None:
    """Without weight of the vectors only items with the words are hits, without weight of words the order is the vectors'."""
    assert set(search(words, AXIS, hybrid=Hybrid("hat", vector_weight=0)).ids) == {"3", "5"}
    assert search(words, AXIS, hybrid=Hybrid("shoe", word_weight=0)).ids == ["5", "4", "3", "2", "1", "0"]


@pytest.mark.parametrize("weights", [(1_000.0, 1_000.0), (3e38, 1.0), (0.0, 3e38), (0.001, 0.0)])
@pytest.mark.parametrize("diversity", [None, Diversity(0.9), Diversity(1.0)])
def test_equal_items_are_first_whatever_the_weights(
    words: Collection, weights: tuple[float, float], diversity: Diversity | None
) -> None:
    """No weight of the legs, and no diversity, brings another item before those that are equal to the words."""
    result = search(words, AXIS, hybrid=Hybrid("red shoe", (), *weights), diversity=diversity)

    assert set(result.ids[:2]) == {"0", "2"}


def test_first_hits_do_not_depend_on_top_k(collections: Collections) -> None:
    """The first ten of a hybrid search are the same for every number of hits up to 50."""
    vectors = unit(2_000)
    titles = [" ".join(RANDOM.choice(["red", "blue", "dress", "hat", "wool"], 4)) for _ in vectors]
    collection = made(collections, [{"title": title} for title in titles], vectors)

    for query in unit(8):
        few = search(collection, query, top_k=10, hybrid=Hybrid("red dress")).ids
        assert search(collection, query, top_k=50, hybrid=Hybrid("red dress")).ids[:10] == few


def test_word_leg_says_what_it_reached(collections: Collections) -> None:
    """The word leg goes 160 items deep and a few more, and ranks none beyond, though they have the words."""
    collection = made(collections, [{"title": "shoe " + "x " * place} for place in range(400)], unit(400))

    deep = search(collection, AXIS, top_k=50, hybrid=Hybrid("shoe", vector_weight=0, word_weight=1))
    by_vectors = search(collection, AXIS, top_k=50, hybrid=Hybrid("shoe", word_weight=0))

    assert deep.legs is not None
    assert by_vectors.legs is not None
    assert deep.legs.word_ranks.tolist() == list(range(1, 51))
    assert 0 in by_vectors.legs.word_ranks
    reached = by_vectors.legs.word_ranks > 0
    expected = np.array([int(id) < 168 for id in by_vectors.ids])
    assert (reached == expected).all()


def test_equal_strings_come_first(words: Collection) -> None:
    """A string that is equal to the words brings its item to the front, though no text has the words."""
    result = search(words, -AXIS, top_k=1, hybrid=Hybrid("ACME"))
    alone = search(words, -AXIS, hybrid=Hybrid("ACME", vector_weight=0))

    assert result.ids == alone.ids == ["3"]


def test_hybrid_obeys_filter_thresholds_and_exclusions(words: Collection) -> None:
    """What the filter, the threshold or the query excludes comes by neither leg."""
    only = search(words, AXIS, hybrid=Hybrid("red shoe"), filter=Equals("brand", "Acme"))
    high = search(words, AXIS, hybrid=Hybrid("red shoe"), score_threshold=0.4)
    others = search(words, AXIS, hybrid=Hybrid("red shoe"), excluded_ids={"0", "2"})

    assert only.ids == ["3"]
    assert sorted(high.ids) == ["2", "3", "4", "5"]
    assert sorted(others.ids) == ["1", "3", "4", "5"]


@pytest.fixture
def shoes(collections: Collections) -> Collection:
    """3,000 items near the first axis that have "red" and "shoe" twice, and opposite them one of that name, and one brand."""
    vectors = np.concatenate([AXIS + 0.1 * unit(3_000), [-AXIS], [-AXIS]]).astype(np.float32)
    payloads: list[dict[str, Any]] = [{"title": "red red shoe shoe"}] * 3_000
    return made(collections, [*payloads, {"title": "the red shoe of the north"}, {"brand": "Red Shoe"}], vectors)


@pytest.mark.parametrize(
    ("words", "id"), [("The Red  shoe of the North", "3000"), ("red shoe", "3001")], ids=["text", "string"]
)
def test_equal_item_is_first_among_thousands_that_are_nearer(shoes: Collection, words: str, id: str) -> None:
    """The item whose name is typed comes first although thousands are nearer, and thousands have its words."""
    result = search(shoes, AXIS, top_k=3, hybrid=Hybrid(words))

    assert result.ids[0] == id
    assert result.legs is not None
    assert (result.legs.vector_ranks[0], result.legs.equal.tolist()) == (0, [True, False, False])


def test_hybrid_with_groups(words: Collection) -> None:
    """Groups are in the order of their best fused item."""
    assert search(words, AXIS, hybrid=Hybrid("hat"), group_by=GroupBy("brand")).ids == ["5", "3"]


def test_hybrid_with_diversity(words: Collection) -> None:
    """In the formula of diversity the fused score, as a share of the largest that two ranks can give, is the relevance."""
    options: dict[str, Any] = {"hybrid": Hybrid("a hat for the city"), "include_vectors": True}
    plain = search(words, AXIS, **options)
    assert plain.legs is not None
    assert plain.vectors is not None
    relevance = plain.legs.fused / (2 / 61)
    chosen = [0]
    while len(chosen) < 4:
        gain = 0.4 * relevance - 0.6 * (plain.vectors @ plain.vectors[chosen].T).max(axis=1)
        gain[chosen] = -9
        chosen.append(int(np.argmax(gain)))

    result = search(words, AXIS, top_k=4, diversity=Diversity(0.6, 6), **options)

    assert result.ids == [plain.ids[place] for place in chosen]
    assert result.ids != plain.ids[:4]


@pytest.mark.parametrize("before", [True, False], ids=["before the words", "after the words"])
def test_item_replaced_between_the_legs_is_found(
    shoes: Collection, monkeypatch: pytest.MonkeyPatch, before: bool
) -> None:
    """An item that only its words find is found, as it is then, though it is replaced while the search runs."""
    plain: Callable[..., Any] = WordTable.search
    calls: list[bool] = []

    def replace() -> None:
        calls.append(True)
        if len(calls) == 1:
            new = NewItem("3000", b'{"title": "a red shoe of the north"}')
            asyncio.run(shoes.upsert([new], np.array([[0, 1, 0, 0, 0, 0.0]])))

    def interrupted(self: WordTable, *arguments: Any) -> Any:
        if before:
            replace()
        found = plain(self, *arguments)
        if not before:
            replace()
        return found

    monkeypatch.setattr(WordTable, "search", interrupted)

    result = search(shoes, AXIS, hybrid=Hybrid("north", vector_weight=0))

    assert (result.ids, result.payloads) == (["3000"], [b'{"title": "a red shoe of the north"}'])
    assert result.sequence == shoes.sequence
    assert len(calls) == 2


def test_calibrated_scores_tell_matches_from_chance(collections: Collections) -> None:
    """An item as query finds its near-copy sure and all others unsure, and the threshold cuts between them."""
    vectors = np.concatenate([np.abs(unit(500)), [AXIS], [AXIS + 0.001]]).astype(np.float32)
    collection = made(collections, [{}] * len(vectors), vectors)
    options: dict[str, Any] = {"far": False, "excluded_ids": {"500"}, "top_k": 200, "include_calibrated_scores": True}

    result = search(collection, AXIS, **options)
    cut = search(collection, AXIS, **{**options, "calibrated_threshold": float(result.calibrated_scores[0])})  # type: ignore[index]

    assert result.calibrated_scores is not None
    assert result.calibrated_scores[0] == result.calibrated_scores.max()
    assert (np.diff(result.calibrated_scores) <= 0).all()
    assert result.calibrated_scores[-1] < 0.01
    assert cut.ids == ["501"]


def test_calibration_follows_the_collection(collections: Collections) -> None:
    """The background is sampled again when the collection has grown by more than a tenth, and when queries have come in place
    of probes."""
    collection = made(collections, [{}] * 50, unit(50))
    query = unit(1)[0]

    def grow(count: int) -> None:
        items = [NewItem(f"n{collection.item_count + place}", b"") for place in range(count)]
        asyncio.run(collection.upsert(items, np.tile(query, (count, 1))))

    def background(far: bool) -> Background:
        return asyncio.run(collection._backgrounds.of(far))

    first = background(far=False)
    grow(5)
    assert background(far=False) == first
    grow(1)
    assert background(far=False).mean > first.mean

    collection.set_probes(np.tile(query, (64, 1)))
    assert not collection.wants_probes
    by_probes = background(far=True)
    for other in -unit(64):
        search(collection, other)
    assert background(far=True).mean < by_probes.mean


async def test_one_sample_serves_all_who_wait(collections: Collections, monkeypatch: pytest.MonkeyPatch) -> None:
    """Searches that need a background at once wait for one sample of it."""
    collection = await collections.create(NewCollection("shop", "clip", "f1", DIMENSION, FIELDS))
    await collection.upsert([NewItem(str(place), b"") for place in range(30)], unit(30))
    samples: list[bool] = []
    plain: Callable[..., Any] = Backgrounds._sample

    def sample(self: Backgrounds, view: Any, far: bool) -> Any:
        samples.append(far)
        return plain(self, view, far)

    monkeypatch.setattr(Backgrounds, "_sample", sample)
    options = SearchOptions(include_calibrated_scores=True)

    await asyncio.gather(*(collection.search(query, options) for query in unit(20)))

    assert samples == [True]


def test_encoders_own_probability_is_used(words: Collection) -> None:
    """Where the encoder has a rule of its own, calibrated scores are that rule's."""
    result = search(words, AXIS, probability=lambda cosines: cosines / 2, calibrated_threshold=0.3)

    assert result.calibrated_scores is not None
    np.testing.assert_allclose(result.calibrated_scores, result.scores / 2)
    assert (result.calibrated_scores >= 0.3).all()
    assert 0 < len(result.ids) < 6


def test_probes_stand_in_for_queries(words: Collection) -> None:
    """Probes serve to measure with as long as few queries have come; a query that comes twice counts once."""
    assert words.far_queries() is None
    words.set_probes(unit(64))
    assert words.far_queries() is not None
    for _ in range(3):
        search(words, AXIS)
    queries = words.far_queries()
    assert queries is not None
    assert len(queries) == 65
    for query in unit(64):
        search(words, query)
    queries = words.far_queries()
    assert queries is not None
    assert len(queries) == 65


@pytest.mark.parametrize(
    ("options", "field", "message"),
    [
        ({"hybrid": Hybrid("x", ("brand",))}, "hybrid.fields[0]", "no TEXT field 'brand': it declares 'title'"),
        ({"hybrid": Hybrid("")}, "hybrid.words", "1 to 1024 characters, these have 0"),
        ({"hybrid": Hybrid("x" * 1_025)}, "hybrid.words", "these have 1025"),
        ({"hybrid": Hybrid("x", vector_weight=-1)}, "hybrid.vector_weight", "0 or more, got -1"),
        ({"hybrid": Hybrid("x", word_weight=float("nan"))}, "hybrid.word_weight", "got nan"),
        ({"hybrid": Hybrid("x", vector_weight=0, word_weight=0)}, "hybrid", "must be above 0"),
        ({"diversity": Diversity(1.5)}, "diversity.weight", r"in \[0, 1\], got 1.5"),
        ({"diversity": Diversity(0.5, 9)}, "diversity.candidates", r"top_k \(10\) to 1000, not 9"),
        ({"diversity": Diversity(0.5, 1_001)}, "diversity.candidates", "not 1001"),
        ({"group_by": GroupBy("colour")}, "group_by.field", "no field 'colour'; .* declares 'brand', 'product', 'new'"),
        ({"group_by": GroupBy("price")}, "group_by.field", "double is no type to group by"),
        ({"group_by": GroupBy("brand", 101)}, "group_by.group_size", "at most 1000, not 1010"),
        ({"collapse_cosine": 0.0}, "collapse_cosine", r"in \(0, 1\], got 0"),
        ({"collapse_cosine": float("nan")}, "collapse_cosine", "got nan"),
        ({"calibrated_threshold": 1.1}, "calibrated_threshold", r"in \[0, 1\], got 1.1"),
        ({"payload_fields": ["x"] * 65}, "payload_fields", "65 payload fields: at most 64"),
        ({"top_k": 1_000_000}, "top_k", "not 1000000"),
    ],
)
def test_wrong_options_are_named(words: Collection, options: dict[str, Any], field: str, message: str) -> None:
    """An error says what was wrong, what was expected, and which field it was."""
    with pytest.raises(InvalidArgument, match=message) as failure:
        search(words, AXIS, **options)

    assert failure.value.field == field


def test_hybrid_needs_a_text_field(collections: Collections) -> None:
    """A collection without TEXT fields has no words to search."""
    plain = asyncio.run(collections.create(NewCollection("plain", "clip", "f1", DIMENSION, FIELDS[1:])))

    with pytest.raises(FailedPrecondition, match="declares no TEXT field"):
        search(plain, AXIS, hybrid=Hybrid("x"))


@pytest.mark.parametrize(
    "options",
    [
        {"hybrid": Hybrid("x")},
        {"group_by": GroupBy("brand")},
        {"collapse_cosine": 0.5, "diversity": Diversity(0.5)},
        {"calibrated_threshold": 0.5},
        {"calibrated_threshold": 0.5, "far": False},
        {"filter": Range("price", gt=3), "hybrid": Hybrid("x"), "group_by": GroupBy("new")},
    ],
)
def test_empty_collection_has_no_hits(collections: Collections, options: dict[str, Any]) -> None:
    """Every way of ranking takes a collection without items, or a filter that none matches."""
    empty = made(collections, [], unit(0))

    assert search(empty, AXIS, **options).ids == []


def test_payload_fields(words: Collection) -> None:
    """Only the members asked for are returned, and none that a payload lacks."""
    result = search(words, AXIS, top_k=1, payload_fields=["title", "size"])

    assert [json.loads(payload) for payload in result.payloads] == [{"title": "hat"}]


def test_plain_search_reads_once(shop: tuple[Collection, Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """A search without options takes one look at the index and one at the store, and ranks few candidates."""
    reads: list[int] = []
    by_key = ItemTable.by_key

    def counted(self: ItemTable, keys: Sequence[int]) -> dict[int, tuple[StoredItem, bytes]]:
        reads.append(len(keys))
        return by_key(self, keys)

    monkeypatch.setattr(ItemTable, "by_key", counted)

    search(shop[0], unit(1)[0])

    assert reads == [10 + 8]
