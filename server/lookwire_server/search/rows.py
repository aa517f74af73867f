"""What the index keeps of every slot."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from lookwire_server.search.columns import Columns, Mask
from lookwire_server.search.fields import Field, Values
from lookwire_server.search.growing import GrowingArray
from lookwire_server.search.vectors import Matrix

NOWHERE = -1


class Rows:
    """Ids, keys, vectors and field values by slot; only ever appended to, by the writer.

    A slot holds one version of one item. Readers use the first `count` slots of the view that they hold, with no lock.
    """

    def __init__(self, dimension: int, fields: Sequence[Field]) -> None:
        self.count = 0
        self.columns = Columns(fields)
        self._dimension = dimension
        self._ids: list[str] = []
        self._keys = GrowingArray(np.int64)
        self._vectors = GrowingArray(np.float32, (dimension,))
        # The slot of the version before, so that a reader of an older view finds the version that it may see.
        self._previous = GrowingArray(np.int64)
        self._latest: dict[str, int] = {}

    def append(
        self, ids: Sequence[str], keys: Sequence[int], vectors: Matrix, values: Sequence[Values]
    ) -> NDArray[np.int64]:
        """Adds a slot for each item, whose ids differ; returns the slots that held them before."""
        previous: NDArray[np.int64] = np.array([self._latest.get(id, NOWHERE) for id in ids], np.int64)
        self._ids.extend(ids)
        self._keys.append(np.array(keys, np.int64))
        self._vectors.append(vectors)
        self._previous.append(previous)
        self.columns.append(values)
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

    def ids(self, slots: NDArray[np.int64]) -> list[str]:
        return [self._ids[slot] for slot in slots]

    def keys(self, slots: NDArray[np.int64]) -> list[int]:
        keys: list[int] = self._keys.first(self.count)[slots].tolist()
        return keys

    def vectors(self, count: int) -> Matrix:
        return self._vectors.first(count)

    def compacted(self, alive: Mask) -> "Rows":
        """Returns the living slots as new rows, in the same order."""
        slots = np.flatnonzero(alive)
        rows = Rows(self._dimension, ())
        rows.append(self.ids(slots), self.keys(slots), self.vectors(self.count)[slots], [{}] * len(slots))
        rows.columns = self.columns.compacted(slots, self.count)
        return rows
