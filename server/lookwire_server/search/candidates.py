"""The items that a search chooses its hits from."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from lookwire_server.search.items import StoredItem
from lookwire_server.search.vectors import Matrix, Vector

# Items and their vectors, little-endian float32, by key.
Stored = Mapping[int, tuple[StoredItem, bytes]]


@dataclass(frozen=True, slots=True, eq=False)
class Candidates:
    """Items as the store has them, in any order: float32 vectors [n, d], and cosines [n] with the query by them."""

    keys: NDArray[np.int64]
    items: list[StoredItem]
    vectors: Matrix
    scores: Vector

    @classmethod
    def of(cls, query: Vector, keys: Sequence[int], stored: Stored) -> Self:
        """Those of the keys that are stored; `query` has length 1."""
        kept = [key for key in keys if key in stored]
        content = b"".join([stored[key][1] for key in kept])
        vectors = np.frombuffer(content, "<f4").reshape(len(kept), len(query))
        scores = vectors @ query
        # A cosine by its meaning, but float32 may round it past 1.
        np.minimum(scores, 1.0, out=scores)
        np.maximum(scores, -1.0, out=scores)
        return cls(np.array(kept, np.int64), [stored[key][0] for key in kept], vectors, scores)

    def and_also(self, others: "Candidates") -> "Candidates":
        """Returns these, followed by the others."""
        return Candidates(
            np.concatenate([self.keys, others.keys]),
            self.items + others.items,
            np.concatenate([self.vectors, others.vectors]),
            np.concatenate([self.scores, others.scores]),
        )
