"""Which requests may share a batch though their lengths differ: the declared axis is padded to the longest of the batch.

A config declares it by parameters: `pad_value` (an integer) for the inputs whose dims are [-1], and `length_buckets`
(ascending lengths), so that few distinct shapes reach the session.
"""

from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass

from lookwire_server.errors import InvalidArgument
from lookwire_server.models.config import ModelConfig
from lookwire_server.models.model import Tensor


@dataclass(frozen=True, slots=True)
class Padding:
    """The padded inputs of a model; empty `inputs` where nothing is padded. `ragged` inputs may have any shape in a batch."""

    inputs: frozenset[str]
    value: int
    buckets: tuple[int, ...]
    ragged: frozenset[str]

    @staticmethod
    def of(config: ModelConfig) -> "Padding":
        """The padding that the config declares."""
        values = config.integers("pad_value")
        buckets = config.integers("length_buckets")
        if list(buckets) != sorted(set(buckets)) or any(bucket < 1 for bucket in buckets):
            raise InvalidArgument(
                f"model '{config.name}': length_buckets must be positive and ascending, got {buckets}"
            )
        ragged = frozenset(spec.name for spec in config.inputs if spec.ragged)
        if not values:
            return Padding(frozenset(), 0, (), ragged)
        padded = frozenset(spec.name for spec in config.inputs if spec.dims == (-1,)) - ragged
        return Padding(padded, values[0], buckets, ragged)

    def bucket(self, length: int) -> int:
        """The padded length: the smallest bucket that holds `length`, or `length` itself above the last."""
        index = bisect_left(self.buckets, length)
        return self.buckets[index] if index < len(self.buckets) else length

    def length(self, inputs: Mapping[str, Tensor]) -> int:
        """The bucket of a request's padded axis; 1 where nothing is padded."""
        if not self.inputs:
            return 1
        return max((self.bucket(inputs[name].shape[1]) for name in self.inputs if name in inputs), default=1)

    def shape(self, inputs: Mapping[str, Tensor]) -> tuple[object, ...]:
        """What must be equal for requests to share a batch: the inputs' names, and their shapes less batch and free axes."""
        if len(inputs) == 1 and not (self.inputs or self.ragged):
            ((name, tensor),) = inputs.items()
            return (name, *tensor.shape[1:])
        free = self.inputs | self.ragged
        return tuple((name, () if name in free else tensor.shape[1:]) for name, tensor in sorted(inputs.items()))
