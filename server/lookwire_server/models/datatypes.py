"""Tensor element types: their names in config.pbtxt, in the V2 protocol, and in numpy."""

from typing import Any

import numpy as np

# KServe V2 name -> numpy; BYTES elements are Python bytes objects.
NUMPY: dict[str, np.dtype[np.generic]] = {
    "BOOL": np.dtype(np.bool_),
    "UINT8": np.dtype(np.uint8),
    "UINT16": np.dtype(np.uint16),
    "UINT32": np.dtype(np.uint32),
    "UINT64": np.dtype(np.uint64),
    "INT8": np.dtype(np.int8),
    "INT16": np.dtype(np.int16),
    "INT32": np.dtype(np.int32),
    "INT64": np.dtype(np.int64),
    "FP16": np.dtype(np.float16),
    "FP32": np.dtype(np.float32),
    "FP64": np.dtype(np.float64),
    "BYTES": np.dtype(np.object_),
}


def from_config(name: str) -> str:
    """The V2 name of a config.pbtxt data type, e.g. TYPE_STRING -> BYTES."""
    return "BYTES" if name == "TYPE_STRING" else name.removeprefix("TYPE_")


def to_config(name: str) -> str:
    """The config.pbtxt data type of a V2 name, e.g. BYTES -> TYPE_STRING."""
    return "TYPE_STRING" if name == "BYTES" else f"TYPE_{name}"


NAMES = {dtype: name for name, dtype in NUMPY.items()}


def of(tensor: np.ndarray[Any, np.dtype[Any]]) -> str:
    """The V2 name of a tensor's datatype; numpy's own name where the protocol has none."""
    return NAMES.get(tensor.dtype, str(tensor.dtype))
