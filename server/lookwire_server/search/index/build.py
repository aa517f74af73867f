"""Builds a generation in a process of its own: `python -m lookwire_server.search.index.build`, with an order on its input.

The process reads the store in one transaction, so that what it builds is of one moment, and writes nothing but the directory of
the generation. It has a low priority, and ends when the process that ordered the build does.
"""

import json
import os
import sys
import threading
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import faiss
import numpy as np
import structlog

from lookwire_server.search.failpoints import reach
from lookwire_server.search.index.exact import ExactIndex
from lookwire_server.search.index.generation import UNREADABLE, VECTORS, Manifest, checked_manifest, described, write
from lookwire_server.search.index.hnsw import HnswIndex
from lookwire_server.search.index.ivf import IvfIndex
from lookwire_server.search.index.load import load
from lookwire_server.search.index.sealed import Sealed
from lookwire_server.search.index.tuning import Tuned, faster, tune
from lookwire_server.search.store.collections import IndexKind
from lookwire_server.search.store.store import Store
from lookwire_server.search.vectors import HalfMatrix, Matrix

log = structlog.get_logger()

# Items that serve as queries of their own kind.
SAMPLED_ITEMS = 256
LOWEST_PRIORITY = 19


@dataclass(frozen=True, slots=True)
class Order:
    """What to build of which collection, and where. `previous` is the directory of the generation before, whose training may be
    used again, `far_queries` a file of float32 queries of another kind than the items, as np.save writes it; both may be empty.
    Below `approximate_items` every index is exact. `urgent` says that most items are in no index yet.
    """

    data_dir: str
    collection: int
    generation: int
    directory: str
    previous: str
    far_queries: str
    approximate_items: int
    threads: int
    urgent: bool


def main() -> None:
    """Carries out the order on the first line of the input, which must stay open until it is done."""
    order = Order(**json.loads(sys.stdin.readline()))
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _give_way(order.urgent)
    faiss.omp_set_num_threads(order.threads)
    build(order)


def build(order: Order) -> None:
    """Reads the collection, builds, tunes and writes the generation."""
    store = Store(Path(order.data_dir), writes=False)
    row = next(row for row in store.collections.all() if row.number == order.collection)
    live = load(store, row, None)
    store.close()
    reach("build.after_read")
    rows = live.view.rows
    vectors = rows.tail(rows.count)
    far = np.load(order.far_queries) if order.far_queries else None
    previous = Path(order.previous) if order.previous else None
    kind = IndexKind.EXACT if len(vectors) < order.approximate_items else row.index.kind
    kind, index, tuned, trained_count = chosen(kind, row.index.target_recall, vectors, far, previous)
    manifest = Manifest(
        store=store.identity,
        collection=row.number,
        generation=order.generation,
        sequence=live.sequence,
        count=rows.count,
        dimension=row.dimension,
        requested=row.index.kind,
        kind=kind,
        fields=described(row.fields),
        target_recall=row.index.target_recall,
        effort=tuned.effort,
        near_recall=tuned.near_recall,
        far_recall=tuned.far_recall,
        trained_count=trained_count,
    )
    write(Path(order.directory), manifest, rows.arrays(), index)


def chosen(
    kind: IndexKind, target_recall: float, vectors: HalfMatrix, far: Matrix | None, previous: Path | None
) -> tuple[IndexKind, Sealed, Tuned, int]:
    """Returns the kind of index, the index, its effort, and how many vectors it was trained with."""
    exact = ExactIndex(vectors)
    if kind is IndexKind.EXACT:
        return IndexKind.EXACT, exact, Tuned.exact(), 0
    # Spread over all items, so that old and new ones are among them.
    sample = np.linspace(0, len(vectors) - 1, SAMPLED_ITEMS).astype(np.int64)
    near = vectors[sample].astype(np.float32)
    if kind is IndexKind.HNSW:
        graph = HnswIndex.build(vectors)
        return IndexKind.HNSW, graph, tune(graph, near, far, target_recall, sample), len(vectors)
    lists, trained_count = trained(vectors, previous)
    tuned = tune(lists, near, far, target_recall, sample)
    if kind is IndexKind.AUTOMATIC and not (tuned.reached(target_recall) and faster(lists, exact, near, tuned.effort)):
        return IndexKind.EXACT, exact, Tuned.exact(), 0
    return IndexKind.IVF, lists, tuned, trained_count


def trained(vectors: HalfMatrix, previous: Path | None) -> tuple[IvfIndex, int]:
    """Returns an inverted file of the vectors; with the cells of the previous one until there are twice as many vectors."""
    if previous is not None:
        try:
            manifest = checked_manifest(previous)
            if manifest.kind is IndexKind.IVF and len(vectors) < 2 * manifest.trained_count:
                return IvfIndex.build(vectors, IvfIndex.open(previous / VECTORS)), manifest.trained_count
        except UNREADABLE as error:
            log.warning("the index before cannot be read; the cells are trained anew", error=str(error))
    return IvfIndex.build(vectors, None), len(vectors)


def _give_way(urgent: bool) -> None:
    """Leaves the cores to whoever serves; one that is not urgent takes only those that are idle, where the system can do that.

    A thread of the lowest nice value holds a core for milliseconds after a search wants it: with an idle one the 99th percentile
    of searches beside upserts and the builds that they cause was 28 to 37 ms instead of 42 to 60.
    """
    os.nice(LOWEST_PRIORITY)
    if not urgent and sys.platform == "linux":
        # A container may forbid it.
        with suppress(OSError):
            os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))


def _end_with_parent() -> None:
    """Ends the process when the input is closed, however the parent died."""
    sys.stdin.read()
    os._exit(1)


if __name__ == "__main__":
    main()
