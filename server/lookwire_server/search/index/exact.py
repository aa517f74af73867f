"""The exact nearest vectors among float16 rows, which are never copied to float32 as a whole."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from math import ceil
from pathlib import Path
from typing import Any, Self

import faiss
import numkong
import numpy as np

from lookwire_server.search.index.sealed import Answer, Mask, Slots
from lookwire_server.search.plan import Method
from lookwire_server.search.vectors import HalfMatrix, Matrix

# The types that faiss ships describe Python functions of these names; those that there are take pointers.
_MinHeaps: Any = faiss.float_minheap_array_t
_IDSelectorBitmap: Any = faiss.IDSelectorBitmap
_ScalarQuantizer: Any = faiss.ScalarQuantizer

# Rows that are made float32 at a time for FAISS to train on and to add.
BLOCK_ROWS = 4_096
# Rows that queries are compared with in one call: larger ones leave the cache, smaller ones take the interpreter more often.
SCANNED_ROWS = 8_192
# So many queries are compared with the rows one after the other, more of them at once. Measured at 512 dimensions: both
# cost the same at 6 queries with one thread and at 3 with two; 16 at once take 0.6 to 0.7 of the time.
SCANNED_QUERIES = 5
# Above this share of selected rows it costs less to skip the others than to copy the selected ones together.
DENSE_SHARE = 0.3
# A thread is started for no fewer comparisons than these: about 3 ms of them.
COMPARISONS_OF_A_THREAD = 65_536

# FAISS multiplies matrices only from queries x dimension of this on; here it compares queries with the centroids of IVF. Its
# default, 128,000, is 250 queries at 512 dimensions, and batches below that gain nothing (facebookresearch/faiss, issue 4925;
# 800 is from pull request 5109).
faiss.cvar.distance_compute_blas_threshold = 800


@dataclass(frozen=True, slots=True, eq=False)
class ExactIndex:
    """Vectors [n, d] that every query is compared with."""

    vectors: HalfMatrix

    @property
    def count(self) -> int:
        return len(self.vectors)

    @property
    def nbytes(self) -> int:
        return self.vectors.nbytes

    @property
    def max_effort(self) -> int:
        return 0

    def search(self, queries: Matrix, k: int, selected: Mask | None, match_count: int, effort: int) -> Answer:
        scores, slots = nearest(queries, self.vectors, k, selected)
        return Answer(scores, slots, Method.EXACT, "every item that matches is compared: the index is exact")

    def save(self, path: Path) -> None:
        with path.open("wb") as file:
            np.save(file, self.vectors, allow_pickle=False)

    @classmethod
    def open(cls, path: Path) -> Self:
        """Maps a file that `save` wrote; raises OSError, and ValueError for another file."""
        vectors = np.lib.format.open_memmap(path, mode="r")
        if vectors.dtype != np.float16 or vectors.ndim != 2 or not vectors.flags.c_contiguous:
            raise ValueError(f"{path} holds {vectors.dtype} of shape {vectors.shape}, not rows of float16")
        # As a plain array over the map, which numpy slices faster than its memmap class.
        return cls(np.asarray(vectors))


def nearest(queries: Matrix, vectors: HalfMatrix, k: int, selected: Mask | None = None) -> tuple[Matrix, Slots]:
    """Returns the scores [q, k'] and the rows [q, k'] of largest inner product, best first; k' = min(k, rows to choose from).

    `queries` [q, d] and `vectors` [n, d] are contiguous, and `vectors` may be a memory map. Inner products are of the float16
    vectors, and of more than SCANNED_QUERIES queries rounded to float16: for vectors of length 1 they are within about 1e-4 of
    those of the float32 vectors, and never further than 1e-3. `selected` [n] are the rows to choose from, all if None; the cost
    is that of the selected rows. Uses as many threads as FAISS would use in the calling thread, and holds the interpreter only
    between blocks.
    """
    rows = np.arange(len(vectors)) if selected is None else np.flatnonzero(selected)
    k = min(k, len(rows))
    if k == 0 or len(queries) == 0:
        return np.empty((len(queries), k), np.float32), np.empty((len(queries), k), np.int64)
    if selected is not None and len(rows) > DENSE_SHARE * len(vectors):
        rows = np.arange(len(vectors))
    else:
        selected = None
    compare = _scanned if len(queries) <= SCANNED_QUERIES else _multiplied
    threads = max(1, min(faiss.omp_get_max_threads(), len(rows) * len(queries) // COMPARISONS_OF_A_THREAD))
    block_rows = min(SCANNED_ROWS, ceil(len(rows) / threads))
    # Each thread takes the next block when it is done with one, so that none waits for another that was held up.
    blocks = iter([rows[start : start + block_rows] for start in range(0, len(rows), block_rows)])
    search = partial(compare, queries, vectors, k, selected, blocks)
    if threads == 1:
        scores, found = search()
    else:
        with ThreadPoolExecutor(threads, "nearest", partial(faiss.omp_set_num_threads, 1)) as pool:
            parts = [part.result() for part in [pool.submit(search) for _ in range(threads)]]
        scores = np.concatenate([part[0] for part in parts], axis=1)
        found = np.concatenate([part[1] for part in parts], axis=1)
    best = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(scores, best, 1), np.take_along_axis(found, best, 1)


def widened(half: HalfMatrix, out: Matrix) -> Matrix:
    """Writes the rows to `out` [at least as many, d] as float32 and returns them; finite values only.

    About four times as fast as `astype`. A float16 has 5 bits of exponent, biased by 15, and 10 of mantissa: moved to
    where a float32 has its own, they are the number times 2 ** (15 - 127).
    """
    out = out[: len(half)]
    bits = out.view(np.int32)
    np.copyto(bits, half.view(np.int16))
    np.left_shift(bits, 13, out=bits)
    # The sign was extended over bits 28 to 31, of which only the last is the sign's.
    np.bitwise_and(bits, np.int32(-0x70002000), out=bits)
    np.multiply(out, np.float32(2.0**112), out=out)
    return out


def wide_blocks(vectors: HalfMatrix) -> Iterator[Matrix]:
    """Yields the rows as float32, block by block, each in the memory of the one before."""
    out = np.empty((min(BLOCK_ROWS, len(vectors)), vectors.shape[1]), np.float32)
    for start in range(0, len(vectors), BLOCK_ROWS):
        yield widened(vectors[start : start + BLOCK_ROWS], out)


def _scanned(
    queries: Matrix, vectors: HalfMatrix, k: int, selected: Mask | None, blocks: Iterator[Slots]
) -> tuple[Matrix, Slots]:
    """Returns the k best of the blocks' rows in no order, the places left over with row -1 and a score below all others.

    FAISS compares each query with a block of float16 rows while the block is in the cache. Rows that are not `selected` [n] are
    skipped; then the blocks have all rows.
    """
    selector = None if selected is None else _IDSelectorBitmap(np.packbits(selected, bitorder="little"))
    scores = np.full((len(queries), k), -np.inf, np.float32)
    found = np.full((len(queries), k), -1, np.int64)
    heaps = [(faiss.swig_ptr(s), faiss.swig_ptr(f)) for s, f in zip(scores, found, strict=True)]
    with _scanners(queries, selector) as scanners:
        for chosen in blocks:
            block = _block(vectors, chosen)
            codes = faiss.swig_ptr(block.view(np.uint8).reshape(-1))
            ids = faiss.swig_ptr(chosen)
            for scanner, (heap_scores, heap_rows) in zip(scanners, heaps, strict=True):
                scanner.scan_codes(len(block), codes, ids, heap_scores, heap_rows, k)
    return scores, found


# FAISS's comparers of one query with float16 codes. Its Python module has no way to free them, so they are used again: there
# are as many as were ever in use at once. By dimension, and by whether they ask a selector.
_idle_scanners: dict[tuple[int, bool], list[Any]] = {}


@contextmanager
def _scanners(queries: Matrix, selector: Any) -> Iterator[list[Any]]:
    """Gives a scanner for each query, of the rows that the selector names; of all if it is None."""
    selects = selector is not None
    idle = _idle_scanners.setdefault((queries.shape[1], selects), [])
    scanners: list[Any] = []
    try:
        for query in queries:
            try:
                scanner = idle.pop()
            except IndexError:
                codec = _codec(queries.shape[1])
                scanner = codec.select_InvertedListScanner(faiss.METRIC_INNER_PRODUCT, None, False, selector, False)
                scanner.set_list(0, 0.0)
            scanners.append(scanner)
            scanner.set_query(faiss.swig_ptr(query))
            if selects:
                scanner.sel = selector
        if selects:
            # The assignment gave it away to an object that will not free it.
            selector.thisown = True
        yield scanners
    finally:
        idle.extend(scanners)


@cache
def _codec(dimension: int) -> Any:
    return _ScalarQuantizer(dimension, _ScalarQuantizer.QT_fp16)


def _multiplied(
    queries: Matrix, vectors: HalfMatrix, k: int, selected: Mask | None, blocks: Iterator[Slots]
) -> tuple[Matrix, Slots]:
    """As `_scanned`, by the products of a block with all queries, which are rounded to float16 too; the sums are float32."""
    count = len(queries)
    packed = numkong.dots_pack(queries.astype(np.float16))
    scores = np.empty((count, k), np.float32)
    found = np.empty((count, k), np.int64)
    heaps = _MinHeaps()
    heaps.nh, heaps.k = count, k
    heaps.val, heaps.ids = faiss.swig_ptr(scores), faiss.swig_ptr(found)
    heaps.heapify()
    for chosen in blocks:
        block = _block(vectors, chosen)
        products = np.ascontiguousarray(np.asarray(numkong.dots_packed(block, packed)).T)
        if selected is not None:
            products[:, ~selected[chosen]] = -np.inf
        heaps.addn_with_ids(len(block), faiss.swig_ptr(products), faiss.swig_ptr(chosen), 0, 0, count)
    return scores, found


def _block(vectors: HalfMatrix, rows: Slots) -> HalfMatrix:
    """Returns the rows, which rise; without a copy if none is left out between them."""
    first, last = rows[0], rows[-1]
    return vectors[first : last + 1] if last - first == len(rows) - 1 else vectors[rows]
