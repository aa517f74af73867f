"""A graph of near neighbours (HNSW), which a search walks from neighbour to neighbour. Fast, but for filters."""

from pathlib import Path
from typing import Any, Self

import faiss
import numpy as np

from lookwire_server.search.index.exact import nearest, wide_blocks
from lookwire_server.search.index.sealed import EXACT_MATCHES, Answer, Mask, bitmap, mapped, scaled
from lookwire_server.search.plan import Method
from lookwire_server.search.vectors import HalfMatrix, Matrix

# The types that faiss ships do not know the arguments that its Python classes take.
_IndexHNSWSQ: Any = faiss.IndexHNSWSQ
_SearchParametersHNSW: Any = vars(faiss)["SearchParametersHNSW"]

# Links of a node (twice as many on the ground level), and how many candidates are looked at for them.
LINKS = 32
EF_CONSTRUCTION = 200
# A walk so long costs more than a scan of a few hundred thousand vectors.
MAX_EF_SEARCH = 4_096
# The walk goes through nodes that do not match, and loses its way where most do not.
MIN_MATCHING_SHARE = 0.5
# Where a filter by content left half of 100,000 items, recall at 10 was 0.97 in proportion and 0.997 by the square.
FILTERED_POWER = 2


class HnswIndex:
    """A FAISS graph over float16 vectors; effort is ef_search, the number of candidates that a walk keeps."""

    def __init__(self, index: Any) -> None:
        self._index = index
        storage: Any = faiss.downcast_index(index.storage)
        # A view of the memory of the index, which must outlive it.
        codes = faiss.rev_swig_ptr(storage.codes.data(), storage.codes.size())
        codes.flags.writeable = False
        self._vectors: HalfMatrix = codes.view(np.float16).reshape(-1, index.d)
        self.count: int = index.ntotal
        self.max_effort = max(1, min(self.count, MAX_EF_SEARCH))

    @classmethod
    def build(cls, vectors: HalfMatrix) -> Self:
        """Links the vectors [n, d]. Uses the threads that FAISS uses in the calling thread."""
        dimension = vectors.shape[1]
        index = _IndexHNSWSQ(dimension, faiss.ScalarQuantizer.QT_fp16, LINKS, faiss.METRIC_INNER_PRODUCT)
        index.hnsw.efConstruction = EF_CONSTRUCTION
        index.train(np.zeros((1, dimension), np.float32))
        for block in wide_blocks(vectors):
            index.add(block)
        return cls(index)

    @property
    def nbytes(self) -> int:
        hnsw = self._index.hnsw
        return int(self._vectors.nbytes + 4 * (hnsw.neighbors.size() + hnsw.levels.size()) + 8 * hnsw.offsets.size())

    def search(self, queries: Matrix, k: int, selected: Mask | None, match_count: int, effort: int) -> Answer:
        k = min(k, match_count)
        if effort == 0:
            reason = "an exact search was asked for"
        elif selected is not None and match_count <= EXACT_MATCHES:
            reason = f"{match_count} are few"
        elif match_count < MIN_MATCHING_SHARE * self.count:
            reason = f"a graph serves no filter that only {match_count} of {self.count} items match"
        else:
            return self._walk(queries, k, selected, match_count, effort)
        scores, slots = nearest(queries, self._vectors, k, selected)
        return Answer(scores, slots, Method.EXACT, f"every item that matches is compared: {reason}")

    def save(self, path: Path) -> None:
        faiss.write_index(self._index, str(path))

    @classmethod
    def open(cls, path: Path) -> Self:
        return cls(mapped(path, faiss.IndexHNSWSQ))

    def _walk(self, queries: Matrix, k: int, selected: Mask | None, match_count: int, effort: int) -> Answer:
        # At least what is to be returned.
        ef_search = max(k, min(scaled(effort, self.count, match_count, FILTERED_POWER), self.count))
        reason = f"{effort} candidates have the recall wanted"
        if ef_search > effort:
            reason += f", and {ef_search} are as good for {match_count} of {self.count} items and {k} results"
        parameters = _SearchParametersHNSW(efSearch=ef_search, sel=bitmap(selected))
        scores, slots = self._index.search(queries, k, params=parameters)
        lacking = np.flatnonzero(slots[:, -1] < 0)
        if len(lacking):
            scores[lacking], slots[lacking] = nearest(queries[lacking], self._vectors, k, selected)
            reason += f"; {len(lacking)} of {len(queries)} queries found fewer than {k} and were compared with all"
        return Answer(scores, slots, Method.HNSW, reason, ef_search=ef_search)
