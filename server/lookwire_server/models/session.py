"""What executes batches: a session of any backend, and the one that stacks rows for a function of whole tensors."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import prod
from typing import Protocol

import numpy as np

from lookwire_server.errors import LookwireError
from lookwire_server.models.config import ModelConfig
from lookwire_server.models.model import Parameter, Request, Tensor
from lookwire_server.models.padding import Padding

Run = Callable[[dict[str, Tensor]], Mapping[str, Tensor]]


@dataclass(slots=True)
class Execution:
    """What became of a batch: for each request its outputs or its error, and the seconds of each phase.

    `padding` is the share of the padded elements that was padding, None where nothing is padded. `parameters` are what the
    model says beside its outputs, for each request; None where it says nothing.
    """

    answers: Sequence[Mapping[str, Tensor] | LookwireError]
    input_seconds: float
    infer_seconds: float
    output_seconds: float
    padding: float | None = None
    parameters: Sequence[Mapping[str, Parameter] | None] | None = None

    @property
    def seconds(self) -> float:
        """The time of all phases."""
        return self.input_seconds + self.infer_seconds + self.output_seconds


class Session(Protocol):
    """One serial execution lane of a model: one instance.

    `immediate` says that an execution takes less time than handing it to a thread: it computes nothing and waits for nothing.
    It is then executed on the event loop. `concurrent` says that two threads may execute at once, each a batch of one lane, and
    that the system's priorities then decide whose goes faster.
    """

    @property
    def immediate(self) -> bool: ...

    @property
    def concurrent(self) -> bool: ...

    def execute(self, requests: Sequence[Request]) -> Execution:
        """Answers a batch, one request or more; called from one thread, always the same, unless it is `concurrent`."""

    def close(self) -> None:
        """Gives back what the instance holds; called once, when nothing is executing."""


class StackedSession:
    """Stacks the rows of all requests, calls `run` once on whole tensors, and hands each request its rows.

    Padded inputs are filled to the longest of the batch, and outputs of that length are cut back. Ragged inputs are joined
    end to end in one dimension; outputs that the config scatters come out so, and each request gets its elements in the
    shape of its input. Tensors with a `reshape` in the config go in and come out reshaped.
    """

    immediate = False
    concurrent = False

    def __init__(self, config: ModelConfig, run: Run) -> None:
        self._batched = config.max_batch_size > 0
        self._padding = Padding.of(config)
        self._run = run
        self._in_shape = {spec.name: spec.reshape for spec in config.inputs if spec.reshape is not None}
        self._out_shape = {spec.name: spec.dims for spec in config.outputs if spec.reshape is not None}
        self._scattered = config.scattered
        self._sized_by_length = {spec.name for spec in config.outputs if spec.dims[0] == -1} - config.scattered.keys()

    def execute(self, requests: Sequence[Request]) -> Execution:
        start = time.perf_counter()
        inputs, waste = self._join(requests)
        joined = time.perf_counter()
        outputs = self._run(inputs)
        ran = time.perf_counter()
        answers = self._split(requests, inputs, outputs)
        return Execution(answers, joined - start, ran - joined, time.perf_counter() - ran, waste)

    def _join(self, requests: Sequence[Request]) -> tuple[dict[str, Tensor], float | None]:
        """One batch of all requests' rows in order, and the share of its padded elements that is padding."""
        joined: dict[str, Tensor] = {}
        waste = None
        for name in requests[0].inputs:
            tensors = [request.inputs[name] for request in requests]
            if name in self._padding.ragged:
                joined[name] = np.concatenate([tensor.ravel() for tensor in tensors])
                continue
            if name in self._padding.inputs:
                batch, waste = self._pad(tensors)
            else:
                batch = tensors[0] if len(tensors) == 1 else np.concatenate(tensors)
            joined[name] = self._reshaped(batch, self._in_shape.get(name))
        return joined, waste

    def _pad(self, tensors: list[Tensor]) -> tuple[Tensor, float]:
        rows = sum(len(tensor) for tensor in tensors)
        length = self._padding.bucket(max(tensor.shape[1] for tensor in tensors))
        padded = np.full((rows, length), self._padding.value, tensors[0].dtype)
        row = used = 0
        for tensor in tensors:
            padded[row : row + len(tensor), : tensor.shape[1]] = tensor
            row += len(tensor)
            used += tensor.size
        return padded, 1 - used / max(1, padded.size)

    def _split(
        self, requests: Sequence[Request], inputs: Mapping[str, Tensor], outputs: Mapping[str, Tensor]
    ) -> list[dict[str, Tensor]]:
        """Each request's part of the outputs."""
        if not self._batched:
            return [{name: self._reshaped(tensor, self._out_shape.get(name)) for name, tensor in outputs.items()}]
        ends = list(accumulate(len(next(iter(request.inputs.values()), ())) for request in requests))
        spans = list(zip([0, *ends[:-1]], ends, strict=True))
        parts: dict[str, list[Tensor]] = {}
        for name, tensor in outputs.items():
            if (source := self._scattered.get(name, "")) in inputs:
                parts[name] = scattered(name, tensor, [request.inputs[source].shape for request in requests])
                continue
            if ends[-1] and len(tensor) != ends[-1]:
                raise RuntimeError(f"output '{name}' has {len(tensor)} rows for a batch of {ends[-1]}")
            rows = self._reshaped(tensor, self._out_shape.get(name))
            parts[name] = [rows[start:end] for start, end in spans]
        answers = [{name: part[place] for name, part in parts.items()} for place in range(len(requests))]
        if self._padding.inputs:
            self._cut(requests, inputs, answers)
        return answers

    def _cut(
        self, requests: Sequence[Request], inputs: Mapping[str, Tensor], answers: Sequence[dict[str, Tensor]]
    ) -> None:
        """Cuts outputs that are as long as the padded inputs back to the length that each request sent."""
        padded = next((name for name in inputs if name in self._padding.inputs), None)
        if padded is None:  # optional, and not sent
            return
        length = inputs[padded].shape[1]
        for request, answer in zip(requests, answers, strict=True):
            for name in self._sized_by_length & answer.keys():
                if answer[name].shape[1] == length:
                    answer[name] = answer[name][:, : request.inputs[padded].shape[1]]

    def _reshaped(self, tensor: Tensor, dims: tuple[int, ...] | None) -> Tensor:
        if dims is None:
            return tensor
        return tensor.reshape((len(tensor), *dims) if self._batched else dims)

    def close(self) -> None:
        """Nothing of its own to give back."""


def scattered(name: str, tensor: Tensor, shapes: Sequence[tuple[int, ...]]) -> list[Tensor]:
    """The elements of an output in these shapes, one after the other (Triton's BATCH_SCATTER_WITH_INPUT_SHAPE)."""
    ends = list(accumulate(prod(shape) for shape in shapes))
    if tensor.size != ends[-1]:
        raise RuntimeError(f"output '{name}' has {tensor.size} elements for a ragged batch of {ends[-1]}")
    elements = tensor.ravel()
    return [elements[start:end].reshape(shape) for start, end, shape in zip([0, *ends[:-1]], ends, shapes, strict=True)]
