"""What all collections share."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import faiss

from lookwire_server.lanes import Lane, lower_priority
from lookwire_server.metrics import Metrics
from lookwire_server.search.index.builder import Builder
from lookwire_server.search.store.collections import CollectionRow
from lookwire_server.search.store.store import Store
from lookwire_server.search.vectors import Matrix
from lookwire_server.search.workers import Workers
from lookwire_server.search.writer import Writer

# Readers wait for the disk rather than for a core, and most pages are in the cache.
READING_THREADS = 4
# Searches of one collection go one batch at a time, so these are for collections that are searched at once.
SEARCHING_THREADS = 2


class Probed(Protocol):
    """A collection that has seen few queries of another kind than its items."""

    @property
    def row(self) -> CollectionRow: ...
    @property
    def wants_probes(self) -> bool: ...
    def set_probes(self, probes: Matrix) -> None: ...


# Gives a collection vectors that queries may be like, if it can; in a thread that may wait.
Probe = Callable[[Probed], None]


@dataclass(frozen=True, slots=True, eq=False)
class Engine:
    """The store, its writer, the builder of indexes, and the threads that search, read and copy."""

    store: Store
    writer: Writer
    builder: Builder
    searching: Workers
    reading: Workers
    copying: Workers
    metrics: Metrics
    probe: Probe

    @staticmethod
    def start(
        store: Store,
        metrics: Metrics,
        *,
        search_threads: int,
        on_failure: Callable[[BaseException], None],
        probe: Probe,
    ) -> "Engine":
        """`search_threads` is how many threads one search has; a build has half as many, at the lowest priority."""

        def searching() -> None:
            # The loop takes replies out and searches in while others are compared: 5 % more a second, and a p99 of 72 ms, not 84.
            lower_priority(Lane.INTERACTIVE)
            # FAISS takes every core for one search unless told otherwise, and it must be told in each thread.
            faiss.omp_set_num_threads(search_threads)

        return Engine(
            store,
            Writer(store, metrics, on_failure),
            # Half of the cores, so that a build leaves caches and memory to searches too.
            Builder(store, max(1, search_threads // 2), on_failure),
            Workers("search", SEARCHING_THREADS, searching),
            Workers("read", READING_THREADS),
            # Snapshots and restores, one after the other.
            Workers("copy", 1),
            metrics,
            probe,
        )

    def close(self) -> None:
        """Finishes what was accepted, gives up builds, then closes the store."""
        self.copying.close()
        self.builder.close()
        self.writer.close()
        self.searching.close()
        self.reading.close()
        self.store.close()
