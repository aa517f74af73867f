"""When and why the server stops."""

import asyncio
import signal

import structlog

log = structlog.get_logger()


class Stop:
    """Waits for SIGTERM or SIGINT, or for a part of the server that fails for good. Made and used on the event loop."""

    def __init__(self) -> None:
        self.failures: list[str] = []
        self._loop = asyncio.get_running_loop()
        self._told = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.add_signal_handler(number, self._told.set)

    def fail(self, reason: str) -> None:
        """Called by an owner whose thread or task died."""
        log.error("a part of the server failed, it stops serving", reason=reason)
        self.failures.append(reason)
        self._told.set()

    def writing_failed(self, error: BaseException) -> None:
        """Called by the writer of collections, from its thread."""
        self._loop.call_soon_threadsafe(self.fail, f"writing collections: {error!r}")

    async def wait(self) -> None:
        await self._told.wait()
