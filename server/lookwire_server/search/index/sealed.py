"""What an index is that is built once, searched by many threads and never changed.

It covers the slots 0 to `count` - 1 and holds vectors of length 1 as float16. FAISS reads such an index safely from any
number of threads as long as nothing is set on it: what belongs to one search goes in that search's parameters.
"""

from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Any, Protocol

import faiss
import numpy as np
from numpy.typing import NDArray

from lookwire_server.search.plan import Method
from lookwire_server.search.vectors import Matrix

Mask = NDArray[np.bool_]
Slots = NDArray[np.int64]

# So few vectors are compared in about a millisecond, and no approximation keeps its recall under a filter so narrow.
EXACT_MATCHES = 20_000

_IDSelectorBitmap: Any = faiss.IDSelectorBitmap
_read_index: Any = faiss.read_index


@dataclass(frozen=True, slots=True)
class Effort:
    """How hard to look: cells to probe (IVF) or ef_search (HNSW); 0 compares every item.

    `near` is for queries of the same kind as the items, `far` for those of another kind, such as texts among images, which
    lie outside the items' distribution and need more.
    """

    near: int
    far: int

    def of(self, *, far: bool, filtered: bool) -> int:
        """Returns the effort for a query. Where many items do not match every query may be far: what it resembles may be gone."""
        return self.far if far or filtered else self.near


@dataclass(frozen=True, slots=True, eq=False)
class Answer:
    """What a sealed index found, best first: scores [q, k'] and slots [q, k'], k' the smaller of k and the matches.

    `method` is EXACT if every item that matches was compared. `cells` is the number of cells that there are, `probes` and
    `ef_search` are what the queries were searched with, 0 where they do not apply. `reason` says why it was done so.
    """

    scores: Matrix
    slots: Slots
    method: Method
    reason: str
    cells: int = 0
    probes: int = 0
    ef_search: int = 0


class Sealed(Protocol):
    """A sealed index. Its classes also have `open`, which maps what `save` wrote and reads it as it is needed."""

    @property
    def count(self) -> int:
        """The number of slots."""

    @property
    def nbytes(self) -> int:
        """What it takes in memory when all of it has been read."""

    @property
    def max_effort(self) -> int:
        """The largest effort that makes a difference; 0 for an index that compares every item anyway."""

    def search(self, queries: Matrix, k: int, selected: Mask | None, match_count: int, effort: int) -> Answer:
        """Returns the k nearest of the slots that match, or all of them if fewer do.

        `queries` are [q, d] and contiguous. `selected` [count] are the slots that match, all if None, and `match_count`
        is how many do. The index raises an `effort` above 0 where fewer slots match.
        """

    def save(self, path: Path) -> None:
        """Writes the index to a new file."""


def scaled(effort: int, count: int, match_count: int, power: float) -> int:
    """Returns the effort that has the recall of `effort` where only so many of the slots match.

    With a power of 1 it looks at as many matches. What matches may lie further from the query than what does not, so that more is
    needed.
    """
    raised: int = ceil(effort * (count / match_count) ** power)
    return raised


def bitmap(selected: Mask | None) -> Any:
    """Returns FAISS's selector of the slots, which keeps its bits alive; None for all."""
    return None if selected is None else _IDSelectorBitmap(np.packbits(selected, bitorder="little"))


def mapped(path: Path, kind: type) -> Any:
    """Maps a FAISS index; raises RuntimeError for what FAISS cannot read and ValueError for another kind of index.

    FAISS checks neither a sum nor a digest: the file must have been checked.
    """
    index = _read_index(str(path), faiss.IO_FLAG_MMAP_IFC)
    if not isinstance(index, kind):
        raise ValueError(f"{path} holds a {type(index).__name__}, not a {kind.__name__}")
    return index
