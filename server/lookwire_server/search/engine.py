"""What all collections share."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import faiss

from lookwire_server.metrics import Metrics
from lookwire_server.search.store import Store
from lookwire_server.search.workers import Workers
from lookwire_server.search.writer import Writer

# Readers wait for the disk rather than for a core, and most pages are in the cache.
READING_THREADS = 4


@dataclass(frozen=True, slots=True, eq=False)
class Engine:
    """The store, its writer, and the threads that search and read."""

    store: Store
    writer: Writer
    searching: Workers
    reading: Workers
    metrics: Metrics

    @staticmethod
    def start(
        store: Store, metrics: Metrics, *, search_threads: int, on_failure: Callable[[BaseException], None]
    ) -> "Engine":
        # FAISS takes every core for one search unless told otherwise, and it must be told in each thread.
        one_core = partial(faiss.omp_set_num_threads, 1)
        return Engine(
            store,
            Writer(store, metrics, on_failure),
            Workers("search", search_threads, one_core),
            Workers("read", READING_THREADS),
            metrics,
        )

    def close(self) -> None:
        """Finishes what was accepted, then closes the store."""
        self.writer.close()
        self.searching.close()
        self.reading.close()
        self.store.close()
