"""How far vectors are from those that they should be."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


@dataclass(frozen=True)
class Agreement:
    """Vectors of the same probes compared, row by row.

    `kinds` says of what kind each probe is. `cosines` are those of equal rows. `deviations` are the lengths of their
    differences as a share of the spread: the root mean square distance of the expected rows from their mean. A model
    that maps everything to nearly one point has cosines near 1 whatever goes wrong, but deviations that show it.
    """

    kinds: tuple[str, ...]
    cosines: Array
    deviations: Array

    @classmethod
    def of(cls, kinds: Sequence[str], rows: Array, expected: Array) -> "Agreement":
        """Compares rows [n, D] with the expected ones, in float64; neither need be of length 1."""
        a, b = unit(rows), unit(expected)
        spread = np.sqrt(((b - b.mean(axis=0)) ** 2).sum(axis=1).mean())
        with np.errstate(
            divide="ignore", invalid="ignore"
        ):  # expected rows that are all the same prove nothing: not a number
            deviations = np.linalg.norm(a - b, axis=1) / spread
        return cls(tuple(kinds), (a * b).sum(axis=1), deviations)

    @property
    def min_cosine(self) -> float:
        """The smallest cosine; not a number if any is none."""
        return float(self.cosines.min())

    @property
    def max_deviation(self) -> float:
        """The largest deviation; not a number if any is none."""
        return float(self.deviations.max())

    def kinds_beyond(self, at_least: float, at_most: float | None) -> dict[str, float]:
        """Returns the smallest cosine of each kind that has a smaller cosine or a larger deviation, the smallest first."""
        deviations = np.inf if at_most is None else at_most
        held = (self.cosines >= at_least) & (self.deviations <= deviations)
        wrong = {kind for kind, holds in zip(self.kinds, held, strict=True) if not holds}
        return {kind: cosine for kind, cosine in self.by_kind().items() if kind in wrong}

    def by_kind(self) -> dict[str, float]:
        """Returns the smallest cosine of each kind, the smallest first."""
        smallest: dict[str, float] = {}
        for kind, cosine in zip(self.kinds, self.cosines, strict=True):
            smallest[kind] = float(np.minimum(smallest.get(kind, 1.0), cosine))
        return dict(sorted(smallest.items(), key=lambda item: (not np.isnan(item[1]), item[1])))

    def worst(self, rows: int) -> list[int]:
        """Returns the indexes of the rows with the largest deviations, the largest first."""
        order: list[int] = np.argsort(-np.nan_to_num(self.deviations, nan=np.inf), kind="stable")[:rows].tolist()
        return order


def unit(rows: Array) -> Array:
    """Returns the rows in float64, of length 1."""
    rows = rows.astype(np.float64)
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.asarray(np.divide(rows, lengths, out=np.full_like(rows, np.nan), where=lengths > 0))
