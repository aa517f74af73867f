"""Threads that do the work which would hold up the event loop."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from lookwire_server.errors import QueueFull, Unavailable

# More than the RPCs that a server has in flight; a longer queue could only hold work that nobody waits for any more.
MAX_WAITING = 4_096

Result = TypeVar("Result")


class Workers:
    """A fixed number of threads and a bounded queue before them."""

    def __init__(self, name: str, threads: int, initializer: Callable[[], None] | None = None) -> None:
        self._name = name
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix=name, initializer=initializer)
        self._waiting = 0
        self._closed = False

    async def run(self, work: Callable[[], Result]) -> Result:
        """Returns what `work` returns; work that has not begun when its caller gives up is not done."""
        if self._closed:
            raise Unavailable("the server is stopping")
        if self._waiting >= MAX_WAITING:
            raise QueueFull(f"{self._waiting} requests wait for {self._name} already", waiting=self._waiting)
        self._waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._pool, work)
        finally:
            self._waiting -= 1

    def close(self) -> None:
        """Finishes what was accepted."""
        self._closed = True
        self._pool.shutdown()
