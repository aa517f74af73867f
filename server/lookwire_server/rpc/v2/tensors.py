"""V2 tensors: raw or typed contents to numpy, and numpy to raw contents."""

import struct
from itertools import chain
from typing import Any, TypeAlias

import numpy as np
from tritonclient.grpc import service_pb2 as pb

from lookwire_server.errors import InvalidArgument, ModelFailure
from lookwire_server.models import datatypes
from lookwire_server.models.model import Tensor

InputTensor: TypeAlias = pb.ModelInferRequest.InferInputTensor

# The field of InferTensorContents that holds the elements of a datatype; FP16 travels only raw.
TYPED = {
    "BOOL": "bool_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}
# Elements that are converted one by one take some 0.3 microseconds each: this many hold up the event loop for 3 ms.
MAX_ON_LOOP = 10_000

length = struct.Struct("<I")


def elements(tensor: InputTensor, count: int, raw: bytes, model: str) -> Tensor:
    """The `count` elements of an input, from its typed contents where it has some, else from `raw`."""
    return from_typed(tensor, count, model) if tensor.HasField("contents") else from_raw(tensor, count, raw, model)


def from_raw(tensor: InputTensor, count: int, data: bytes, model: str) -> Tensor:
    """The `count` elements of raw contents: little-endian, a view on `data`; BYTES elements each follow a uint32 length."""
    if tensor.datatype == "BYTES":
        return objects(split(tensor.name, count, data, model))
    dtype = datatypes.NUMPY[tensor.datatype]
    if len(data) != count * dtype.itemsize:
        raise mismatch(tensor.name, model, count * dtype.itemsize, len(data))
    return np.frombuffer(data, dtype)


def from_typed(tensor: InputTensor, count: int, model: str) -> Tensor:
    """The `count` elements of typed contents."""
    name = tensor.name
    field = TYPED.get(tensor.datatype)
    used = [descriptor.name for descriptor, _ in tensor.contents.ListFields()]
    if field is None or used not in ([field], []):
        raise InvalidArgument(
            f"unexpected explicit tensor data for input tensor '{name}' for model '{model}' of type '{tensor.datatype}': "
            f"its elements go in {field or 'raw_input_contents'}, the request has {', '.join(used) or 'none there'}"
        )
    elements: Any = getattr(tensor.contents, field)
    if tensor.datatype == "BYTES":
        check_strings(name, count, len(elements), model)
        return objects(list(elements))
    dtype = datatypes.NUMPY[tensor.datatype]
    if len(elements) != count:
        raise mismatch(name, model, count * dtype.itemsize, len(elements) * dtype.itemsize)
    try:
        return np.fromiter(elements, dtype, count)
    except OverflowError:
        raise InvalidArgument(
            f"input '{name}' for model '{model}' has an element that does not fit {tensor.datatype}"
        ) from None


def split(name: str, count: int, data: bytes, model: str) -> list[bytes]:
    """The `count` elements of a raw BYTES tensor."""
    elements: list[bytes] = []
    unpack = length.unpack_from
    start, end = 0, len(data)
    while start < end:
        if len(elements) == count:
            check_strings(name, count, count + 1, model)
        if start + 4 > end:
            raise InvalidArgument(
                f"incomplete string length indicator for inference input '{name}' for model '{model}': "
                f"expecting 4 bytes but only {end - start} bytes available"
            )
        (size,) = unpack(data, start)
        start += 4
        if start + size > end:
            raise InvalidArgument(
                f"incomplete string data for inference input '{name}' for model '{model}': expecting string of length "
                f"{size} but only {end - start} bytes available"
            )
        elements.append(data[start : start + size])
        start += size
    check_strings(name, count, len(elements), model)
    return elements


def check_strings(name: str, count: int, got: int, model: str) -> None:
    """Refuses another number of BYTES elements than the shape has."""
    if got < count:
        raise InvalidArgument(
            f"expected {count} string elements for inference input '{name}' for model '{model}', got {got}"
        )
    if got > count:
        raise InvalidArgument(
            f"unexpected number of string elements {got} for inference input '{name}' for model '{model}', "
            f"expecting {count}"
        )


def mismatch(name: str, model: str, expected: int, got: int) -> InvalidArgument:
    """The error of contents that are longer or shorter than the shape; sizes in bytes."""
    return InvalidArgument(
        f"input byte size mismatch for input '{name}' for model '{model}'. Expected {expected}, got {got}"
    )


def objects(elements: list[bytes]) -> Tensor:
    """A flat BYTES tensor."""
    flat = np.empty(len(elements), np.object_)
    flat[:] = elements
    return flat


def to_raw(tensor: Tensor) -> bytes:
    """Raw contents of an output: little-endian, row by row; BYTES elements each follow their length as a uint32."""
    if tensor.dtype != np.object_:
        return tensor.tobytes()
    flat = tensor.ravel()
    parts = []
    # One join of all would let no other thread run before its end.
    for start in range(0, len(flat), MAX_ON_LOOP):
        elements = [
            element.encode() if isinstance(element, str) else element
            for element in flat[start : start + MAX_ON_LOOP].tolist()
        ]
        parts.append(b"".join(chain.from_iterable(zip(map(length.pack, map(len, elements)), elements, strict=True))))
    return b"".join(parts)


def named(name: str, tensor: Tensor) -> tuple[str, Tensor]:
    """The V2 datatype of an output, and the output; arrays of numpy's own strings become BYTES."""
    datatype = datatypes.NAMES.get(tensor.dtype)
    if datatype is None:
        if tensor.dtype.kind in "SU":
            return "BYTES", tensor.astype(np.object_)
        raise ModelFailure(
            f"the model's output '{name}' is of numpy's type {tensor.dtype}, which is no type of the protocol"
        )
    return datatype, tensor
