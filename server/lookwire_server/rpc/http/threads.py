"""Work that would hold up the event loop."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")

# Below this many bytes, parsing takes a millisecond or two, and a thread's hand-over is not worth it.
SMALL = 1 << 16
COUNT = 2


class Threads:
    """Runs work on small bodies at once, and on larger ones in threads."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(COUNT, "http")

    async def run(self, size: int, work: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """The result of `work`, done in a thread if it deals with `size` bytes and that is many."""
        if size <= SMALL:
            return work(*args, **kwargs)
        return await asyncio.get_running_loop().run_in_executor(self._pool, lambda: work(*args, **kwargs))

    def close(self) -> None:
        self._pool.shutdown()
