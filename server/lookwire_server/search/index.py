"""The vectors of one collection in memory, as one writer changes them and many readers search them."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from lookwire_server.search.columns import Mask
from lookwire_server.search.fields import Field, Values
from lookwire_server.search.rows import Rows
from lookwire_server.search.vectors import Matrix
from lookwire_server.search.view import View

# Dead slots cost memory and scan time; below this many slots neither is worth a rebuild.
COMPACTION_SLOTS = 1024
COMPACTION_DEAD_SHARE = 0.25


class VectorIndex:
    """Appends new versions of items and marks old ones dead; `publish` makes both visible at once, as a new `view`.

    Only the writer calls the methods. Readers take `view`, which is one attribute and swapped whole.
    """

    def __init__(self, dimension: int, fields: Sequence[Field], sequence: int) -> None:
        self._rows = Rows(dimension, fields)
        self._alive: Mask = np.empty(0, np.bool_)
        self._alive_is_shared = False
        self._item_count = 0
        self._sequence = sequence
        self._changed = False
        self.view = self._new_view()

    @property
    def item_count(self) -> int:
        """The number of items, with those that are not published yet."""
        return self._item_count

    def upsert(
        self, sequence: int, ids: Sequence[str], keys: Sequence[int], vectors: Matrix, values: Sequence[Values]
    ) -> None:
        replaced = self._rows.append(ids, keys, vectors, values)
        count = self._rows.count
        if count > len(self._alive):
            # All slots beyond those in use are true already, so that a new one needs no mark.
            grown = np.ones(count + count // 2, np.bool_)
            grown[: len(self._alive)] = self._alive
            self._alive, self._alive_is_shared = grown, False
        self._item_count += len(ids)
        self._sequence = sequence
        self._changed = True
        self._kill(replaced)

    def delete(self, sequence: int, ids: Sequence[str]) -> None:
        slots = [slot for id in set(ids) if (slot := self._rows.slot_of(id, self._rows.count)) is not None]
        self._sequence = sequence
        self._changed = True
        self._kill(np.array(slots, np.int64))

    def publish(self) -> None:
        """Makes every change visible, or does nothing if there is none."""
        if not self._changed:
            return
        count = self._rows.count
        if count >= COMPACTION_SLOTS and count - self._item_count > count * COMPACTION_DEAD_SHARE:
            self._rows = self._rows.compacted(self._alive[:count])
            self._alive = np.ones(self._rows.count, np.bool_)
        self.view = self._new_view()
        self._changed = False

    def _kill(self, slots: NDArray[np.int64]) -> None:
        living = slots[self._alive[slots]]
        if len(living):
            if self._alive_is_shared:
                self._alive, self._alive_is_shared = self._alive.copy(), False
            self._alive[living] = False
            self._item_count -= len(living)

    def _new_view(self) -> View:
        self._alive_is_shared = True
        count = self._rows.count
        return View(self._rows, count, self._alive[:count], self._item_count, self._sequence)
