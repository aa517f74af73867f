"""The one thread that writes: to SQLite first, then to memory."""

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Generic, Protocol, TypeVar

import apsw

from lookwire_server.errors import QueueFull, StorageFailure, Unavailable
from lookwire_server.metrics import Metrics
from lookwire_server.search.failpoints import reach
from lookwire_server.search.store.store import Store

# A commit takes all that wait, so a long queue costs memory rather than time; a caller beyond these limits does better
# to hear so at once. 512 MiB is eight of the largest writes that a request can hold.
MAX_QUEUED_WRITES = 4_096
MAX_QUEUED_BYTES = 512 * 1024 * 1024
# What SQLite says when the disk, not the program, is at fault. The database is as it was; a later write may succeed.
DISK_ERRORS = (apsw.FullError, apsw.IOError, apsw.ReadOnlyError, apsw.CantOpenError, apsw.BusyError)

Result = TypeVar("Result", covariant=True)


class Write(Protocol[Result]):
    """One atomic change. All methods run in the writer's thread, `persist` possibly more than once."""

    @property
    def size(self) -> int:
        """Bytes that it holds in memory while it waits."""

    def persist(self, store: Store) -> None:
        """Writes to SQLite; if it raises, nothing of it is kept."""

    def apply(self) -> Result:
        """Brings the change into memory, when it is on disk."""

    def publish(self) -> None:
        """Makes what was applied visible."""


class Alone:
    """Base of a write that shares its transaction with no other: when it is persisted, memory is as the disk."""


class _Job(Generic[Result]):
    """A write and the future of whoever waits for it."""

    def __init__(self, write: Write[Result]) -> None:
        self.write = write
        self.future: Future[Result] = Future()

    def claim(self) -> bool:
        """Returns whether the write is still to be answered; from then on the caller cannot give up."""
        if self.future.running():
            return True
        return not self.future.done() and self.future.set_running_or_notify_cancel()

    def fail(self, error: Exception, cause: BaseException | None = None) -> None:
        if self.claim():
            if cause is not None:
                error.__cause__ = cause
            self.future.set_exception(error)


class Writer:
    """Takes all writes that wait, up to one that must be alone, commits them as one transaction, applies them in the same order,
    and then answers.

    So nothing is visible before it is on disk, and a write that was answered is both.
    """

    def __init__(self, store: Store, metrics: Metrics, on_failure: Callable[[BaseException], None]) -> None:
        self._store = store
        self._metrics = metrics
        self._on_failure = on_failure
        self._changed = threading.Condition()
        self._queue: deque[_Job[Any]] = deque()
        self._queued_bytes = 0
        self._taken: list[_Job[Any]] = []
        self._settling: list[Future[None]] = []
        self._closing = False
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="writer", daemon=True)
        self._thread.start()

    def submit(self, write: Write[Result]) -> Future[Result]:
        """Returns the future of the write's result; raises QueueFull or Unavailable at once."""
        job = _Job(write)
        with self._changed:
            if self._failure is not None:
                raise _unavailable()
            if self._closing:
                raise Unavailable("the server is stopping")
            full = self._queued_bytes + write.size > MAX_QUEUED_BYTES and self._queue
            if full or len(self._queue) >= MAX_QUEUED_WRITES:
                raise QueueFull(
                    f"{len(self._queue)} writes of {self._queued_bytes} bytes wait already",
                    waiting_writes=len(self._queue),
                    waiting_bytes=self._queued_bytes,
                )
            self._queue.append(job)
            self._queued_bytes += write.size
            self._changed.notify()
        return job.future

    def settled(self) -> Future[None]:
        """Completes once all that is on disk now is visible too."""
        future: Future[None] = Future()
        # Running, so that a caller that gives up cannot cancel it under the writer.
        future.set_running_or_notify_cancel()
        with self._changed:
            if self._failure is not None:
                future.set_exception(_unavailable())
            elif self._taken:
                self._settling.append(future)
            else:
                future.set_result(None)
        return future

    def close(self) -> None:
        """Writes what waits, then ends the thread. Later writes are refused."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        try:
            while jobs := self._take():
                self._commit(jobs)
                # Or the last of them would be held in memory until the next come.
                del jobs
                self._settle()
        except BaseException as error:  # noqa: BLE001 - whatever it is, nobody may be left waiting
            self._fail(error)

    def _take(self) -> list[_Job[Any]]:
        """Waits for writes and takes all that may be committed together; none when the writer is closed and the queue empty."""
        with self._changed:
            while not self._queue and not self._closing:
                self._changed.wait()
            self._taken = []
            while self._queue and not (self._taken and _apart(self._taken[-1].write, self._queue[0].write)):
                self._taken.append(self._queue.popleft())
            self._queued_bytes -= sum(job.write.size for job in self._taken)
            return self._taken

    def _commit(self, jobs: list[_Job[Any]]) -> None:
        try:
            persisted, refused = self._persist([job for job in jobs if job.claim()])
        except DISK_ERRORS as error:
            self._store.database.roll_back()
            if len(jobs) > 1:
                # A small write need not fail with a large one.
                for job in jobs:
                    self._commit([job])
            else:
                full = isinstance(error, apsw.FullError)
                jobs[0].fail(StorageFailure("the disk is full" if full else "the disk refused the write"), error)
            return
        # Only now: what they were refused for may be a change of the same transaction.
        for job, reason in refused:
            job.fail(reason)
        results = [job.write.apply() for job in persisted]
        reach("write.before_publish")
        for job in persisted:
            job.write.publish()
        reach("write.after_publish")
        if persisted:
            self._metrics.commit_writes.observe(len(persisted))
        for job, result in zip(persisted, results, strict=True):
            job.future.set_result(result)

    def _persist(self, jobs: list[_Job[Any]]) -> tuple[list[_Job[Any]], list[tuple[_Job[Any], Exception]]]:
        """Commits one transaction; returns the jobs that are part of it, and the others with why they are not."""
        persisted, refused = [], []
        self._store.database.begin()
        for job in jobs:
            try:
                with self._store.database.savepoint():
                    job.write.persist(self._store)
            except apsw.Error:
                raise
            except Exception as error:  # noqa: BLE001 - it is answered to the caller, and undone
                refused.append((job, error))
            else:
                persisted.append(job)
        reach("write.before_commit")
        self._store.database.commit()
        reach("write.after_commit")
        return persisted, refused

    def _settle(self) -> None:
        with self._changed:
            self._taken = []
            settling, self._settling = self._settling, []
        for future in settling:
            future.set_result(None)

    def _fail(self, failure: BaseException) -> None:
        """Answers all that wait, and all that come later, when disk and memory may no longer agree."""
        with self._changed:
            self._failure = failure
            jobs = [*self._taken, *self._queue]
            settling, self._settling = self._settling, []
            self._queue.clear()
        for job in jobs:
            job.fail(_unavailable(), failure)
        for future in settling:
            future.set_exception(_unavailable())
        self._on_failure(failure)


def _apart(first: Write[Any], second: Write[Any]) -> bool:
    return isinstance(first, Alone) or isinstance(second, Alone)


def _unavailable() -> Unavailable:
    return Unavailable("the store has failed; the server must be restarted")
