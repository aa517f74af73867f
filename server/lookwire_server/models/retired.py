"""Versions that are served no more: each finishes the work in hand, then gives back what it holds."""

import asyncio
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import structlog

from lookwire_server.models.managed import Loaded, Managed, Needs
from lookwire_server.models.source import Source, remove_files

log = structlog.get_logger()

# A caller that looked a version up just before it was replaced still reaches it.
HANDOVER_SECONDS = 1.0


class Retired:
    """Closes versions in the background, once no other version uses them; `on_change` is called after each."""

    def __init__(self, on_change: Callable[[], None]) -> None:
        self._on_change = on_change
        self._in_use: dict[Loaded, Managed] = {}
        self._closing: dict[asyncio.Task[None], Managed] = {}
        self._hurry = asyncio.Event()
        self._users: Counter[Path] = Counter()

    def add(self, managed: Managed, loaded: Loaded) -> None:
        """Takes a version over from the repository."""
        loaded.retired = True
        managed.closing[loaded.model.version] += 1
        self._in_use[loaded] = managed
        self._close_unused(loaded)

    def let_go(self, needs: Needs) -> None:
        """Ends the use of the versions that a version keeps."""
        for kept in needs.kept:
            kept.users -= 1
            self._close_unused(kept)
        needs.kept.clear()

    def share(self, source: Source) -> None:
        """Counts a user of a source."""
        self._users[source.directory] += 1

    async def release(self, source: Source) -> None:
        """Takes a user of a source off; a temporary folder is removed with the last one."""
        self._users[source.directory] -= 1
        if not self._users[source.directory]:
            del self._users[source.directory]
            if source.temporary:
                await asyncio.to_thread(remove_files, source.directory)

    def _close_unused(self, loaded: Loaded) -> None:
        if loaded.users or loaded not in self._in_use:
            return
        managed = self._in_use.pop(loaded)
        task = asyncio.create_task(self._close(managed, loaded), name=f"close-{managed.name}-{loaded.model.version}")
        self._closing[task] = managed
        task.add_done_callback(self._closing.pop)

    async def _close(self, managed: Managed, loaded: Loaded) -> None:
        version = loaded.model.version
        with suppress(TimeoutError):
            await asyncio.wait_for(self._hurry.wait(), HANDOVER_SECONDS)
        try:
            await loaded.model.close()
        except Exception:
            log.exception("a model did not close in order", model=managed.name, version=version)
        self.let_go(loaded.needs)
        await self.release(loaded.source)
        managed.closing[version] -= 1
        log.info("model unloaded", model=managed.name, version=version)
        self._on_change()

    async def finished(self, managed: Managed) -> None:
        """Waits until the versions of a model that are being closed have finished their work."""
        if tasks := [task for task, closing in self._closing.items() if closing is managed]:
            await asyncio.wait(tasks)

    async def closed(self) -> None:
        """Waits, from now on without a pause for late callers, until all that no version uses are closed."""
        self._hurry.set()
        while self._closing:
            await asyncio.wait(self._closing)
