"""Vectors shaped like those of CLIP, for measuring recall where no encoder and no pictures are at hand.

Uniform random vectors make every approximate index look broken, and separate Gaussian blobs make it look perfect. Real
embeddings lie between: all in one cone, in categories and kinds of very unequal size, with differences inside a kind
that fall off by a power law. Texts lie in a cone of their own, far from the pictures that they describe.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float32]

CATEGORIES = 24
KINDS = 600
CHUNK = 10_000
"""Rows made at once."""

# Shares of an item's squared length. With these, in 512 dimensions, a random pair has a cosine of 0.57; among 50,000
# items the nearest to a new item has 0.87 and the nearest to a text 0.27.
CONE = 0.56
CATEGORY = 0.08
KIND = 0.13
DETAIL = 0.22
DETAIL_EXPONENT = 0.55
"""The n-th direction of a detail has a standard deviation proportional to n ** -0.55."""
NOISE = 0.01
# A text says little of all that and has more noise; the rest of its length is the cone of texts.
TEXT_CATEGORY = 0.02
TEXT_KIND = 0.02
TEXT_DETAIL = 0.025
TEXT_NOISE = 0.15
TEXT_LEAN = 0.12
"""How far the cone of texts leans to that of items."""
# One item in so many is another photograph or colour of an item before it, or the very same vector again.
VARIANTS = 20
VARIANT_NOISE = 0.03
DUPLICATES = 200


@dataclass(frozen=True, slots=True, eq=False)
class Items:
    """Vectors [n, d] of length 1, and the number of each one's kind [n], which filters of content go by."""

    vectors: Matrix
    kinds: NDArray[np.int64]


class Embeddings:
    """One world of categories and kinds, its items, and queries for them; the same for the same seed."""

    def __init__(self, dimension: int = 512, seed: int = 0) -> None:
        self.dimension = dimension
        self._seed = seed
        chance = np.random.default_rng([seed, 0])
        self._cone = directions(chance, 1, dimension)
        self._text_cone = unit(directions(chance, 1, dimension) + np.float32(TEXT_LEAN) * self._cone)
        self._categories = directions(chance, CATEGORIES, dimension)
        self._kinds = directions(chance, KINDS, dimension)
        self._category_of = chance.choice(CATEGORIES, KINDS, p=zipf(CATEGORIES))
        weight = zipf(CATEGORIES)[self._category_of]
        for category in range(CATEGORIES):
            members = self._category_of == category
            if members.any():
                weight[members] *= zipf(int(members.sum()))
        self._frequency = weight / weight.sum()
        spectrum = np.arange(1, dimension + 1) ** -DETAIL_EXPONENT
        self._detail = (spectrum / np.linalg.norm(spectrum)).astype(np.float32)

    def chunks(self, count: int) -> Iterator[Items]:
        """Makes so many items, at most CHUNK of them at once; the first n are the same for every count."""
        for first in range(0, count, CHUNK):
            made = self._items(np.random.default_rng([self._seed, 1, first // CHUNK]), CHUNK)
            rows = min(CHUNK, count - first)
            yield Items(made.vectors[:rows], made.kinds[:rows])

    def items(self, count: int) -> Items:
        vectors = np.empty((count, self.dimension), np.float32)
        kinds = np.empty(count, np.int64)
        first = 0
        for chunk in self.chunks(count):
            rows = slice(first, first + len(chunk.kinds))
            vectors[rows], kinds[rows] = chunk.vectors, chunk.kinds
            first = rows.stop
        return Items(vectors, kinds)

    def near_queries(self, count: int) -> Matrix:
        """Makes vectors of new pictures: of the items' distribution, and none of the items."""
        return self._items(np.random.default_rng([self._seed, 2]), count).vectors

    def far_queries(self, count: int) -> Matrix:
        """Makes vectors of texts."""
        chance = np.random.default_rng([self._seed, 3])
        kinds = self._draw(chance, count)
        rows = self._details(chance, count, TEXT_DETAIL, TEXT_NOISE)
        rows += TEXT_CATEGORY**0.5 * self._categories[self._category_of[kinds]] + TEXT_KIND**0.5 * self._kinds[kinds]
        rows += (1 - TEXT_CATEGORY - TEXT_KIND - TEXT_DETAIL - TEXT_NOISE) ** 0.5 * self._text_cone
        return unit(rows)

    def _items(self, chance: np.random.Generator, count: int) -> Items:
        kinds = self._draw(chance, count)
        rows = self._details(chance, count, DETAIL, NOISE)
        centres = CATEGORY**0.5 * self._categories[self._category_of] + KIND**0.5 * self._kinds + CONE**0.5 * self._cone
        rows += centres[kinds]
        for every, noise in ((VARIANTS, VARIANT_NOISE), (DUPLICATES, 0.0)):
            copies = np.arange(every, count, every)
            originals = (chance.random(len(copies)) * copies).astype(np.int64)
            kinds[copies] = kinds[originals]
            rows[copies] = rows[originals]
            if noise:
                rows[copies] += self._details(chance, len(copies), 0.0, noise)
        return Items(unit(rows), kinds)

    def _draw(self, chance: np.random.Generator, count: int) -> NDArray[np.int64]:
        return chance.choice(KINDS, count, p=self._frequency)

    def _details(self, chance: np.random.Generator, count: int, detail: float, noise: float) -> Matrix:
        """The sum of a detail and of noise alike in all directions, which together are one Gaussian."""
        deviation = np.sqrt(detail * self._detail**2 + noise / self.dimension)
        rows = chance.standard_normal((count, self.dimension), np.float32)
        rows *= deviation
        return rows


def directions(chance: np.random.Generator, count: int, dimension: int) -> Matrix:
    return unit(chance.standard_normal((count, dimension), np.float32))


def unit(rows: Matrix) -> Matrix:
    """Makes the rows' lengths 1, in place."""
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return rows


def zipf(count: int) -> NDArray[np.float64]:
    """Shares of `count` ranks, the n-th proportional to 1 / n."""
    shares: NDArray[np.float64] = 1 / np.arange(1, count + 1)
    shares /= shares.sum()
    return shares
