"""Figures about a collection at one moment."""

from dataclasses import dataclass

import numpy as np

from lookwire_server.search.index.generations import Generations
from lookwire_server.search.index.view import View
from lookwire_server.search.recall import Recall
from lookwire_server.search.store.collections import IndexKind


@dataclass(frozen=True, slots=True)
class Statistics:
    """The fields of the message GetCollectionStatisticsResponse; a recall is None where it was not measured."""

    item_count: int
    sequence: int
    vector_bytes: int
    row_bytes: int
    disk_bytes: int
    kind: IndexKind
    generation: int
    indexed_count: int
    dead_count: int
    near_recall: float | None
    far_recall: float | None
    building: bool

    @classmethod
    def of(cls, view: View, generations: Generations, recall: Recall, *, building: bool) -> "Statistics":
        """Counts, and reads the sizes of the files; for a thread that may wait for the disk."""
        return cls(
            item_count=view.item_count,
            sequence=view.sequence,
            vector_bytes=vector_bytes(view),
            row_bytes=view.rows.row_bytes,
            disk_bytes=generations.disk_bytes,
            kind=IndexKind.EXACT if view.generation is None else view.generation.manifest.kind,
            generation=0 if view.generation is None else view.generation.manifest.generation,
            indexed_count=int(np.count_nonzero(view.alive[: view.rows.sealed_count])),
            dead_count=view.count - view.item_count,
            near_recall=recall.near,
            far_recall=recall.far,
            building=building,
        )

    @property
    def unindexed_count(self) -> int:
        return self.item_count - self.indexed_count

    @property
    def bytes_per_item(self) -> float:
        """0 without items."""
        return (self.vector_bytes + self.row_bytes) / self.item_count if self.item_count else 0.0


def vector_bytes(view: View) -> int:
    """Bytes in memory of the vectors, and of what an index adds to them."""
    sealed = 0 if view.generation is None else view.generation.index.nbytes
    return view.rows.vector_bytes + sealed
