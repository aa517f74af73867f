"""The thread that has generations built, one at a time, and swaps them in."""

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Protocol

import apsw
import faiss
import numpy as np
import structlog

from lookwire_server.errors import LookwireError
from lookwire_server.search.failpoints import reach
from lookwire_server.search.index.build import Order
from lookwire_server.search.index.generation import Doubtful
from lookwire_server.search.index.generations import Generations
from lookwire_server.search.index.live import VectorIndex
from lookwire_server.search.index.load import load
from lookwire_server.search.store.collections import CollectionRow
from lookwire_server.search.store.store import Store
from lookwire_server.search.vectors import Matrix

log = structlog.get_logger()

# Below that a scan of all items costs little beside encoding a query.
APPROXIMATE_ITEMS = 20_000
# After a build that failed, which the disk or the memory will be at fault for, nothing is tried for so long.
PAUSE_SECONDS = 60.0
# A process that used no processor time for so long, looked at so often, will not end by itself.
STALLED_SECONDS = 600.0
POLL_SECONDS = 30.0
# How often the recall of every index is measured again, which changes as items and queries do.
MEASURE_SECONDS = 600.0


class Buildable(Protocol):
    """A collection, as far as building its index goes."""

    @property
    def row(self) -> CollectionRow: ...
    @property
    def index(self) -> VectorIndex: ...
    @property
    def generations(self) -> Generations: ...
    @property
    def deleted(self) -> bool: ...
    @property
    def needs_generation(self) -> bool: ...
    def far_queries(self) -> Matrix | None: ...
    def measure_recall(self, stopped: Callable[[], bool]) -> None:
        """Measures what searches find now; gives up when `stopped` says so."""

    def swap(self, index: VectorIndex) -> None:
        """Makes the loaded index the collection's own, in the writer's thread; returns when it is visible."""


