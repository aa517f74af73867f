"""An array that grows at its end while others read its beginning."""

from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

FIRST_CAPACITY = 64
GROWTH = 1.5


class GrowingArray:
    """Rows of one type and width, appended by one thread and read by any.

    Readers need no lock: a row is never rewritten, and growth copies into a new array, so that what `first` returned
    stays as it was.
    """

    def __init__(self, dtype: DTypeLike, width: tuple[int, ...] = ()) -> None:
        self._array: NDArray[Any] = np.empty((FIRST_CAPACITY, *width), dtype)
        self._count = 0

    @property
    def nbytes(self) -> int:
        return self._array.nbytes

    def reserve(self, count: int) -> None:
        """Makes room for `count` rows in all, so that so many are appended without a copy."""
        if count > len(self._array):
            grown = np.empty((count, *self._array.shape[1:]), self._array.dtype)
            grown[: self._count] = self._array[: self._count]
            self._array = grown

    def append(self, rows: NDArray[Any]) -> None:
        count = self._count + len(rows)
        if count > len(self._array):
            self.reserve(max(count, int(len(self._array) * GROWTH)))
        self._array[self._count : count] = rows
        self._count = count

    def first(self, count: int) -> NDArray[Any]:
        """Returns a view of the first `count` rows, which must have been appended."""
        return self._array[:count]
