"""The generator of CLIP-like vectors makes the same vectors each time, and of the shape that it promises."""

import numpy as np
import pytest

from benchmarks.load.embeddings import CHUNK, Embeddings, Items


@pytest.fixture(scope="module")
def world() -> Embeddings:
    return Embeddings()


@pytest.fixture(scope="module")
def items(world: Embeddings) -> Items:
    return world.items(CHUNK + 5_000)


def test_same_seed_makes_the_same_vectors(world: Embeddings, items: Items) -> None:
    """A second generator of the seed makes the same items, the first of them for a smaller count too; another seed does not."""
    again = Embeddings()

    np.testing.assert_array_equal(again.items(300).vectors, items.vectors[:300])
    np.testing.assert_array_equal(
        np.concatenate([chunk.kinds for chunk in again.chunks(len(items.kinds))]), items.kinds
    )
    np.testing.assert_array_equal(again.far_queries(20), world.far_queries(20))
    assert not np.allclose(Embeddings(seed=1).items(300).vectors, items.vectors[:300], atol=0.01)


def test_vectors_have_length_one(world: Embeddings, items: Items) -> None:
    """Items and queries are float32 of length 1."""
    for rows in (items.vectors, world.near_queries(50), world.far_queries(50)):
        assert rows.dtype == np.float32
        np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-5)


def test_cosines_are_those_of_an_encoder(world: Embeddings, items: Items) -> None:
    """Items lie in one cone, new items near some of them, texts far from all; and no query is an item."""
    chance = np.random.default_rng(0)
    count = len(items.kinds)
    pairs = (items.vectors[chance.integers(0, count, 3_000)] * items.vectors[chance.integers(0, count, 3_000)]).sum(
        axis=1
    )
    near = np.sort(world.near_queries(200) @ items.vectors.T, axis=1)
    far = np.sort(world.far_queries(200) @ items.vectors.T, axis=1)

    assert 0.5 < pairs.mean() < 0.62
    assert 0.8 < near[:, -1].mean() < 0.92
    assert near[:, -1].max() < 0.995
    assert 0.75 < near[:, -10].mean() < near[:, -1].mean() - 0.01
    assert 0.2 < far[:, -1].mean() < 0.3


def test_kinds_are_neighbourhoods_of_unequal_size(items: Items) -> None:
    """The nearest of most items are of their own kind, and the largest kind has many times the items of the median."""
    sample = np.arange(0, len(items.kinds), 100)
    scores = items.vectors[sample] @ items.vectors.T
    scores[np.arange(len(sample)), sample] = -1
    nearest = items.kinds[scores.argmax(axis=1)]
    sizes = np.bincount(items.kinds)

    assert (nearest == items.kinds[sample]).mean() > 0.7
    assert sizes.max() > 10 * np.median(sizes)


def test_some_items_are_copies_of_others(items: Items) -> None:
    """A few items are exact duplicates and more are near ones, as in a catalogue."""
    scores = items.vectors[:CHUNK:7] @ items.vectors[:CHUNK].T
    scores[np.arange(len(scores)), np.arange(0, CHUNK, 7)] = -1
    best = scores.max(axis=1)

    assert 0.002 < (best > 0.9999).mean() < 0.05
    assert 0.03 < (best > 0.95).mean() < 0.25
