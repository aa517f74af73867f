"""Hits that differ: maximal marginal relevance (Carbonell and Goldstein, 1998)."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lookwire_server.errors import InvalidArgument
from lookwire_server.search.vectors import Matrix

# Candidates for each hit, unless the search says how many.
CANDIDATES_OF_A_HIT = 4


@dataclass(frozen=True, slots=True)
class Diversity:
    """How much unlikeness counts, in [0, 1], and how many of the nearest to choose from; 0: four times as many as hits."""

    weight: float
    candidates: int = 0

    def check(self, top_k: int, limit: int) -> None:
        """Raises InvalidArgument, with the path of what is at fault."""
        if not (math.isfinite(self.weight) and 0 <= self.weight <= 1):
            raise InvalidArgument(f"a weight is in [0, 1], got {self.weight}", field="diversity.weight")
        if self.candidates and not top_k <= self.candidates <= limit:
            raise InvalidArgument(
                f"candidates are 0, or top_k ({top_k}) to {limit}, not {self.candidates}",
                field="diversity.candidates",
                limit=limit,
            )

    def candidate_count(self, top_k: int, limit: int) -> int:
        """Returns how many candidates there should be."""
        return self.candidates or min(CANDIDATES_OF_A_HIT * top_k, limit)


def diverse(
    vectors: Matrix, relevance: NDArray[Any], first: NDArray[np.bool_], weight: float, count: int
) -> NDArray[np.int64]:
    """Returns the positions of `count` candidates (all if there are fewer) in the order in which they are chosen.

    Each is the one of the largest (1 - weight) x relevance - weight x largest cosine with those chosen before; the very first is
    the most relevant. Those that are `first` are chosen before all others. `vectors` are [n, d] of length 1, `relevance` in
    [-1, 1] and `first` are [n].
    """
    chosen = np.empty(min(count, len(vectors)), np.int64)
    # The formula's values lie in [-1, 1].
    lead = 3.0 * first
    gain = (1 - weight) * relevance.astype(np.float64) + lead
    likeness = np.full(len(vectors), -np.inf)
    for place in range(len(chosen)):
        position = int(np.argmax(relevance + lead if place == 0 else gain - weight * likeness))
        chosen[place] = position
        likeness = np.maximum(likeness, vectors @ vectors[position])
        gain[position] = -np.inf
    return chosen
