"""Tasks of one owner, who hears of it when one ends that should not."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import structlog

log = structlog.get_logger()

Work = Coroutine[Any, Any, None]


class Tasks:
    """Runs work in tasks of its own. `on_failure` gets a sentence about each that fails and that nobody waits for."""

    def __init__(self, on_failure: Callable[[str], None]) -> None:
        self._on_failure = on_failure
        self._tasks: set[asyncio.Task[None]] = set()

    async def to_the_end(self, work: Work) -> None:
        """Waits for work that goes on if the caller stops waiting."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        await asyncio.shield(task)

    def spawn(self, work: Work, name: str) -> None:
        """Starts work that nobody waits for."""
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()):
            log.error("a task failed", task=task.get_name(), exc_info=error)
            self._on_failure(f"{task.get_name()}: {error!r}")

    async def cancel(self) -> None:
        """Ends all work."""
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
