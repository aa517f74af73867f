"""Vectors as they are stored and compared: float32 of length 1, so that an inner product is a cosine."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lookwire_server.errors import InvalidVector

Vector = NDArray[np.float32]
Matrix = NDArray[np.float32]
# As they lie in memory: half the bytes, and a cosine that is off by at most 5e-4.
HalfMatrix = NDArray[np.float16]


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
    if rows.dtype.itemsize > 4:
        # Squares of very large or small elements would leave float64's range, as those of float32 cannot.
        largest = np.abs(wide).max(axis=1, initial=0.0, keepdims=True)
        wide /= np.where(np.isfinite(largest) & (largest > 0.0), largest, 1.0)
    lengths = np.sqrt(np.vecdot(wide, wide))
    if not (np.isfinite(lengths).all() and lengths.all()):
        for wrong, message in (
            (~np.isfinite(lengths), "the vector has an element that is NaN or infinite"),
            (lengths == 0.0, "the vector is all zero, so it has no direction"),
        ):
            if wrong.any():
                raise InvalidVector(message, field=path(int(wrong.argmax())))
    wide /= lengths[:, np.newaxis]
    return wide.astype(np.float32)
