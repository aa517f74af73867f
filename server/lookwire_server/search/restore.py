"""A collection made of a snapshot, beside the others while they serve."""

from concurrent.futures import Future
from contextlib import closing
from dataclasses import replace
from itertools import groupby
from threading import Event

import numpy as np
import structlog

from lookwire_server.errors import FailedPrecondition, InvalidArgument, LookwireError, QueueFull
from lookwire_server.search.collection import Collection
from lookwire_server.search.collection_writes import Directory, taken
from lookwire_server.search.failpoints import reach
from lookwire_server.search.index.live import Upsert, VectorIndex
from lookwire_server.search.items import CheckedItems, NewItem, check_items
from lookwire_server.search.store.collections import CollectionRow, NewCollection
from lookwire_server.search.store.snapshot_file import CopiedItem, GivenUp, Manifest, SnapshotFile
from lookwire_server.search.store.store import Store
from lookwire_server.search.vectors import Matrix
from lookwire_server.search.writer import DISK_ERRORS, Result, Write, Writer

log = structlog.get_logger()


class Restore:
    """Brings the items of a checked file to the store and to memory, chunk by chunk, and the collection to light at the end.

    Until then it is noted as a restore: the name is taken, nobody sees the collection, and a start removes it. Runs in a thread
    of its own; the writer takes other writes between the chunks.
    """

    def __init__(self, writer: Writer, directory: Directory, file: SnapshotFile, name: str) -> None:
        self._writer = writer
        self._directory = directory
        self._file = file
        self._name = name

    def run(self, given_up: Event) -> Collection:
        """Returns the new collection. If it raises, there is none: AlreadyExists for a taken name, GivenUp after the event,
        FailedPrecondition if the file holds what a server would not have written.
        """
        manifest = self._file.manifest()
        row = self._write(_Begin(replace(manifest.collection, name=self._name), manifest.sequence))
        try:
            index = self._fill(manifest, row, given_up)
            reach("restore.before_publish")
            return self._write(_Finish(self._directory, row, index))
        except BaseException:
            self._discard(row)
            raise

    def _fill(self, manifest: Manifest, row: CollectionRow, given_up: Event) -> VectorIndex:
        index = VectorIndex(row.dimension, row.fields, row.sequence)
        index.reserve(manifest.item_count)
        with closing(self._file.chunks()) as chunks:
            for copied in chunks:
                if given_up.is_set():
                    raise GivenUp
                try:
                    chunk = _Chunk(row, copied)
                except (InvalidArgument, ValueError) as error:
                    raise self._unfit(str(error)) from error
                keys = self._write(chunk)
                ids = [item.id for item in copied]
                index.upsert(Upsert(row.sequence, ids, keys, chunk.vectors, chunk.checked.values))
                reach("restore.after_chunk")
        if index.item_count != manifest.item_count:
            raise self._unfit(f"{index.item_count} items instead of {manifest.item_count}")
        index.publish()
        return index

    def _write(self, write: Write[Result]) -> Result:
        """Has the writer carry out a change, once its queue has room."""
        future: Future[Result] | None = None
        while future is None:
            try:
                future = self._writer.submit(write)
            except QueueFull:
                self._writer.settled().result()
        return future.result()

    def _discard(self, row: CollectionRow) -> None:
        try:
            self._write(_Discard(row))
        except LookwireError as error:
            log.warning(
                "a restore was given up; its items are removed at the next one, or when the name is wanted",
                name=row.name,
                error=str(error),
            )

    def _unfit(self, what: str) -> FailedPrecondition:
        return FailedPrecondition(
            f"{self._file.path.name} cannot be restored: {what}; nothing was changed; restore another one",
            field="snapshot",
            snapshot=self._file.name,
        )


def remove_unfinished(store: Store) -> None:
    """Removes what a process that was killed has left; at the start, before there is a writer."""
    try:
        store.database.begin()
        store.remove_unfinished()
        store.database.commit()
    except DISK_ERRORS as error:
        store.database.roll_back()
        log.warning("an unfinished restore cannot be removed; the next start tries again", error=str(error))


class _Begin:
    """Takes the name. One restore runs at a time, so that what is unfinished now was left by one that failed."""

    size = 0

    def __init__(self, new: NewCollection, sequence: int) -> None:
        self._new = new
        self._sequence = sequence
        self._row: CollectionRow

    def persist(self, store: Store) -> None:
        store.remove_unfinished()
        row = store.add_collection(self._new, sequence=self._sequence)
        if row is None:
            raise taken(self._new.name, "collection")
        store.restores.begin(row.number)
        self._row = row

    def apply(self) -> CollectionRow:
        return self._row

    def publish(self) -> None:
        pass


class _Chunk:
    """Some items of the file; raises InvalidArgument or ValueError if they are not as a server writes them."""

    def __init__(self, row: CollectionRow, copied: list[CopiedItem]) -> None:
        self._row = row
        self._sequences = [item.sequence for item in copied]
        self._keys: list[int] = []
        self.size = sum(item.size for item in copied)
        self.checked = check_items([NewItem(item.id, item.payload, item.source) for item in copied], row.fields)
        content = b"".join(item.vector for item in copied)
        self.vectors: Matrix = np.frombuffer(content, "<f4").reshape(len(copied), row.dimension)

    def persist(self, store: Store) -> None:
        self._keys = []
        start = 0
        for sequence, written_together in groupby(self._sequences):
            stop = start + len(list(written_together))
            items = CheckedItems(self.checked.items[start:stop], self.checked.values[start:stop])
            self._keys += store.put_items(self._row, sequence, items, self.vectors[start:stop])[0]
            start = stop

    def apply(self) -> list[int]:
        return self._keys

    def publish(self) -> None:
        pass


class _Finish:
    """Makes the collection one like any other, on disk and in memory."""

    size = 0

    def __init__(self, directory: Directory, row: CollectionRow, index: VectorIndex) -> None:
        self._directory = directory
        self._row = row
        self._index = index

    def persist(self, store: Store) -> None:
        store.restores.end(self._row.number)

    def apply(self) -> Collection:
        return self._directory.adopt(self._row, self._index)

    def publish(self) -> None:
        pass


class _Discard:
    """Removes what a restore has brought, or leaves that to whoever wants the name, if the disk refuses it."""

    size = 0

    def __init__(self, row: CollectionRow) -> None:
        self._row = row

    def persist(self, store: Store) -> None:
        store.restores.give_up(self._row.number)
        store.remove_given_up(self._row.name)

    def apply(self) -> None:
        pass

    def publish(self) -> None:
        pass
