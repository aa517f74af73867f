"""The threads that open, initialize and warm up models: apart from the default executor's, which requests need.

They have the lowest priority, as the threads of an onnxruntime session then have, which inherit that of the one that opens it:
the thread that executes a batch does what they do not come to.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from typing import ParamSpec, TypeVar

from lookwire_server.lanes import Lane, lower_priority

P = ParamSpec("P")
R = TypeVar("R")

# As many as Triton has by default (--model-load-thread-count).
THREADS = 4
POOL = ThreadPoolExecutor(THREADS, "load", lower_priority, (Lane.BULK,))


async def in_load_thread(work: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """What `work` returns, called in a thread for loading; waits while all of them are busy."""
    call = copy_context().run
    return await asyncio.get_running_loop().run_in_executor(POOL, lambda: call(work, *args, **kwargs))
