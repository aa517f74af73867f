"""What searches are compared with: the same vectors in the benchmark's own process, with no server around them."""

import asyncio
import itertools
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import faiss  # noqa: TID251 - direct calls are what the server is compared with
import numpy as np
from numpy.typing import NDArray

from lookwire_server.search.dispatcher import Dispatcher
from lookwire_server.search.index.live import Upsert, VectorIndex
from lookwire_server.search.index.view import Scope, Wanted
from lookwire_server.search.searcher import Found, searched
from lookwire_server.search.workers import Workers

TOP_K = 10
# What FAISS has as long as nobody lowers it, as a program has that calls FAISS and knows no better.
DEFAULT_BLAS_THRESHOLD = 128_000


@dataclass(frozen=True, slots=True)
class Rate:
    """Searches a second, and the 99th percentile of their seconds."""

    throughput: float
    p99: float


class DirectFaiss:
    """Threads that each call a flat FAISS index, which has one OpenMP thread for each call."""

    def __init__(self, vectors: NDArray[np.float32]) -> None:
        self._index = faiss.IndexFlatIP(vectors.shape[1])
        self._index.add(vectors)

    def run(self, queries: NDArray[np.float32], threads: int, seconds: float) -> Rate:
        lowered = faiss.cvar.distance_compute_blas_threshold
        faiss.cvar.distance_compute_blas_threshold = DEFAULT_BLAS_THRESHOLD
        times: list[float] = []
        numbers = itertools.count()
        deadline = time.monotonic() + seconds

        def call() -> None:
            faiss.omp_set_num_threads(1)
            while (started := time.monotonic()) < deadline:
                self._index.search(queries[next(numbers) % len(queries)][None], TOP_K)
                times.append(time.monotonic() - started)

        callers = [threading.Thread(target=call) for _ in range(threads)]
        for caller in callers:
            caller.start()
        for caller in callers:
            caller.join()
        faiss.cvar.distance_compute_blas_threshold = lowered
        return Rate(len(times) / seconds, float(np.percentile(times, 99)))


class BareDispatcher:
    """The server's own dispatcher over exact vectors [n, d], with callers in its event loop."""

    def __init__(self, vectors: NDArray[np.float32], threads: int) -> None:
        count, dimension = vectors.shape
        index = VectorIndex(dimension, (), 0)
        index.upsert(Upsert(1, [str(number) for number in range(count)], range(1, count + 1), vectors, [{}] * count))
        index.publish()
        self._index = index
        self._searching = Workers("search", 1, lambda: faiss.omp_set_num_threads(threads))

    def run(self, queries: NDArray[np.float32], in_flight: int, seconds: float) -> Rate:
        return asyncio.run(self._run(queries, in_flight, seconds))

    async def _run(self, queries: NDArray[np.float32], in_flight: int, seconds: float) -> Rate:
        dispatcher = Dispatcher(self._searching, partial(searched, self._index), at_once, lambda wanted: wanted.scope)
        times: list[float] = []
        numbers = itertools.count()
        deadline = time.monotonic() + seconds

        async def call() -> None:
            while (started := time.monotonic()) < deadline:
                await dispatcher.ask(Wanted(queries[next(numbers) % len(queries)], TOP_K, Scope()))
                times.append(time.monotonic() - started)

        await asyncio.gather(*(call() for _ in range(in_flight)))
        return Rate(len(times) / seconds, float(np.percentile(times, 99)))


async def at_once(found: Sequence[Found]) -> Sequence[Found]:
    """Replies with what the index found."""
    return found
