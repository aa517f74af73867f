"""What every served model is, whatever its backend: it takes named tensors and answers with named tensors."""

import enum
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from lookwire_server.errors import InvalidArgument
from lookwire_server.models import datatypes
from lookwire_server.models.config import ModelConfig
from lookwire_server.models.statistics import Statistics

Tensor = np.ndarray[Any, np.dtype[Any]]


class Lane(enum.StrEnum):
    """A priority class of work: interactive goes first, bulk fills what is left."""

    INTERACTIVE = "interactive"
    BULK = "bulk"


Parameter = str | int | float | bool


@dataclass(slots=True)
class Request:
    """Tensors for one model, and how to treat them. Nobody changes a request once it is made.

    `deadline` is in seconds of `time.monotonic`; None: nobody stops waiting. `priority` is Triton's, 1 the highest, 0 the
    model's default. `timeout` is the longest wait in the queue in seconds, 0 the model's default. `outputs` are those asked
    for, empty for all. `parameters` are the caller's own, for models that read them.
    """

    inputs: Mapping[str, Tensor]
    lane: Lane = Lane.INTERACTIVE
    deadline: float | None = None
    id: str = ""
    priority: int = 0
    timeout: float = 0.0
    outputs: tuple[str, ...] = ()
    parameters: Mapping[str, Parameter] | None = None


@dataclass(slots=True)
class Response:
    """The outputs, the longest wait of a row in the queue, and the longest execution that a row was part of."""

    outputs: Mapping[str, Tensor]
    queue_seconds: float
    infer_seconds: float
    parameters: Mapping[str, Parameter] | None = None


class Model(Protocol):
    """A loaded version of a model, ready to answer."""

    config: ModelConfig
    version: int
    statistics: Statistics

    async def infer(self, request: Request) -> Response:
        """Answers one request; raises a LookwireError that says why it can't."""

    async def close(self) -> None:
        """Takes no more requests, finishes the work in hand, then gives back threads and memory."""


def quoted(names: Iterable[str]) -> str:
    """Names as Triton lists them in its messages."""
    return ",".join(f"'{name}'" for name in names)


def check(config: ModelConfig, inputs: Mapping[str, Tensor]) -> int:
    """Checks names, datatypes and shapes against the configuration, and returns the number of rows (1 without batching)."""
    specs = {spec.name: spec for spec in config.inputs}
    missing = sorted(name for name, spec in specs.items() if not spec.optional and name not in inputs)
    if missing:
        required = sum(not spec.optional for spec in config.inputs)
        expected = (
            f"{len(specs)} inputs"
            if required == len(specs)
            else f"number of inputs between {required} and {len(specs)}"
        )
        raise InvalidArgument(
            f"expected {expected} but got {len(inputs)} inputs for model '{config.name}'. Got input(s) "
            f"[{quoted(inputs)}], but missing required input(s) "
            f"[{quoted(missing)}]. Please provide all required input(s)."
        )
    if unknown := sorted(inputs.keys() - specs.keys()):
        raise InvalidArgument(
            f"unexpected inference input '{unknown[0]}' for model '{config.name}'; it takes {', '.join(sorted(specs))}"
        )
    rows = None
    for name, tensor in inputs.items():
        spec = specs[name]
        if tensor.dtype != datatypes.NUMPY[spec.datatype]:
            raise InvalidArgument(
                f"inference input '{name}' data-type is '{tensor.dtype}', but model '{config.name}' expects '{spec.datatype}'"
            )
        shape = (-1, *spec.dims) if config.max_batch_size else spec.dims
        if len(tensor.shape) != len(shape) or any(
            want not in (-1, got) for want, got in zip(shape, tensor.shape, strict=True)
        ):
            raise InvalidArgument(
                f"unexpected shape for input '{name}' for model '{config.name}'. "
                f"Expected {list(shape)}, got {list(tensor.shape)}."
                + (" The first dimension is the batch." if config.max_batch_size else "")
            )
        if config.max_batch_size:
            if rows not in (None, tensor.shape[0]):
                raise InvalidArgument(
                    f"input '{name}' batch size does not match other inputs for '{config.name}': {tensor.shape[0]}, not {rows}"
                )
            rows = tensor.shape[0]
    if rows == 0:
        raise InvalidArgument(f"the request for model '{config.name}' has no rows")
    return rows or 1
