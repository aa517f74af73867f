"""Vectors as they are stored and compared: float32 of length 1, so that an inner product is a cosine."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lookwire_server.errors import InvalidVector

Vector = NDArray[np.float32]
Matrix = NDArray[np.float32]


def normalised(rows: NDArray[Any], dimension: int, path: Callable[[int], str]) -> Matrix:
    """Returns the rows with length 1, computed in float64; raises InvalidVector with the path of the first bad row."""
    if rows.shape[1] != dimension:
        raise InvalidVector(
            f"the vector has {rows.shape[1]} dimensions, the collection has {dimension}",
            field=path(0),
            dimension=rows.shape[1],
            expected=dimension,
        )
    wide = rows.astype(np.float64)
    # Divided by the largest element first: squares of very large or small elements would leave float64's range.
    largest = np.abs(wide).max(axis=1, initial=0.0, keepdims=True)
    for wrong, message in (
        (~np.isfinite(largest), "the vector has an element that is NaN or infinite"),
        (largest == 0.0, "the vector is all zero, so it has no direction"),
    ):
        if wrong.any():
            raise InvalidVector(message, field=path(int(wrong.argmax())))
    wide /= largest
    wide /= np.linalg.norm(wide, axis=1, keepdims=True)
    return wide.astype(np.float32)
