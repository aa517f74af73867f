"""Tensor elements: JSON to V2 raw contents and back.

Long tensors are worked on in chunks, so that a thread that does so lets the event loop run in between.
"""

import json
from typing import Any

import numpy as np

from lookwire_server.errors import InvalidArgument
from lookwire_server.models import datatypes
from lookwire_server.rpc.http.document import WORDS, described
from lookwire_server.rpc.v2 import tensors

CHUNK = 1 << 14
# The types of an element in JSON by numpy's kind of the tensor; all other kinds are integers.
PYTHON: dict[str, set[type]] = {"b": {bool}, "f": {int, float}}


def to_raw(data: object, datatype: str, where: str) -> bytes:
    """Raw contents of JSON elements in row-major order, nested in any way; `where` names them in errors."""
    if datatype not in datatypes.NUMPY:
        raise InvalidArgument(f"{where}: no {datatype} elements in JSON; send them as binary data")
    elements = flat(data, where)
    if datatype == "BYTES":
        return strings(elements, where)
    dtype = datatypes.NUMPY[datatype]
    allowed = PYTHON.get(dtype.kind, {int})
    array = np.empty(len(elements), dtype)
    with np.errstate(over="ignore"):
        for start in range(0, len(elements), CHUNK):
            chunk = elements[start : start + CHUNK]
            part = array[start : start + CHUNK]
            check_types(chunk, allowed, datatype, f"{where}.data", start)
            try:
                part[:] = chunk
            except OverflowError:
                raise out_of_range(chunk, dtype, datatype, f"{where}.data", start) from None
            if dtype.kind == "f" and not np.isfinite(part).all():
                raise out_of_range(chunk, dtype, datatype, f"{where}.data", start)
    return array.tobytes()


def flat(data: object, where: str) -> list[Any]:
    """The innermost elements of nested lists."""
    if not isinstance(data, list):
        raise InvalidArgument(f"{where}: data must be an array, got {described(data)}")
    while data and isinstance(data[0], list):
        rows, data = data, []
        for index, row in enumerate(rows):
            if not isinstance(row, list):
                raise InvalidArgument(
                    f"{where}: data nests arrays unevenly: {described(row)} beside arrays, at {index}"
                )
            data.extend(row)
    return data


def strings(elements: list[Any], where: str) -> bytes:
    """Raw contents of BYTES elements: each its length as a little-endian uint32, then its UTF-8."""
    parts: list[bytes] = []
    for start in range(0, len(elements), CHUNK):
        chunk = elements[start : start + CHUNK]
        check_types(chunk, {str}, "BYTES", f"{where}.data", start)
        for index, text in enumerate(chunk, start):
            try:
                encoded = text.encode()
            except UnicodeEncodeError:
                raise InvalidArgument(f"{where}.data[{index}] has half of a surrogate pair, which is no text") from None
            parts += (len(encoded).to_bytes(4, "little"), encoded)
    return b"".join(parts)


def check_types(chunk: list[Any], allowed: set[type], datatype: str, where: str, start: int) -> None:
    if not set(map(type, chunk)) <= allowed:
        index, element = next((i, element) for i, element in enumerate(chunk, start) if type(element) not in allowed)
        expected = " or ".join(sorted(WORDS[kind] for kind in allowed))
        raise InvalidArgument(f"{where}[{index}] must be {expected} for {datatype}, got {described(element)}")


def out_of_range(
    chunk: list[Any], dtype: np.dtype[np.generic], datatype: str, where: str, start: int
) -> InvalidArgument:
    """The error that names the first element of a chunk that its datatype cannot hold."""
    limits: Any = np.finfo(dtype) if dtype.kind == "f" else np.iinfo(dtype)
    low, high = (float(limits.min), float(limits.max)) if dtype.kind == "f" else (limits.min, limits.max)
    index = next((i for i, element in enumerate(chunk, start) if not low <= element <= high), start)
    return InvalidArgument(f"{where}[{index}] does not fit {datatype}, which holds {low} to {high}")


def to_json(raw: bytes, datatype: str, count: int, name: str, model: str) -> str:
    """The `count` elements of an output's raw contents as a flat JSON array."""
    if datatype not in datatypes.NUMPY:
        raise InvalidArgument(f"no {datatype} elements in JSON; ask for output '{name}' with binary_data")
    array = None if datatype == "BYTES" else np.frombuffer(raw, datatypes.NUMPY[datatype])
    texts = tensors.split(name, count, raw, model) if array is None else []
    parts = []
    for start in range(0, count, CHUNK):
        rows = slice(start, start + CHUNK)
        try:
            chunk = [text.decode() for text in texts[rows]] if array is None else array[rows].tolist()
            parts.append(json.dumps(chunk, allow_nan=False, separators=(",", ":"))[1:-1])
        except ValueError as error:
            why = "bytes that are not UTF-8" if isinstance(error, UnicodeDecodeError) else "a NaN or infinity"
            raise InvalidArgument(
                f"output '{name}' holds {why}, which JSON cannot say; ask for it with binary_data"
            ) from None
    return f"[{','.join(parts)}]"
