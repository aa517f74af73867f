"""Searches of a collection that wait are carried out together."""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Generic, TypeVar

from lookwire_server.errors import QueueFull
from lookwire_server.search.workers import Workers

MAX_WAITING = 4_096
# One multiplication of so many queries is as quick for each as a larger one, and nobody waits longer for it.
MAX_BATCH = 64

Request = TypeVar("Request")
Found = TypeVar("Found")
Reply = TypeVar("Reply")


class Dispatcher(Generic[Request, Found, Reply]):
    """Takes all requests that wait, and waits for nothing; one batch at a time. For the event loop only.

    `carry_out` runs in a thread of the workers, and returns what it found for each request of a batch; of that `complete` makes
    the replies while the next batch is carried out. Only requests for which `scope` returns equal values are in one batch.
    """

    def __init__(
        self,
        workers: Workers,
        carry_out: Callable[[Sequence[Request]], Sequence[Found]],
        complete: Callable[[Sequence[Found]], Awaitable[Sequence[Reply]]],
        scope: Callable[[Request], Hashable],
    ) -> None:
        self._workers = workers
        self._carry_out = carry_out
        self._complete = complete
        self._scope = scope
        self._waiting: deque[tuple[Request, asyncio.Future[Reply]]] = deque()
        self._task: asyncio.Task[None] | None = None
        self._completing: set[asyncio.Task[None]] = set()

    async def ask(self, request: Request) -> Reply:
        """Returns the reply; a request whose caller gives up before it was taken is not carried out."""
        if len(self._waiting) >= MAX_WAITING:
            raise QueueFull(f"{len(self._waiting)} requests to the collection wait already", waiting=len(self._waiting))
        future: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        self._waiting.append((request, future))
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run())
        return await future

    async def _run(self) -> None:
        while self._waiting:
            batch = self._take()
            if not batch:
                continue
            futures = [future for _, future in batch]
            with _failing(futures):
                found = await self._workers.run(partial(self._carry_out, [request for request, _ in batch]))
                task = asyncio.create_task(self._finish(futures, found))
                self._completing.add(task)
                task.add_done_callback(self._completing.discard)

    async def _finish(self, futures: Sequence[asyncio.Future[Reply]], found: Sequence[Found]) -> None:
        with _failing(futures):
            for future, reply in zip(futures, await self._complete(found), strict=True):
                if not future.done():
                    future.set_result(reply)

    def _take(self) -> list[tuple[Request, asyncio.Future[Reply]]]:
        """Takes the requests of equal scope with the first, up to a batch; leaves out those that nobody waits for."""
        waiting, self._waiting = self._waiting, deque()
        batch: list[tuple[Request, asyncio.Future[Reply]]] = []
        for entry in waiting:
            if entry[1].done():
                continue
            if len(batch) < MAX_BATCH and (not batch or self._scope(entry[0]) == self._scope(batch[0][0])):
                batch.append(entry)
            else:
                self._waiting.append(entry)
        return batch


@contextmanager
def _failing(futures: Sequence[asyncio.Future[Reply]]) -> Iterator[None]:
    """Tells those who wait of an error in the block."""
    try:
        yield
    except BaseException as error:
        for future in futures:
            if not future.done():
                future.set_exception(error if isinstance(error, Exception) else asyncio.CancelledError())
        if not isinstance(error, Exception):
            raise
