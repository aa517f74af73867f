"""One consistent state of a collection in memory, and the search in it."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from lookwire_server.search.columns import Columns, Mask
from lookwire_server.search.filters import Filter, matching
from lookwire_server.search.plan import Method, Plan
from lookwire_server.search.rows import Rows
from lookwire_server.search.vectors import Matrix, Vector

# The types that faiss ships describe a Python function of this name; the one that there is takes pointers.
_knn_inner_product: Any = faiss.knn_inner_product
_IDSelectorBitmap: Any = faiss.IDSelectorBitmap

# Copying so few vectors together costs less than a scan that asks a bitmap about every slot.
GATHER_MATCHES = 256


@dataclass(frozen=True, slots=True, eq=False)
class Hits:
    """Nearest items, best first."""

    ids: list[str]
    keys: list[int]
    scores: Vector
    slots: NDArray[np.int64]
    plan: Plan

    def at_least(self, score: float) -> "Hits":
        """Returns the hits that have this score or a higher one."""
        # In float32, so that a threshold taken from a reply keeps the hit that it was taken from.
        count = int(np.count_nonzero(self.scores >= np.float32(score)))
        return Hits(self.ids[:count], self.keys[:count], self.scores[:count], self.slots[:count], self.plan)


@dataclass(frozen=True, slots=True, eq=False)
class View:
    """The first `count` slots of some rows, and which of them are alive. Never changes; any thread may read it."""

    rows: Rows
    count: int
    alive: Mask
    item_count: int
    sequence: int

    @property
    def columns(self) -> Columns:
        return self.rows.columns

    @property
    def vectors(self) -> Matrix:
        return self.rows.vectors(self.count)

    def slot_of(self, id: str) -> int | None:
        """Returns the slot of a living item."""
        slot = self.rows.slot_of(id, self.count)
        return slot if slot is not None and self.alive[slot] else None

    def matching(self, filter: Filter | None) -> Mask:
        """Returns which slots hold items that match. Not to be written to."""
        return self.alive if filter is None else matching(filter, self) & self.alive

    def search(self, query: Vector, k: int, filter: Filter | None, excluded_ids: Collection[str]) -> Hits:
        """Returns the k items of the largest inner product with the query, or all that there are."""
        mask = self.matching(filter)
        match_count = self.item_count if filter is None else int(np.count_nonzero(mask))
        excluded = [slot for id in set(excluded_ids) if (slot := self.slot_of(id)) is not None and mask[slot]]
        candidates = match_count - len(excluded)
        if excluded:
            mask = mask.copy()
            mask[excluded] = False
        if candidates <= GATHER_MATCHES and candidates < self.count:
            method = Method.GATHER
            gathered = np.flatnonzero(mask)
            scores, positions = _nearest(query, self.vectors[gathered], min(k, candidates), None)
            slots = gathered[positions]
        else:
            method = Method.EXACT
            selected = None if candidates == self.count else mask
            scores, slots = _nearest(query, self.vectors, min(k, candidates), selected)
        return Hits(
            ids=self.rows.ids(slots),
            keys=self.rows.keys(slots),
            scores=scores,
            slots=slots,
            plan=Plan(method, self.item_count, match_count),
        )


def _nearest(query: Vector, vectors: Matrix, k: int, selected: Mask | None) -> tuple[Vector, NDArray[np.int64]]:
    """Returns scores and rows of the k best, of which there must be k. FAISS reads the memory and changes nothing."""
    scores = np.empty(k, np.float32)
    rows = np.empty(k, np.int64)
    if k:
        arguments = [faiss.swig_ptr(query), faiss.swig_ptr(vectors), len(query), 1, len(vectors), k]
        arguments += [faiss.swig_ptr(scores), faiss.swig_ptr(rows)]
        if selected is not None:
            bits = np.packbits(selected, bitorder="little")
            arguments.append(_IDSelectorBitmap(len(bits), faiss.swig_ptr(bits)))
        _knn_inner_product(*arguments)
    # A cosine by its meaning, but float32 may round it past 1.
    return np.clip(scores, -1.0, 1.0), rows
