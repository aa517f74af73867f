"""Each step of the ranking does what its formula says."""

import json
import math
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from lookwire_server.search.filters import AllOf, Exists, In, NoneOf
from lookwire_server.search.payloads import selected
from lookwire_server.search.ranking import selection
from lookwire_server.search.ranking.calibration import Background
from lookwire_server.search.ranking.diversity import diverse
from lookwire_server.search.ranking.fusion import Hybrid, fused
from lookwire_server.search.ranking.groups import GroupBy, missing
from lookwire_server.search.ranking.selection import choose

Vectors = NDArray[np.float32]


def unit(count: int, dimension: int, seed: int) -> Vectors:
    rows = np.random.default_rng(seed).standard_normal((count, dimension))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return rows.astype(np.float32)


@given(st.integers(0, 40), st.integers(1, 50), st.floats(0, 1), st.integers(0, 1_000))
def test_diversity_follows_its_formula(size: int, count: int, weight: float, seed: int) -> None:
    """Each hit is the candidate of the largest (1 - weight) x relevance - weight x largest cosine with those before.

    Those that are to come first do.
    """
    vectors = unit(size, 5, seed)
    relevance = vectors @ unit(1, 5, seed + 1)[0]

    first = np.arange(size) % 5 == 2

    chosen = diverse(vectors, relevance, first, weight, count).tolist()

    assert len(chosen) == len(set(chosen)) == min(size, count)
    assert first[chosen].tolist() == sorted(first[chosen], reverse=True)
    assert np.count_nonzero(first[chosen]) == min(np.count_nonzero(first), count)
    for place, position in enumerate(chosen):
        before = chosen[:place]

        def gain(candidate: int, before: list[int] = before) -> float:
            if not before:
                return float(relevance[candidate])
            likeness = max(float(vectors[candidate] @ vectors[other]) for other in before)
            return (1 - weight) * float(relevance[candidate]) - weight * likeness

        rest = [
            candidate for candidate in range(size) if candidate not in before and first[candidate] == first[position]
        ]
        assert gain(position) == pytest.approx(max(map(gain, rest)), abs=1e-5)


def test_diversity_of_weight_0_changes_nothing() -> None:
    """Without weight the hits are the most relevant in their order."""
    vectors = unit(30, 4, 3)
    relevance = vectors[:, 0]

    assert diverse(vectors, relevance, np.zeros(30, np.bool_), 0, 10).tolist() == np.argsort(-relevance)[:10].tolist()


@given(
    st.integers(0, 60), st.floats(0.3, 1), st.integers(1, 20), st.integers(1, 4), st.booleans(), st.integers(0, 1_000)
)
def test_choice_passes_over_duplicates_and_full_groups(
    size: int, cosine: float, count: int, group_size: int, grouped: bool, seed: int
) -> None:
    """An item is chosen if its cosine with each one chosen before is below the limit, and its group has room."""
    vectors = unit(size, 3, seed)
    vectors[1::7] = vectors[: len(vectors[1::7])]
    values = [None if place % 5 == 4 else place % 3 for place in range(size)] if grouped else None
    expected: dict[int, list[int]] = {}
    for position, vector in enumerate(vectors):
        value = values[position] if values is not None else position
        chosen = [other for group in expected.values() for other in group]
        near = any(float(vector @ vectors[other]) >= cosine - selection.ROUNDING for other in chosen)
        if value is not None and not near and (value in expected or len(expected) < count):
            group = expected.setdefault(value, [])
            if len(group) < group_size:
                group.append(position)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(selection, "BLOCK", 8)
        groups = choose(vectors, values, size=group_size, count=count, cosine=cosine)

    assert groups == list(expected.values())


def test_equal_vectors_collapse_at_cosine_1() -> None:
    """Vectors that are the same are duplicates whatever rounding makes of their cosine, and others are not."""
    vectors = np.repeat(unit(50, 300, 5), 2, axis=0)

    assert choose(vectors, None, size=1, count=99, cosine=1.0) == [[place] for place in range(0, 100, 2)]


