"""One instance of a model: a session and the thread that it runs in."""

import asyncio
import queue
import threading
from collections.abc import Callable, Sequence

import structlog

from lookwire_server.lanes import Lane, lower_priority
from lookwire_server.models.model import Request
from lookwire_server.models.session import Execution, Session

log = structlog.get_logger()

Done = Callable[["Instance", Execution | Exception], None]
Died = Callable[["Instance", BaseException], None]


class Instance:
    """Executes one batch at a time. `done` and `died` are called on the event loop.

    With a lane, it is for that lane's batches only, and another instance executes the other's in the same session.
    A session that is `immediate` has no thread: its batches are executed on the loop by `execute_now`.
    """

    def __init__(self, name: str, session: Session, lane: Lane | None, done: Done, died: Died) -> None:
        self.name = name
        self.lane = lane
        self._session = session
        self._done = done
        self._died = died
        self._loop = asyncio.get_running_loop()
        self._work: queue.SimpleQueue[Sequence[Request] | None] = queue.SimpleQueue()
        self.immediate = session.immediate
        self._thread = None if self.immediate else threading.Thread(target=self._live, name=name, daemon=True)
        if self._thread:
            self._thread.start()

    def execute(self, batch: Sequence[Request]) -> None:
        """Starts on a batch; `done` gets what became of it. Not called again before that."""
        self._work.put(batch)

    def execute_now(self, batch: Sequence[Request]) -> Execution | Exception:
        """Executes a batch, and returns what became of it."""
        try:
            return self._session.execute(batch)
        except Exception as error:  # noqa: BLE001 - a model may raise anything; its owner answers and logs it
            return error

    def _live(self) -> None:
        try:
            lower_priority(self.lane or Lane.INTERACTIVE)
            while (batch := self._work.get()) is not None:
                outcome = self.execute_now(batch)
                del batch
                self._loop.call_soon_threadsafe(self._done, self, outcome)
                del outcome
        except BaseException as error:  # noqa: BLE001 - whatever ends the thread, the owner hears of it
            self._loop.call_soon_threadsafe(self._died, self, error)
            return
        self._close_session()

    def _close_session(self) -> None:
        if self.lane is Lane.BULK:  # the interactive instance closes what they share
            return
        try:
            self._session.close()
        except Exception:
            log.exception("an instance did not close in order", instance=self.name)

    async def close(self) -> None:
        """Ends the thread once its batch is done, and closes the session in it."""
        if self._thread is None:
            self._close_session()
            return
        self._work.put(None)
        await asyncio.to_thread(self._thread.join)
