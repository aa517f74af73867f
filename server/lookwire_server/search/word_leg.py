"""The half of a hybrid search that looks for words."""

from dataclasses import dataclass
from typing import cast

import numpy as np
from numpy.typing import NDArray

from lookwire_server.search.fields import FieldType
from lookwire_server.search.index.columns import Mask, StringColumn
from lookwire_server.search.index.view import View, Wanted
from lookwire_server.search.ranking.fusion import Hybrid
from lookwire_server.search.store.collections import CollectionRow
from lookwire_server.search.store.store import Store
from lookwire_server.search.vectors import Vector


@dataclass(frozen=True, slots=True, eq=False)
class WordLeg:
    """Items of a view that match the filter and have any of the words: keys [n], best first, and BM25 scores [n].

    `equal` tells which slots of the view match the filter and have a field that is equal to the words. `stale` says that the
    store has items with the words that the view lacks, or has no longer: then some may be missing.
    """

    hybrid: Hybrid
    keys: NDArray[np.int64]
    scores: Vector
    equal: Mask
    stale: bool


def word_leg(store: Store, row: CollectionRow, view: View, wanted: Wanted, hybrid: Hybrid) -> WordLeg:
    """Looks for the words among the items that `wanted` is about, as many; by a reader thread."""
    matching = _Matching(view, wanted)
    keys, scores = store.words.search(row, hybrid.fields, hybrid.words, wanted.k, matching)
    equal_slots = view.rows.slots_of_keys(store.words.equal(row, hybrid.words, matching), view.count)
    equal = np.zeros(view.count, np.bool_)
    equal[equal_slots] = True
    for field in row.fields:
        if field.type is FieldType.STRING:
            equal |= cast(StringColumn, view.columns[field.name]).equal(hybrid.words, view.count)
    return WordLeg(hybrid, keys, scores, equal & matching.mask, matching.stale)


class _Matching:
    """Tells which keys are of items that a search is about."""

    def __init__(self, view: View, wanted: Wanted) -> None:
        self.mask = view.matching(wanted.scope.filter).copy()
        self.mask[[slot for id in wanted.excluded_ids if (slot := view.slot_of(id)) is not None]] = False
        self.stale = False
        self._view = view

    def __call__(self, keys: NDArray[np.int64]) -> Mask:
        slots = self._view.rows.slots_of_keys(keys, self._view.count)
        accepted = slots >= 0
        alive = self._view.alive[slots[accepted]]
        self.stale |= not (accepted.all() and alive.all())
        accepted[accepted] = self.mask[slots[accepted]]
        return accepted