class Builder:
    """Builds for the collections that asked, in the order in which they did.

    A collection that asks twice waits once; one that asks while it is being built waits, and is built again if it still needs it.
    """

    def __init__(self, store: Store, threads: int, on_failure: Callable[[BaseException], None]) -> None:
        self._store = store
        self._threads = threads
        self._on_failure = on_failure
        self._changed = threading.Condition()
        self._waiting: dict[int, Buildable] = {}
        self._watched: dict[int, Buildable] = {}
        self._measure_at = time.monotonic() + MEASURE_SECONDS
        self._current: Buildable | None = None
        self._child: subprocess.Popen[bytes] | None = None
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="builder", daemon=True)
        self._thread.start()

    def request(self, collection: Buildable) -> None:
        """Asks for a new generation, if the collection needs one when its turn comes; returns at once."""
        with self._changed:
            if not self._closing:
                self._waiting[collection.row.number] = collection
                self._changed.notify()

    def watch(self, collection: Buildable) -> None:
        """Has the recall of a collection measured now and then, until it is deleted."""
        with self._changed:
            self._watched[collection.row.number] = collection

    def forget(self, number: int) -> None:
        """Gives up whatever is to be done for a collection that is deleted."""
        with self._changed:
            self._watched.pop(number, None)
            self._waiting.pop(number, None)
            if self._child is not None and _is(self._current, number):
                self._child.kill()

    def building(self, number: int) -> bool:
        """Whether a generation of the collection is being built, or waits to be."""
        # In this order: one whose turn comes is the current one before it waits no more.
        return number in self._waiting or _is(self._current, number)

    def close(self) -> None:
        """Gives up the build that runs, and ends the thread."""
        with self._changed:
            self._closing = True
            if self._child is not None:
                self._child.kill()
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        # Measuring takes one core, so that searches have the others.
        faiss.omp_set_num_threads(1)
        try:
            while not self._closing:
                collection = self._take()
                if collection is not None:
                    self._try_build(collection)
                # Or it would be held in memory until the next is built, be it deleted or not.
                del collection
                if time.monotonic() >= self._measure_at:
                    self._measure()
        except BaseException as error:  # noqa: BLE001 - whatever it is, somebody must hear of it
            self._on_failure(error)

    def _take(self) -> Buildable | None:
        """Waits for a collection to build; None when it is time to measure or to end."""
        with self._changed:
            self._current = None
            while not (self._waiting or self._closing) and (left := self._measure_at - time.monotonic()) > 0:
                self._changed.wait(left)
            if self._closing or not self._waiting:
                return None
            number, self._current = next(iter(self._waiting.items()))
            return self._waiting.pop(number)

    def _pause(self) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._closing, PAUSE_SECONDS)

    def _try_build(self, collection: Buildable) -> None:
        row = collection.row
        try:
            if collection.needs_generation and not collection.deleted:
                self._build(collection)
        except (OSError, apsw.Error, LookwireError, Doubtful, BuildFailure) as error:
            generation = collection.index.view.generation
            collection.generations.remove_all_but(None if generation is None else generation.manifest.generation)
            if not (self._closing or collection.deleted):
                log.warning("index not built", collection=collection.row.name, error=str(error))
                if collection.row is row:
                    self._pause()
                # Else the collection was changed meanwhile: the next build is of what it is now.
                self.request(collection)
        if collection.deleted:
            collection.generations.remove()

    def _measure(self) -> None:
        with self._changed:
            self._watched = {number: each for number, each in self._watched.items() if not each.deleted}
            watched = list(self._watched.values())
        for collection in watched:
            try:
                collection.measure_recall(lambda: self._closing)
            except (OSError, apsw.Error, LookwireError) as error:
                log.warning("recall not measured", collection=collection.row.name, error=str(error))
        self._measure_at = time.monotonic() + MEASURE_SECONDS

    def _build(self, collection: Buildable) -> None:
        row, generations = collection.row, collection.generations
        numbers = generations.numbers()
        number = max(numbers, default=0) + 1
        view = collection.index.view
        current = view.generation
        with tempfile.TemporaryDirectory(prefix="lookwire-") as scratch:
            queries = Path(scratch) / "far_queries.npy"
            far = collection.far_queries()
            if far is not None:
                np.save(queries, far)
            order = Order(
                data_dir=str(self._store.directory),
                collection=row.number,
                generation=number,
                directory=str(generations.path(number)),
                previous="" if current is None else str(generations.path(current.manifest.generation)),
                far_queries="" if far is None else str(queries),
                approximate_items=APPROXIMATE_ITEMS,
                threads=self._threads,
                urgent=2 * view.rows.sealed_count < view.count,
            )
            self._run_child(order)
        self._swap(collection, number)

    def _run_child(self, order: Order) -> None:
        command = [sys.executable, "-m", "lookwire_server.search.index.build"]
        with tempfile.TemporaryFile() as errors:
            with self._changed:
                if self._closing:
                    raise BuildFailure("the server is stopping")
                if self._current is not None and self._current.deleted:
                    raise BuildFailure("the collection was deleted")
                child = subprocess.Popen(command, stdin=subprocess.PIPE, stderr=errors)  # noqa: S603 - our own module
                self._child = child
            assert child.stdin is not None  # noqa: S101 - for the type checker: it was asked for
            # Its input stays open until it has ended, because it ends when that is closed, as it is when this process dies.
            try:
                # One that has died already is known by its exit status.
                with suppress(BrokenPipeError):
                    os.write(child.stdin.fileno(), json.dumps(asdict(order)).encode() + b"\n")
                code = self._wait(child)
            finally:
                self._child = None
                child.stdin.close()
            errors.seek(0)
            said = errors.read().decode(errors="replace").strip()
        if code:
            raise BuildFailure(f"the process that builds it ended with {code}: {said[-500:]}")

    def _wait(self, child: "subprocess.Popen[bytes]") -> int:
        """Returns the exit status; a process that does nothing at all for long is killed."""
        used, since = 0.0, time.monotonic()
        while True:
            try:
                return child.wait(POLL_SECONDS)
            except subprocess.TimeoutExpired:
                now = cpu_seconds(child.pid)
                if now > used:
                    used, since = now, time.monotonic()
                elif time.monotonic() - since > STALLED_SECONDS:
                    log.warning("a build stands still and is given up", seconds=STALLED_SECONDS)
                    child.kill()

    def _swap(self, collection: Buildable, number: int) -> None:
        """Reads the generation, catches up with the store, and has the writer put it in the place of the old one."""
        reach("swap.before_load")
        collection.index.record()
        try:
            sequence = self._store.collections.sequence(collection.row.number)
            generation = collection.generations.read(number, collection.row, sequence)
            fresh = load(self._store, collection.row, generation)
            reach("swap.before_swap")
            collection.swap(fresh)
        except BaseException:
            collection.index.stop_recording()
            raise
        reach("swap.after_swap")
        manifest = generation.manifest
        recalls = [recall for recall in (manifest.near_recall, manifest.far_recall) if recall is not None]
        reached = all(recall >= manifest.target_recall for recall in recalls)
        (log.info if reached else log.warning)(
            "index built" if reached else "index built, with less than the target recall",
            collection=collection.row.name,
            generation=number,
            kind=str(manifest.kind),
            items=manifest.count,
            near_recall=manifest.near_recall,
            far_recall=manifest.far_recall,
        )
        reach("swap.before_removal")
        collection.generations.remove_all_but(number)


def cpu_seconds(pid: int) -> float:
    """Processor seconds of a process, as Linux tells them."""
    # The name may have blanks and brackets; the fields that follow it have none: utime and stime are the 14th and 15th.
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _is(collection: Buildable | None, number: int) -> bool:
    return collection is not None and collection.row.number == number


class BuildFailure(Exception):
    """The process that builds a generation did not."""
