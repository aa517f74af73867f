"""The index of one collection as one writer changes it and many readers search it."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lookwire_server.search.fields import Field, Values
from lookwire_server.search.index.columns import Columns, Mask
from lookwire_server.search.index.generation import Generation
from lookwire_server.search.index.rows import Rows
from lookwire_server.search.index.view import View
from lookwire_server.search.vectors import Matrix

# Dead slots cost memory and scan time; below this many slots neither is worth a rebuild.
COMPACTION_SLOTS = 1024
COMPACTION_DEAD_SHARE = 0.25
# A generation pays from so many items (the start reads it rather than the store), and a new one when that share of the slots
# is not indexed or dead: every item is then indexed about log(n) / log(1.1) times while a collection grows.
SEALED_ITEMS = 10_000
SEALED_SHARE = 0.1


@dataclass(frozen=True, slots=True, eq=False)
class Upsert:
    """New versions of items, whose ids differ."""

    sequence: int
    ids: Sequence[str]
    keys: Sequence[int]
    vectors: Matrix
    values: Sequence[Values]


@dataclass(frozen=True, slots=True)
class Delete:
    """The end of items."""

    sequence: int
    ids: Sequence[str]


class VectorIndex:
    """Appends new versions of items and marks old ones dead; `publish` makes both visible at once, as a new `view`.

    Only the writer calls the methods. Readers take `view`, which is one attribute and swapped whole.
    """

    def __init__(
        self, dimension: int, fields: Sequence[Field], sequence: int, generation: Generation | None = None
    ) -> None:
        self._rows = Rows(dimension, fields)
        self._generation = generation
        if generation is not None:
            self._rows.seal(generation.ids, generation.keys, generation.columns)
        self._alive: Mask = np.ones(self._rows.count, np.bool_)
        self._alive_is_shared = False
        self._item_count = self._rows.count
        self._sequence = sequence
        self._changed = False
        self._journal: list[Upsert | Delete] | None = None
        self.view = self._new_view()

    @property
    def item_count(self) -> int:
        """The number of items, with those that are not published yet."""
        return self._item_count

    @property
    def sequence(self) -> int:
        """The number of the last write, be it published or not."""
        return self._sequence

    def reserve(self, count: int) -> None:
        """Makes room for so many vectors beyond the sealed ones."""
        self._rows.reserve(count)

    def upsert(self, change: Upsert) -> None:
        replaced = self._rows.append(change.ids, change.keys, change.vectors, change.values)
        count = self._rows.count
        if count > len(self._alive):
            # All slots beyond those in use are true already, so that a new one needs no mark.
            grown = np.ones(count + count // 2, np.bool_)
            grown[: len(self._alive)] = self._alive
            self._alive, self._alive_is_shared = grown, False
        self._item_count += len(change.ids)
        self._kill(replaced)
        self._note(change)

    def delete(self, change: Delete) -> None:
        slots = [slot for id in set(change.ids) if (slot := self._rows.slot_of(id, self._rows.count)) is not None]
        self._kill(np.array(slots, np.int64))
        self._note(change)

    def keep(self, keys: NDArray[np.int64]) -> NDArray[np.int64]:
        """Kills all slots but those with the given keys, which rise; returns the keys that have no slot."""
        slots = self._rows.slots_of_keys(keys, self._rows.count)
        dead = np.ones(self._rows.count, np.bool_)
        dead[slots[slots >= 0]] = False
        self._kill(np.flatnonzero(dead))
        missing: NDArray[np.int64] = keys[slots < 0]
        return missing

    def redeclare(self, columns: Columns) -> None:
        """Takes columns of other fields, which have a row for each slot."""
        self._rows = self._rows.with_columns(columns)
        # What was recorded has values of the fields before.
        self._journal = None
        self._changed = True

    def publish(self) -> None:
        """Makes every change visible, or does nothing if there is none."""
        if not self._changed:
            return
        count = self._rows.count
        wasteful = count >= COMPACTION_SLOTS and count - self._item_count > count * COMPACTION_DEAD_SHARE
        if wasteful and self._generation is None:
            self._rows = self._rows.compacted(self._alive[:count])
            self._alive = np.ones(self._rows.count, np.bool_)
        self.view = self._new_view()
        self._changed = False

    @property
    def wants_generation(self) -> bool:
        """Whether so much was written since the last generation that a new one pays."""
        count, sealed = self._rows.count, self._rows.sealed_count
        stale = count - sealed + count - self._item_count
        large = self._item_count >= SEALED_ITEMS or self._generation is not None
        return large and stale >= max(SEALED_ITEMS, SEALED_SHARE * count)

    def record(self) -> None:
        """Keeps the changes from now on, so that another index of the same collection can catch up by `succeed`."""
        self._journal = []

    @property
    def is_recording(self) -> bool:
        """Whether all changes since `record` are kept."""
        return self._journal is not None

    def stop_recording(self) -> None:
        self._journal = None

    def succeed(self, other: "VectorIndex") -> None:
        """Becomes what `other` is, which read the store after `record`, with the changes that came after its sequence."""
        # One write may have left several changes.
        known = other._sequence
        for change in self._journal or ():
            if change.sequence <= known:
                continue
            if isinstance(change, Upsert):
                other.upsert(change)
            else:
                other.delete(change)
        self._journal = None
        self._rows, self._generation = other._rows, other._generation
        self._alive, self._alive_is_shared = other._alive, other._alive_is_shared
        self._item_count = other._item_count
        self._changed = True

    def _note(self, change: Upsert | Delete) -> None:
        self._sequence = change.sequence
        self._changed = True
        if self._journal is not None:
            self._journal.append(change)

    def _kill(self, slots: NDArray[np.int64]) -> None:
        living = slots[self._alive[slots]]
        if len(living):
            if self._alive_is_shared:
                self._alive, self._alive_is_shared = self._alive.copy(), False
            self._alive[living] = False
            self._item_count -= len(living)
            self._changed = True

    def _new_view(self) -> View:
        self._alive_is_shared = True
        count = self._rows.count
        return View(self._rows, self._generation, count, self._alive[:count], self._item_count, self._sequence)
