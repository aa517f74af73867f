"""V2 tensors: raw or typed contents to numpy, and numpy to raw contents."""

import struct
from collections.abc import Sequence
from typing import Any

import numpy as np
from tritonclient.grpc import service_pb2 as pb

from lookwire_server.errors import InvalidArgument
from lookwire_server.models import datatypes
from lookwire_server.models.model import Tensor

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


def inputs(request: pb.ModelInferRequest) -> dict[str, Tensor]:
    """The input tensors of a request by name."""
    raw: Sequence[bytes] = list(request.raw_input_contents)
    if raw and any(tensor.HasField("contents") for tensor in request.inputs):
        raise InvalidArgument(
            f"contents field must not be specified when using raw_input_contents for model '{request.model_name}'"
        )
    if raw and len(raw) != len(request.inputs):
        raise InvalidArgument(f"expected {len(request.inputs)} raw_input_contents, one for each input, got {len(raw)}")
    tensors: dict[str, Tensor] = {}
    for index, tensor in enumerate(request.inputs):
        if tensor.name in tensors:
            raise InvalidArgument(f"input '{tensor.name}' already exists in request")
        if tensor.datatype not in datatypes.NUMPY:
            raise InvalidArgument(
                f"input '{tensor.name}' has datatype '{tensor.datatype}', which is none of the protocol's"
            )
        if any(dim < 0 for dim in tensor.shape):
            raise InvalidArgument(f"input '{tensor.name}' has a negative dimension: {list(tensor.shape)}")
        flat = from_raw(tensor, raw[index]) if raw else from_typed(tensor)
        expected = int(np.prod(tensor.shape, dtype=np.int64))
        if flat.size != expected:
            raise InvalidArgument(
                f"input '{tensor.name}' of shape {list(tensor.shape)} expects {expected} elements, got {flat.size}"
            )
        tensors[tensor.name] = flat.reshape(tuple(tensor.shape))
    return tensors


def from_raw(tensor: pb.ModelInferRequest.InferInputTensor, data: bytes) -> Tensor:
    """The flat elements of raw contents: little-endian; BYTES elements each have a uint32 length before them."""
    if tensor.datatype == "BYTES":
        return split(tensor.name, data)
    dtype = datatypes.NUMPY[tensor.datatype]
    if len(data) % dtype.itemsize:
        raise InvalidArgument(f"input '{tensor.name}' byte size {len(data)} is no multiple of {dtype.itemsize}")
    return np.frombuffer(data, dtype)


def from_typed(tensor: pb.ModelInferRequest.InferInputTensor) -> Tensor:
    """The flat elements of typed contents."""
    used = [field.name for field, _ in tensor.contents.ListFields()]
    if tensor.datatype not in TYPED or any(name != TYPED[tensor.datatype] for name in used):
        raise InvalidArgument(
            f"unexpected explicit tensor data for input '{tensor.name}': "
            f"{tensor.datatype} goes in {TYPED.get(tensor.datatype, 'raw_input_contents')}"
        )
    elements: Any = getattr(tensor.contents, TYPED[tensor.datatype])
    if tensor.datatype == "BYTES":
        flat = np.empty(len(elements), np.object_)
        flat[:] = list(elements)
        return flat
    try:
        return np.array(elements, datatypes.NUMPY[tensor.datatype])
    except OverflowError:
        raise InvalidArgument(f"input '{tensor.name}' has an element that does not fit {tensor.datatype}") from None


def split(name: str, data: bytes) -> Tensor:
    """The elements of a raw BYTES tensor."""
    elements = []
    start = 0
    while start < len(data):
        if start + 4 > len(data):
            raise InvalidArgument(f"incomplete string length indicator for inference input '{name}'")
        (length,) = struct.unpack_from("<I", data, start)
        start += 4
        if start + length > len(data):
            raise InvalidArgument(
                f"incomplete string data for inference input '{name}', expecting string of length {length} "
                f"but only {len(data) - start} bytes available"
            )
        elements.append(data[start : start + length])
        start += length
    flat = np.empty(len(elements), np.object_)
    flat[:] = elements
    return flat


def to_raw(tensor: Tensor) -> bytes:
    """Raw contents of an output."""
    if tensor.dtype != np.object_:
        return tensor.tobytes()
    encoded = [element.encode() if isinstance(element, str) else element for element in tensor.ravel()]
    return b"".join(struct.pack("<I", len(element)) + element for element in encoded)


def datatype(tensor: Tensor) -> str:
    """The V2 datatype of an output."""
    return next(name for name, dtype in datatypes.NUMPY.items() if dtype == tensor.dtype)
