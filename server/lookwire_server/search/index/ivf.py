"""An inverted file: vectors in cells around trained centres, of which a search looks into the nearest."""

from math import sqrt
from pathlib import Path
from typing import Any, Self

import faiss
import numpy as np

from lookwire_server.search.index.exact import wide_blocks
from lookwire_server.search.index.sealed import EXACT_MATCHES, Answer, Mask, bitmap, mapped, scaled
from lookwire_server.search.plan import Method
from lookwire_server.search.vectors import HalfMatrix, Matrix

# The types that faiss ships do not know the arguments that its Python classes take.
_IndexIVFScalarQuantizer: Any = faiss.IndexIVFScalarQuantizer
_SearchParametersIVF: Any = faiss.SearchParametersIVF

# Cells for n vectors: 4 * sqrt(n), the low end of what FAISS's guide to choosing an index gives (4 to 16), because
# training and filling cost n * cells. The bounds keep the training of many vectors to minutes and give few enough to learn from.
CELLS_OF_ROOT = 4
MAX_CELLS = 4_096
MIN_CELL_VECTORS = 32
# k-means gains little from more (FAISS's own defaults are 256 and 10).
TRAINING_VECTORS_OF_CELL = 64
TRAINING_ROUNDS = 6
SEED = 1234
# Measured on 100,000 vectors like those of CLIP with filters that match 50 % and 25 % of them, the rarest kinds of content.
FILTERED_POWER = 1.5


class IvfIndex:
    """A trained and filled FAISS index of float16 vectors; effort is the number of cells to probe."""

    def __init__(self, index: Any) -> None:
        self._index = index
        self.count: int = index.ntotal
        self.max_effort: int = index.nlist

    @classmethod
    def build(cls, vectors: HalfMatrix, previous: "IvfIndex | None") -> Self:
        """Puts the vectors [n, d] into cells: those of the previous index, or else cells trained with a sample of these.

        Raises ValueError if there are none. Uses the threads that FAISS uses in the calling thread.
        """
        if not len(vectors):
            raise ValueError("an inverted file needs vectors to train with")
        quantizer = trained(vectors) if previous is None else faiss.clone_index(previous._index.quantizer)
        # Not by residual: a code is then the vector itself, and a score that of an exact search.
        index = _IndexIVFScalarQuantizer(
            quantizer,
            vectors.shape[1],
            quantizer.ntotal,
            faiss.ScalarQuantizer.QT_fp16,
            faiss.METRIC_INNER_PRODUCT,
            False,
        )
        index.train(np.zeros((1, vectors.shape[1]), np.float32))
        for block in wide_blocks(vectors):
            index.add(block)
        return cls(index)

    @property
    def nbytes(self) -> int:
        # Codes and 8 bytes of slot, and the centres.
        return int(self.count * (self._index.code_size + 8) + self.max_effort * self._index.d * 4)

    def search(self, queries: Matrix, k: int, selected: Mask | None, match_count: int, effort: int) -> Answer:
        cells = self.max_effort
        k = min(k, match_count)
        if effort == 0:
            probes, reason = cells, "every item that matches is compared: an exact search was asked for"
        elif selected is not None and match_count <= EXACT_MATCHES:
            probes, reason = cells, f"every item that matches is compared: {match_count} are few"
        else:
            probes = min(scaled(effort, self.count, match_count, FILTERED_POWER), cells)
            reason = f"{effort} of {cells} cells have the recall wanted"
            if probes > effort:
                reason += f", and {probes} as good for {match_count} of {self.count} items"
        if k == 0 or not len(queries):
            scores, slots = np.empty((len(queries), k), np.float32), np.empty((len(queries), k), np.int64)
        else:
            selector = bitmap(selected)
            scores, slots = self._index.search(queries, k, params=_SearchParametersIVF(nprobe=probes, sel=selector))
            lacking = np.flatnonzero(slots[:, -1] < 0) if probes < cells else ()
            if len(lacking):
                everywhere = _SearchParametersIVF(nprobe=cells, sel=selector)
                scores[lacking], slots[lacking] = self._index.search(queries[lacking], k, params=everywhere)
                reason += f"; {len(lacking)} of {len(queries)} queries found fewer than {k} there and went through all"
        method = Method.EXACT if probes == cells else Method.IVF
        return Answer(scores, slots, method, reason, cells=cells, probes=probes)

    def save(self, path: Path) -> None:
        faiss.write_index(self._index, str(path))

    @classmethod
    def open(cls, path: Path) -> Self:
        return cls(mapped(path, faiss.IndexIVFScalarQuantizer))


def trained(vectors: HalfMatrix) -> Any:
    """Returns an index of the cells' centres, by spherical k-means over a sample."""
    count, dimension = vectors.shape
    cells = max(1, min(int(CELLS_OF_ROOT * sqrt(count)), count // MIN_CELL_VECTORS, MAX_CELLS))
    sample = min(count, cells * TRAINING_VECTORS_OF_CELL)
    chosen = np.sort(np.random.default_rng(SEED).choice(count, sample, replace=False))
    clustering: Any = faiss.Clustering(dimension, cells)
    clustering.niter, clustering.seed, clustering.spherical = TRAINING_ROUNDS, SEED, True
    # The sample is what it is, and FAISS prints a warning where it would rather have more.
    clustering.min_points_per_centroid, clustering.max_points_per_centroid = 1, sample
    quantizer: Any = faiss.IndexFlatIP(dimension)
    clustering.train(vectors[chosen].astype(np.float32), quantizer)
    return quantizer
