"""Vectors as numpy arrays and as little-endian bytes."""

import numpy as np
from numpy.typing import NDArray

from lookwire.types import VectorLike
from lookwire.v1.vector_pb2 import Matrix, Vector


def vector_message(vector: VectorLike) -> Vector:
    """Returns the message for a vector [d] of real numbers: a float16 array is sent as it is, all else as float32.

    Raises TypeError for what holds no real numbers, ValueError for another shape.
    """
    array = np.asarray(vector)
    if array.dtype.kind not in "fiu":
        raise TypeError(f"a vector holds real numbers, not {array.dtype}")
    if array.ndim != 1:
        raise ValueError(f"a vector has one dimension, not the shape {list(array.shape)}")
    if array.dtype == np.float16:
        return Vector(f16=array.astype("<f2").tobytes())
    return Vector(f32=array.astype("<f4").tobytes())


def matrix_array(matrix: Matrix) -> NDArray[np.float32]:
    """Returns the rows of `matrix` as a new float32 array [rows, dimension]."""
    half = matrix.WhichOneof("data") == "f16"
    flat = np.frombuffer(matrix.f16, "<f2") if half else np.frombuffer(matrix.f32, "<f4")
    return flat.reshape(matrix.rows, matrix.dimension).astype(np.float32)