def test_what_is_missing_of_groups() -> None:
    """Other values are looked for until there are enough, then further items of the values that are not full."""
    values = ["a", "b", "a", "c"]
    by = GroupBy("kind", 2)

    assert missing(by, values, [[0, 2], [1], [3]], 4) == AllOf((Exists("kind"), NoneOf((In("kind", ("a",)),))))
    assert missing(by, values, [[0, 2], [1], [3]], 2) == In("kind", ("b",))
    assert missing(by, values, [[0, 2]], 1) is None


def test_ranks_are_fused_by_their_reciprocals() -> None:
    """A score is the sum of weight / (60 + rank) over the legs that have the item."""
    legs = fused(
        Hybrid("words", vector_weight=2.0, word_weight=0.5),
        keys=np.array([30, 10, 40, 20]),
        cosines=np.array([0.1, 0.9, 0.3, 0.5], np.float32),
        in_vector_leg=np.array([False, True, True, True]),
        word_keys=np.array([30, 20, 99]),
        word_scores=np.array([7.0, 5.0, 3.0], np.float32),
        equal=np.array([True, False, False, False]),
    )

    assert legs.vector_ranks.tolist() == [0, 1, 3, 2]
    assert legs.word_ranks.tolist() == [1, 0, 0, 2]
    assert legs.word_scores.tolist() == [7, 0, 0, 5]
    np.testing.assert_allclose(legs.fused, [0.5 / 61, 2 / 61, 2 / 63, 2 / 62 + 0.5 / 62])


@given(st.floats(-0.5, 0.5), st.floats(0.01, 0.3), st.integers(0, 10_000_000), st.floats(-1, 1))
def test_calibrated_scores_are_by_the_expected_count(mean: float, deviation: float, count: int, cosine: float) -> None:
    """A calibrated score is exp(-E), E the items times the normal distribution's tail beyond the cosine."""
    cosines = np.array([cosine], np.float32)
    tail = NormalDist(-mean, deviation).cdf(-float(cosines[0]))

    score = Background(mean, deviation).scores(cosines, count)[0]

    assert score == pytest.approx(math.exp(-count * tail), rel=1e-4, abs=1e-6)


def test_background_of_a_sample() -> None:
    """It has the sample's mean and deviation; too small a sample, or one without spread, is taken for random directions."""
    sample = np.array([0.1, 0.2, 0.6], np.float32)

    assert Background.of(sample, 64).mean == pytest.approx(0.3)
    assert Background.of(sample, 64).deviation == pytest.approx(np.std([0.1, 0.2, 0.6]))
    assert Background.of(sample[:2], 64) == Background.of(np.full(9, 0.5, np.float32), 64) == Background(0, 1 / 8)


PAYLOADS = st.dictionaries(
    st.text(max_size=4),
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    ),
    max_size=5,
)


@given(PAYLOADS, st.sets(st.text(max_size=4)), st.data(), st.sampled_from([None, 1]), st.booleans())
def test_selected_members(
    payload: dict[str, object], names: set[str], data: st.DataObject, indent: int | None, ascii: bool
) -> None:
    """Of a payload, however it was written, those members are left that have one of the names, as they were."""
    if payload:
        names |= data.draw(st.sets(st.sampled_from(sorted(payload))))
    written = json.dumps(payload, indent=indent, ensure_ascii=ascii).encode()

    assert json.loads(selected(written, names)) == {name: payload[name] for name in payload if name in names}


def test_selected_members_keep_every_digit() -> None:
    """Values are copied as they stand; of members of the same name the last counts."""
    payload = b' { "a" : 1.50 , "b": 1e400,"a":12345678901234567890.10, "c" : { "a" : [ 1 ] } } '

    assert selected(payload, {"a", "b"}) == b'{"a":12345678901234567890.10,"b": 1e400}'
    assert selected(payload, {"c"}) == b'{"c" : { "a" : [ 1 ] }}'
    assert selected(b"{}", {"c"}) == b"{}"
