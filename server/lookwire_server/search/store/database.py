"""The database of a data directory: its connections and transactions."""

import threading
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path

import apsw

from lookwire_server.errors import FailedPrecondition
from lookwire_server.search.store.lock import DirectoryLock
from lookwire_server.search.store.schema import upgrade

DATABASE = "lookwire.db"
# Three vectors of 512 dimensions fit such a page, only one fits SQLite's usual 4,096 bytes: a third less disk and log.
PAGE_BYTES = 8_192
# What a directory is refused for at the start, rather than the program being at fault.
UNUSABLE = (
    OSError,
    apsw.BusyError,
    apsw.CantOpenError,
    apsw.CorruptError,
    apsw.FullError,
    apsw.IOError,
    apsw.NotADBError,
    apsw.PermissionsError,
    apsw.ReadOnlyError,
)
# Only a tool from outside can hold the database; it gets this long before an operation fails.
BUSY_MILLISECONDS = 5_000


class Database:
    """One connection writes and checkpoints, under one thread at a time; every other thread reads by one of its own.

    With `writes=False` it only reads, beside the process that has the directory.
    """

    def __init__(self, directory: Path, *, writes: bool = True) -> None:
        self._path = str(directory / DATABASE)
        self._readers: list[apsw.Connection] = []
        self._thread = threading.local()
        self._opened = ExitStack()
        if not writes:
            self._opened.callback(self._close_readers)
            self.connection = self.reader()
            return
        try:
            self._open(directory)
        except UNUSABLE as error:
            raise FailedPrecondition(
                f"the data directory {directory} cannot be used: {error}; mend that, or give another one",
                data_dir=directory,
            ) from error

    def _open(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        with ExitStack() as opened:
            opened.enter_context(closing(DirectoryLock(directory)))
            self.connection = opened.enter_context(closing(apsw.Connection(self._path)))
            self.connection.set_busy_timeout(BUSY_MILLISECONDS)
            self.connection.pragma("page_size", PAGE_BYTES)
            self.connection.pragma("journal_mode", "wal")
            self.connection.pragma("synchronous", "full")
            upgrade(self.connection, directory)
            opened.callback(self._finish)
            self._opened = opened.pop_all()

    def close(self) -> None:
        """Brings the whole log into the database file. No other thread may use it any more."""
        self._opened.close()

    def begin(self) -> None:
        self.connection.execute("BEGIN IMMEDIATE")

    def commit(self) -> None:
        self.connection.execute("COMMIT")

    def roll_back(self) -> None:
        """Undoes the transaction, if SQLite has not done so of its own accord, as it does after some errors."""
        if self.connection.in_transaction:
            self.connection.execute("ROLLBACK")

    @contextmanager
    def savepoint(self) -> Iterator[None]:
        """Undoes what the block wrote if it raises; an error of SQLite itself is left to `roll_back`."""
        self.connection.execute("SAVEPOINT operation")
        try:
            yield
        except apsw.Error:
            raise
        except Exception:
            self.connection.execute("ROLLBACK TO operation")
            self.connection.execute("RELEASE operation")
            raise
        self.connection.execute("RELEASE operation")

    def reader(self) -> apsw.Connection:
        """The calling thread's own connection, which can only read."""
        reader: apsw.Connection | None = getattr(self._thread, "reader", None)
        if reader is None:
            reader = apsw.Connection(self._path, flags=apsw.SQLITE_OPEN_READWRITE)
            reader.set_busy_timeout(BUSY_MILLISECONDS)
            reader.pragma("query_only", True)
            # Two connections that checkpoint are what SQLite's WAL-reset bug needs.
            reader.wal_autocheckpoint(0)
            reader.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
            self._thread.reader = reader
            self._readers.append(reader)
        return reader

    def _close_readers(self) -> None:
        for reader in self._readers:
            reader.close()

    def _finish(self) -> None:
        self._close_readers()
        self.roll_back()
        # If the disk has no room for that, nothing is lost: the log stays, and the next start reads it.
        with suppress(apsw.FullError, apsw.IOError, apsw.BusyError):
            self.connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)
