"""What the index keeps of every slot."""

import copy
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lookwire_server.search.fields import Field, Values
from lookwire_server.search.index.columns import BYTES_OF_LOOKUP, Columns, Mask
from lookwire_server.search.index.growing import GrowingArray
from lookwire_server.search.vectors import HalfMatrix, Matrix

NOWHERE = -1
# One call of the interpreter for more of them would hold up searches by more than a millisecond.
SEALED_AT_ONCE = 4_096


class Rows:
    """Ids, keys, field values, and vectors by slot; only ever appended to, by the writer.

    A slot holds one version of one item, and keys rise with the slots. The vectors of the first `sealed_count` slots lie in a
    sealed index and not here. Readers use the first `count` slots of the view that they hold, with no lock.
    """

    def __init__(self, dimension: int, fields: Sequence[Field]) -> None:
        self.count = 0
        self.sealed_count = 0
        self.columns = Columns(fields)
        self._dimension = dimension
        self._ids: list[str] = []
        self._id_bytes = 0
        self._keys = GrowingArray(np.int64)
        self._vectors = GrowingArray(np.float16, (dimension,))
        # The slot of the version before, so that a reader of an older view finds the version that it may see.
        self._previous = GrowingArray(np.int64)
        self._latest: dict[str, int] = {}

    def seal(self, ids: list[str], keys: NDArray[np.int64], columns: Columns) -> None:
        """Takes the slots of a sealed index, with ids that differ; only while there are none."""
        self._ids, self.columns = ids, columns
        self._keys.append(keys)
        self._previous.append(np.full(len(ids), NOWHERE, np.int64))
        for start in range(0, len(ids), SEALED_AT_ONCE):
            part = ids[start : start + SEALED_AT_ONCE]
            self._id_bytes += sum(map(sys.getsizeof, part))
            self._latest.update(zip(part, range(start, start + len(part)), strict=True))
        self.count = self.sealed_count = len(ids)

    def reserve(self, count: int) -> None:
        """Makes room for so many vectors, so that none is copied while they are appended."""
        self._vectors.reserve(count)

    def append(
        self, ids: Sequence[str], keys: Sequence[int], vectors: Matrix, values: Sequence[Values]
    ) -> NDArray[np.int64]:
        """Adds a slot for each item, whose ids differ; returns the slots that held them before."""
        self._vectors.append(vectors.astype(np.float16, copy=False))
        self.columns.append(values)
        return self._extend(ids, np.array(keys, np.int64))

    def _extend(self, ids: Sequence[str], keys: NDArray[np.int64]) -> NDArray[np.int64]:
        previous: NDArray[np.int64] = np.array([self._latest.get(id, NOWHERE) for id in ids], np.int64)
        self._ids.extend(ids)
        self._id_bytes += sum(map(sys.getsizeof, ids))
        self._keys.append(keys)
        self._previous.append(previous)
        # Last, because a reader that finds a slot here reads what was written above.
        self._latest.update(zip(ids, range(self.count, self.count + len(ids)), strict=True))
        self.count += len(ids)
        replaced: NDArray[np.int64] = previous[previous != NOWHERE]
        return replaced

    def slot_of(self, id: str, count: int) -> int | None:
        """Returns the slot of the newest version among the first `count` slots, dead or alive."""
        slot = self._latest.get(id, NOWHERE)
        while slot >= count:
            slot = int(self._previous.first(slot + 1)[slot])
        return None if slot == NOWHERE else slot

    def slots_of_keys(self, keys: NDArray[np.int64], count: int) -> NDArray[np.int64]:
        """Returns the slot of each key among the first `count` slots; -1 for a key that is not there."""
        all_keys = self._keys.first(count)
        if not count:
            return np.full(len(keys), NOWHERE, np.int64)
        slots = np.minimum(np.searchsorted(all_keys, keys), count - 1)
        return np.where(all_keys[slots] == keys, slots, NOWHERE)

    def ids(self, slots: NDArray[np.int64]) -> list[str]:
        return [self._ids[slot] for slot in slots.tolist()]

    def keys(self, count: int) -> NDArray[np.int64]:
        """Returns the keys of the first `count` slots. Not to be written to."""
        return self._keys.first(count)

    def tail(self, count: int) -> HalfMatrix:
        """Returns the vectors of the slots from `sealed_count` to `count`."""
        return self._vectors.first(count - self.sealed_count)

    @property
    def vector_bytes(self) -> int:
        """Bytes in memory of the vectors that are not in the sealed index."""
        return self._vectors.nbytes

    @property
    def row_bytes(self) -> int:
        """Bytes in memory of all the rest, estimated from the sizes of Python's objects."""
        arrays = self._keys.nbytes + self._previous.nbytes + self.columns.nbytes
        return arrays + self._id_bytes + BYTES_OF_LOOKUP * self.count

    def with_columns(self, columns: Columns) -> "Rows":
        """Returns the same rows with other field values, for whoever appends from now on; readers keep what they have."""
        rows = copy.copy(self)
        rows.columns = columns
        return rows

    def compacted(self, alive: Mask) -> "Rows":
        """Returns the living slots as new rows, in the same order; only without a sealed index."""
        slots = np.flatnonzero(alive)
        rows = Rows(self._dimension, ())
        rows._vectors.append(self.tail(self.count)[slots])
        rows.columns = self.columns.compacted(slots, self.count)
        rows._extend(self.ids(slots), self.keys(self.count)[slots])
        return rows

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Returns ids, keys and field values for a file; of rows that nobody appends to."""
        ids = [id.encode() for id in self._ids]
        return {
            "ids": np.frombuffer(b"".join(ids), np.uint8),
            "id_ends": np.cumsum([len(id) for id in ids], dtype=np.int64),
            "keys": self._keys.first(self.count),
            **self.columns.arrays(self.count),
        }
