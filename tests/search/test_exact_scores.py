"""Scores are those of the float32 vectors that were written, although memory holds fewer digits."""

import numpy as np
import pytest
from numpy.typing import NDArray

from lookwire_server.search.collections import Collections
from lookwire_server.search.items import NewItem
from lookwire_server.search.search_options import SearchOptions
from lookwire_server.search.store.collections import NewCollection
from lookwire_server.search.vectors import Matrix, Vector

WIDE = 64


def unit(rows: NDArray[np.float64]) -> Matrix:
    normalised: Matrix = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    return normalised


def near(query: Vector, count: int, distance: float) -> Matrix:
    """Vectors around a query whose cosines with it differ by far less than float16 can tell apart."""
    noise = np.random.default_rng(1).standard_normal((count, WIDE)) * distance
    return unit(query + noise)


@pytest.mark.parametrize("include_payloads", [True, False])
async def test_items_that_float16_confuses_are_in_order(collections: Collections, include_payloads: bool) -> None:
    """Hits are ordered and scored by the float32 vectors, whose cosines differ in the fifth decimal."""
    query: Vector = unit(np.random.default_rng(0).standard_normal((1, WIDE)))[0]
    collection = await collections.create(NewCollection("c", "clip", "f", WIDE, ()))
    # As many as are compared again for one hit.
    vectors = near(query, 9, 2e-3)
    await collection.upsert([NewItem(f"n{number}", b"") for number in range(len(vectors))], vectors)
    others = unit(np.random.default_rng(2).standard_normal((200, WIDE)))
    await collection.upsert([NewItem(f"o{number}", b"") for number in range(len(others))], others)

    cosines = vectors.astype(np.float64) @ query
    order = np.argsort(-cosines)
    for top_k in (1, 5, 9):
        result = await collection.search(query, SearchOptions(top_k=top_k, include_payloads=include_payloads))
        np.testing.assert_allclose(result.scores, cosines[order][:top_k], atol=2e-7)
        assert result.scores[0] == pytest.approx(cosines.max(), abs=2e-7)
        assert (np.diff(result.scores) <= 0).all()

    assert np.ptp(cosines) < 1e-4
    by_half = vectors.astype(np.float16).astype(np.float64) @ query
    assert np.argmax(by_half) != order[0]


async def test_many_items_that_float16_confuses_are_all_compared(collections: Collections) -> None:
    """However many items lie closer together than float16 can tell, the nearest are found."""
    query: Vector = unit(np.random.default_rng(0).standard_normal((1, WIDE)))[0]
    collection = await collections.create(NewCollection("c", "clip", "f", WIDE, ()))
    vectors = near(query, 1_500, 1e-3)
    for first in range(0, len(vectors), 500):
        part = range(first, first + 500)
        await collection.upsert([NewItem(f"n{number}", b"") for number in part], vectors[first : first + 500])

    result = await collection.search(query, SearchOptions(top_k=10))

    cosines = np.sort(vectors.astype(np.float64) @ query)[::-1]
    np.testing.assert_allclose(result.scores, cosines[:10], atol=2e-7)
    assert result.candidate_count > 1_000


async def test_scores_stay_within_a_cosine(collections: Collections) -> None:
    """A vector's score with itself is never above 1, however it rounds, and its threshold keeps it."""
    collection = await collections.create(NewCollection("c", "clip", "f", WIDE, ()))
    vectors = unit(np.random.default_rng(7).standard_normal((300, WIDE)))
    await collection.upsert([NewItem(f"i{number}", b"") for number in range(len(vectors))], vectors)
    stored = await collection.vectors_of([f"i{number}" for number in range(len(vectors))], "ids")

    scores = []
    for number, vector in enumerate(vectors):
        score = float((await collection.search(vector, SearchOptions(top_k=1))).scores[0])
        kept = await collection.search(vector, SearchOptions(top_k=1, score_threshold=score))
        scores.append(score)
        assert kept.ids == [f"i{number}"]

    assert max(scores) <= 1.0
    assert max(float(vector @ vector) for vector in stored) > 1.0
