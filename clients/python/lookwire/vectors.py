"""Vectors as numpy arrays and as little-endian bytes."""

import numpy as np
from numpy.typing import NDArray

from lookwire.types import VectorLike
from lookwire.v1.vector_pb2 import Matrix, Vector


def vector_message(vector: VectorLike) -> Vector:
    """Returns the message for a vector [d] of numbers, sent as float16 if it is a float16 array and as float32 otherwise.

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
    if matrix.WhichOneof("data") == "f16":
        flat = np.frombuffer(matrix.f16, "<f2")
    else:
        flat = np.frombuffer(matrix.f32, "<f4")
    return flat.reshape(matrix.rows, matrix.dimension).astype(np.float32)
