"""The snapshots of a data directory."""

import errno
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from threading import Event
from typing import Protocol

import apsw
import structlog

from lookwire_server.errors import InvalidArgument, LookwireError, NotFound, StorageFailure
from lookwire_server.search.collection import Collection
from lookwire_server.search.collection_writes import Directory
from lookwire_server.search.engine import Engine
from lookwire_server.search.failpoints import reach
from lookwire_server.search.fields import shown
from lookwire_server.search.index.generation import synchronise
from lookwire_server.search.restore import Restore
from lookwire_server.search.store.collections import CollectionRow
from lookwire_server.search.store.snapshot_file import SUFFIX, GivenUp, Manifest, SnapshotFile
from lookwire_server.search.workers import Result
from lookwire_server.search.writer import DISK_ERRORS

log = structlog.get_logger()

DIRECTORY = "snapshots"
# One snapshot is written at a time, under this name until it is whole.
UNFINISHED = "unfinished"
# No separator, and not hidden, so that the file stays in the directory. With the suffix it fits the 255 bytes of a file's name.
NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]{0,199}")
MAX_LISTED = 1_000


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A copy of a collection in a file of that name."""

    name: str
    manifest: Manifest


class Named(Directory, Protocol):
    """The collections of a data directory, as far as copying them goes."""

    def get(self, name: str, field: str) -> Collection:
        """Returns the collection of a name or an alias, which the request has at `field`; raises NotFound."""

    def check_free(self, name: str, field: str) -> None:
        """Raises InvalidArgument, with the path `field`, or AlreadyExists unless a new collection may have the name."""


class Snapshots:
    """Writes, lists, restores and deletes the files in the directory `snapshots`, while the collections serve.

    Writing and restoring are done one at a time, by one thread; a caller that gives up ends its own.
    """

    def __init__(self, engine: Engine, collections: Named) -> None:
        self._engine = engine
        self._collections = collections
        self._directory = engine.store.directory / DIRECTORY

    def remove_unfinished(self) -> None:
        """Removes what a process that was killed has left; at the start."""
        try:
            (self._directory / UNFINISHED).unlink(missing_ok=True)
        except OSError as error:
            log.warning("an unfinished snapshot cannot be removed", error=str(error))

    async def create(self, collection: str) -> Snapshot:
        """Copies a collection as of one moment; when it returns the file is on disk. Raises NotFound, StorageFailure."""
        row = self._collections.get(collection, "collection").row
        return await self._until_given_up(partial(self._create, row))

    async def list(self, collection: str = "") -> tuple[Snapshot, ...]:
        """Returns the readable snapshots of a collection of that name, or of all, by name; the first MAX_LISTED."""
        return await self._engine.reading.run(partial(self._list, collection))

    async def restore(self, name: str, collection: str) -> Collection:
        """Returns the new collection, which is on disk. Nothing is changed if it raises.

        NotFound: no such snapshot. AlreadyExists: a taken name. FailedPrecondition: the file is damaged, or no snapshot, or of a
        newer server.
        """
        file = self._file(name)
        self._collections.check_free(collection, "collection")
        return await self._until_given_up(partial(self._restore, file, collection))

    async def delete(self, name: str) -> None:
        """Removes the file. Raises NotFound."""
        await self._engine.reading.run(partial(self._delete, self._file(name)))

    async def _until_given_up(self, work: Callable[[Event], Result]) -> Result:
        given_up = Event()
        try:
            return await self._engine.copying.run(partial(work, given_up))
        finally:
            given_up.set()

    def _create(self, row: CollectionRow, given_up: Event) -> Snapshot:
        unfinished = self._directory / UNFINISHED
        try:
            if not self._directory.is_dir():
                self._directory.mkdir()
                synchronise(self._directory.parent)
            created = datetime.now(UTC)
            while (path := self._directory / f"{row.name}-{created:%Y%m%dT%H%M%S.%fZ}{SUFFIX}").exists():
                created += timedelta(microseconds=1)
            try:
                unfinished.unlink(missing_ok=True)
                SnapshotFile(unfinished).write(self._engine.store.directory, row.number, created, given_up)
                if given_up.is_set():
                    raise GivenUp
                reach("snapshot.before_rename")
                unfinished.rename(path)
            except BaseException:
                unfinished.unlink(missing_ok=True)
                raise
            synchronise(self._directory)
            reach("snapshot.after_rename")
        except (OSError, *DISK_ERRORS) as error:
            full = isinstance(error, apsw.FullError) or getattr(error, "errno", None) == errno.ENOSPC
            raise StorageFailure("the disk is full" if full else "the disk refused the snapshot") from error
        return _read(SnapshotFile(path))

    def _list(self, collection: str) -> tuple[Snapshot, ...]:
        listed: list[Snapshot] = []
        for name in sorted(path.name.removesuffix(SUFFIX) for path in self._directory.glob(f"*{SUFFIX}")):
            if len(listed) == MAX_LISTED:
                break
            try:
                snapshot = _read(self._file(name))
            except LookwireError as error:
                log.warning("snapshot not listed", name=name, error=error.message)
            else:
                if collection in ("", snapshot.manifest.collection.name):
                    listed.append(snapshot)
        return tuple(listed)

    def _restore(self, file: SnapshotFile, collection: str, given_up: Event) -> Collection:
        file.check(given_up)
        return Restore(self._engine.writer, self._collections, file, collection).run(given_up)

    def _delete(self, file: SnapshotFile) -> None:
        try:
            file.path.unlink()
            synchronise(self._directory)
        except (FileNotFoundError, IsADirectoryError):
            raise NotFound(f"no snapshot {shown(file.name)}", field="snapshot", snapshot=file.name) from None
        except OSError as error:
            raise StorageFailure(f"the snapshot cannot be removed: {error.strerror}") from error

    def _file(self, name: str) -> SnapshotFile:
        if not NAME.fullmatch(name):
            raise InvalidArgument(
                "a snapshot's name has 1 to 200 of the characters a-z, A-Z, 0-9, '_', '-' and '.', a letter or digit first",
                field="snapshot",
            )
        return SnapshotFile(self._directory / f"{name}{SUFFIX}")


def _read(file: SnapshotFile) -> Snapshot:
    return Snapshot(file.name, file.manifest())
