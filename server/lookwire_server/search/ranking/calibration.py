"""Calibrated scores: how sure one can be that a cosine is no accident."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lookwire_server.errors import InvalidArgument
from lookwire_server.search.vectors import Vector

# A sample of fewer cosines says nothing about their spread.
ENOUGH_COSINES = 3

_erfc: Any = np.frompyfunc(math.erfc, 1, 1)


def check_calibrated_threshold(threshold: float) -> None:
    """Raises InvalidArgument unless it is in [0, 1]."""
    if not 0 <= threshold <= 1:
        raise InvalidArgument(f"a calibrated score is in [0, 1], got {threshold}", field="calibrated_threshold")


@dataclass(frozen=True, slots=True)
class Background:
    """Mean and standard deviation of the cosines of pairs that have nothing to do with each other."""

    mean: float
    deviation: float

    @staticmethod
    def of(cosines: NDArray[np.float32], dimension: int) -> "Background":
        """Returns that of a sample; of directions at random where it is too small, or all its cosines are the same.

        Cosines of directions that are evenly distributed on the sphere in d dimensions have mean 0 and deviation 1 / sqrt(d).
        """
        wide = cosines.astype(np.float64)
        deviation = float(wide.std()) if wide.size >= ENOUGH_COSINES else 0.0
        # Differences that are only rounding are none.
        if deviation < 1e-6:
            return Background(0.0, 1 / math.sqrt(dimension))
        return Background(float(wide.mean()), deviation)

    def scores(self, cosines: Vector, item_count: int) -> Vector:
        """Returns exp(-E) [n]; E is how many of `item_count` unrelated items would be expected to reach the cosine.

        E is the E-value of sequence search (Karlin and Altschul, 1990), here with the tail of the normal distribution:
        E = item_count / 2 x erfc((cosine - mean) / (deviation x sqrt(2))).
        """
        distances = (cosines.astype(np.float64) - self.mean) / (self.deviation * math.sqrt(2))
        tails = np.asarray(_erfc(distances), np.float64)
        scores: Vector = np.exp(-item_count / 2 * tails).astype(np.float32)
        return scores
