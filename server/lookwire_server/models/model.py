"""What every served model is, whatever its backend: it takes named tensors and answers with named tensors."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from lookwire_server.errors import InvalidArgument
from lookwire_server.lanes import Lane
from lookwire_server.models import datatypes
from lookwire_server.models.config import ModelConfig, TensorSpec
from lookwire_server.models.statistics import Statistics

Tensor = np.ndarray[Any, np.dtype[Any]]


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

    def check_wait(self, deadline: float | None) -> None:
        """Raises QueueFull if an interactive request that came now would be refused because it could not be answered in time.

        For work that is done before `infer`: what will be refused needs none.
        """

    async def close(self) -> None:
        """Takes no more requests, finishes the work in hand, then gives back threads and memory."""


def quoted(names: Iterable[str]) -> str:
    """Names as Triton lists them in its messages."""
    return ",".join(f"'{name}'" for name in names)


def check(config: ModelConfig, inputs: Mapping[str, Tensor]) -> int:
    """Checks names, datatypes and shapes against the configuration, and returns the number of rows (1 without batching)."""
    specs = config.specs
    if inputs.keys() != specs.keys():
        check_names(config, inputs)
    rows = -1
    batched = config.max_batch_size > 0
    for name, tensor in inputs.items():
        spec = specs[name]
        shape = tensor.shape
        if tensor.dtype != datatypes.NUMPY[spec.datatype]:
            raise InvalidArgument(
                f"inference input '{name}' data-type is '{datatypes.of(tensor)}', but model '{config.name}' expects "
                f"'{spec.datatype}'"
            )
        dims = shape[1:] if batched else shape
        if dims != spec.dims or (batched and not shape):
            check_shape(config, spec, shape)
        if batched and shape[0] != rows:
            if rows >= 0:
                raise InvalidArgument(
                    f"input '{name}' batch size does not match other inputs for '{config.name}': {shape[0]}, not {rows}"
                )
            rows = shape[0]
    if rows == 0:
        raise InvalidArgument(f"the request for model '{config.name}' has no rows")
    return max(1, rows)


def check_names(config: ModelConfig, inputs: Mapping[str, Tensor]) -> None:
    """Raises InvalidArgument unless the inputs are the model's, less optional ones."""
    if unknown := sorted(inputs.keys() - config.specs.keys()):
        raise InvalidArgument(
            f"unexpected inference input '{unknown[0]}' for model '{config.name}'; it takes "
            f"{', '.join(sorted(config.specs))}"
        )
    required = [spec.name for spec in config.inputs if not spec.optional]
    missing = [name for name in required if name not in inputs]
    if missing:
        total = len(config.inputs)
        expected = (
            f"{total} inputs" if total == len(required) else f"number of inputs between {len(required)} and {total}"
        )
        raise InvalidArgument(
            f"expected {expected} but got {len(inputs)} inputs for model '{config.name}'. Got input(s) "
            f"[{quoted(inputs)}], but missing required input(s) [{quoted(missing)}]. Please provide all required input(s)."
        )


def check_shape(config: ModelConfig, spec: TensorSpec, got: tuple[int, ...]) -> None:
    """Raises InvalidArgument unless the shape is one that the input may have."""
    expected = (-1, *spec.dims) if config.max_batch_size else spec.dims
    if len(got) == len(expected) and all(want in (-1, size) for want, size in zip(expected, got, strict=True)):
        return
    hint = ""
    if config.max_batch_size:
        hint = (
            f" The first dimension is the batch: any number of rows, executed {config.max_batch_size} at a time, because the "
            "model's max_batch_size is above 0."
        )
    raise InvalidArgument(
        f"unexpected shape for input '{spec.name}' for model '{config.name}'. "
        f"Expected {bracketed(expected)}, got {bracketed(got)}.{hint}"
    )


def bracketed(shape: tuple[int, ...]) -> str:
    """A shape as Triton writes it in its messages."""
    return f"[{','.join(map(str, shape))}]"
