"""How requests become one batch: rows are stacked, and the declared axis is padded to the longest of the batch.

A config declares it by parameters: `pad_value` (an integer) for the inputs whose dims are [-1], and `length_buckets`
(ascending lengths), so that few distinct shapes reach the session.
"""

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lookwire_server.errors import InvalidArgument
from lookwire_server.models.config import ModelConfig
from lookwire_server.models.model import Tensor


@dataclass(frozen=True, slots=True)
class Padding:
    """The padded inputs of a model; empty `inputs` where nothing is padded."""

    inputs: frozenset[str]
    value: int
    buckets: tuple[int, ...]

    @staticmethod
    def of(config: ModelConfig) -> "Padding":
        """The padding that the config declares."""
        values = config.integers("pad_value")
        buckets = config.integers("length_buckets")
        if list(buckets) != sorted(set(buckets)) or any(bucket < 1 for bucket in buckets):
            raise InvalidArgument(
                f"model '{config.name}': length_buckets must be positive and ascending, got {buckets}"
            )
        if not values:
            return Padding(frozenset(), 0, ())
        return Padding(frozenset(spec.name for spec in config.inputs if spec.dims == (-1,)), values[0], buckets)

    def bucket(self, length: int) -> int:
        """The padded length: the smallest bucket that holds `length`, or `length` itself above the last."""
        index = bisect_left(self.buckets, length)
        return self.buckets[index] if index < len(self.buckets) else length

    def length(self, inputs: Mapping[str, Tensor]) -> int:
        """The bucket of a request's padded axis; 1 where nothing is padded."""
        return max((self.bucket(inputs[name].shape[1]) for name in self.inputs if name in inputs), default=1)

    def shape(self, inputs: Mapping[str, Tensor]) -> tuple[object, ...]:
        """What must be equal for requests to share a batch: the inputs' names, and their shapes less batch and padded axes."""
        return tuple((name, () if name in self.inputs else tensor.shape[1:]) for name, tensor in sorted(inputs.items()))

    def join(self, requests: Sequence[Mapping[str, Tensor]]) -> tuple[dict[str, Tensor], float | None]:
        """One batch of all requests' rows in order, and the share of its padded elements that is padding."""
        joined: dict[str, Tensor] = {}
        waste = None
        for name in requests[0]:
            tensors = [request[name] for request in requests]
            if name in self.inputs:
                joined[name], waste = self._pad(tensors)
            else:
                joined[name] = tensors[0] if len(tensors) == 1 else np.concatenate(tensors)
        return joined, waste

    def _pad(self, tensors: list[Tensor]) -> tuple[Tensor, float]:
        rows = sum(len(tensor) for tensor in tensors)
        length = self.bucket(max(tensor.shape[1] for tensor in tensors))
        padded = np.full((rows, length), self.value, tensors[0].dtype)
        row = used = 0
        for tensor in tensors:
            padded[row : row + len(tensor), : tensor.shape[1]] = tensor
            row += len(tensor)
            used += tensor.size
        return padded, 1 - used / padded.size
