"""Searches of one collection that wait are carried out together."""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial

from lookwire_server.errors import QueueFull
from lookwire_server.search.index.view import Hits, View, Wanted
from lookwire_server.search.workers import Workers

MAX_WAITING = 4_096
# One multiplication of so many queries is as quick for each as a larger one, and nobody waits longer for it.
MAX_BATCH = 64

Found = tuple[View, Hits]


class Dispatcher:
    """Takes all searches that wait, and waits for nothing; one batch at a time. For the event loop only."""

    def __init__(self, searching: Workers, newest: Callable[[], View]) -> None:
        self._searching = searching
        self._newest = newest
        self._waiting: deque[tuple[Wanted, asyncio.Future[Found]]] = deque()
        self._task: asyncio.Task[None] | None = None

    async def search(self, wanted: Wanted) -> Found:
        """Returns the hits and the view that they are from; a search whose caller gives up before it began is not done."""
        if len(self._waiting) >= MAX_WAITING:
            raise QueueFull(f"{len(self._waiting)} searches of the collection wait already", waiting=len(self._waiting))
        future: asyncio.Future[Found] = asyncio.get_running_loop().create_future()
        self._waiting.append((wanted, future))
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run())
        return await future

    async def _run(self) -> None:
        while self._waiting:
            batch = self._take()
            if not batch:
                continue
            try:
                found = await self._searching.run(partial(_search, self._newest, [wanted for wanted, _ in batch]))
            except BaseException as error:
                for _, future in batch:
                    if not future.done():
                        future.set_exception(error if isinstance(error, Exception) else asyncio.CancelledError())
                if not isinstance(error, Exception):
                    raise
            else:
                for (_, future), result in zip(batch, found, strict=True):
                    if not future.done():
                        future.set_result(result)

    def _take(self) -> list[tuple[Wanted, asyncio.Future[Found]]]:
        """Takes the searches of equal scope with the first, up to a batch; leaves out those that nobody waits for."""
        waiting, self._waiting = self._waiting, deque()
        batch: list[tuple[Wanted, asyncio.Future[Found]]] = []
        for entry in waiting:
            if entry[1].done():
                continue
            if len(batch) < MAX_BATCH and (not batch or entry[0].scope == batch[0][0].scope):
                batch.append(entry)
            else:
                self._waiting.append(entry)
        return batch


def _search(newest: Callable[[], View], searches: Sequence[Wanted]) -> list[Found]:
    view = newest()
    return [(view, hits) for hits in view.search(searches)]
