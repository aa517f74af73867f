"""Between protobuf messages and what the rooms behind take: vectors, times, contents."""

import time
from typing import Any

import grpc
import numpy as np

from lookwire.v1 import stage_times_pb2, vector_pb2
from lookwire_server.errors import InvalidArgument, InvalidVector

Vectors = np.ndarray[Any, np.dtype[np.float32]]

DTYPES: dict[str, np.dtype[Any]] = {"f32": np.dtype("<f4"), "f16": np.dtype("<f2")}
FORMATS = {
    vector_pb2.VECTOR_FORMAT_UNSPECIFIED: "f32",
    vector_pb2.VECTOR_FORMAT_F32: "f32",
    vector_pb2.VECTOR_FORMAT_F16: "f16",
}


def vector(message: vector_pb2.Vector, field: str) -> Vectors:
    """The float32 elements of a vector message, of shape [dimension]."""
    member = message.WhichOneof("data")
    if member is None:
        raise InvalidVector("set f32 or f16", field=field)
    data, dtype = getattr(message, member), DTYPES[member]
    if len(data) % dtype.itemsize:
        raise InvalidVector(
            f"{len(data)} bytes are no whole number of {dtype.itemsize}-byte elements", field=f"{field}.{member}"
        )
    return np.frombuffer(data, dtype).astype(np.float32)


def vector_format(value: "vector_pb2.VectorFormat.ValueType") -> str:
    """The member of Matrix to fill; raises InvalidArgument for a value that this server does not know."""
    if value not in FORMATS:
        raise InvalidArgument(f"{value} is no VectorFormat", field="vector_format")
    return FORMATS[value]


def matrix(vectors: Vectors, member: str) -> vector_pb2.Matrix:
    """A matrix message of float32 vectors of shape [rows, dimension]."""
    message = vector_pb2.Matrix(rows=vectors.shape[0], dimension=vectors.shape[1])
    data = vectors.astype(DTYPES[member], copy=False).tobytes()
    if member == "f16":
        message.f16 = data
    else:
        message.f32 = data
    return message


def stage_times(started: float, **seconds: float) -> stage_times_pb2.StageTimes:
    """Stage times in whole microseconds; `started` is the handler's start in seconds of time.monotonic."""
    micros = {f"{stage}_us": int(value * 1e6) for stage, value in seconds.items()}
    return stage_times_pb2.StageTimes(total_us=int((time.monotonic() - started) * 1e6), **micros)


def deadline(context: grpc.aio.ServicerContext[Any, Any]) -> float | None:
    """When the caller stops waiting, in seconds of time.monotonic; None if it set no deadline."""
    remaining: float | None = context.time_remaining()  # None without a deadline, whatever the stubs say
    return None if remaining is None else time.monotonic() + remaining
