"""Indexes are built whatever becomes of a build: one that fails is tried again, and none leaves anything behind."""

import asyncio
import gc
import json
import os
import signal
import subprocess
import sys
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from structlog.testing import capture_logs

from lookwire_server.encoding.encoders import Encoders
from lookwire_server.metrics import Metrics
from lookwire_server.rpc.probes import probe_by
from lookwire_server.search import recall
from lookwire_server.search.collection import Collection
from lookwire_server.search.collections import Collections
from lookwire_server.search.engine import Probe
from lookwire_server.search.fields import Field, FieldType
from lookwire_server.search.filters import Equals
from lookwire_server.search.index import build, builder, generation, ivf, live
from lookwire_server.search.index.build import Order
from lookwire_server.search.index.builder import Builder, BuildFailure
from lookwire_server.search.index.generation import BUILDING, ROWS
from lookwire_server.search.index.live import VectorIndex
from lookwire_server.search.index.sealed import Effort
from lookwire_server.search.index.tuning import Tuned
from lookwire_server.search.items import NewItem, PayloadUpdate
from lookwire_server.search.recall import Recall
from lookwire_server.search.search_options import SearchOptions
from lookwire_server.search.store.collections import IndexKind, IndexSettings

from .conftest import DIMENSION, SHOES, Open

# A generation is wanted from so many items.
ENOUGH = 60
SECONDS = 30.0
Run = Callable[[Builder, Order], None]


@pytest.fixture(autouse=True)
def few_items(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "SEALED_ITEMS", ENOUGH)
    monkeypatch.setattr(builder, "APPROXIMATE_ITEMS", 4)
    monkeypatch.setattr(ivf, "MIN_CELL_VECTORS", 4)
    monkeypatch.setattr(ivf, "EXACT_MATCHES", 3)


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Builds in the builder's thread."""
    monkeypatch.setattr(Builder, "_run_child", lambda _, order: build.build(order))


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """What was on disk of all indexes whenever the builder paused, which takes no time here."""
    seen: list[list[str]] = []

    def pause(self: Builder) -> None:
        seen.append(sorted(path.name for path in (self._store.directory / "indexes").glob("*/*")))

    monkeypatch.setattr(Builder, "_pause", pause)
    return seen


def items(numbers: range) -> list[NewItem]:
    return [NewItem(f"i{number}", json.dumps({"stock": number}).encode()) for number in numbers]


async def fill(collection: Collection, numbers: range) -> None:
    vectors = np.random.default_rng(numbers.start).standard_normal((len(numbers), DIMENSION))
    await collection.upsert(items(numbers), vectors)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(SECONDS):
        while not condition():
            await asyncio.sleep(0.005)


def builder_of(collections: Collections) -> Builder:
    return collections._engine.builder


async def at_rest(collections: Collections, collection: Collection) -> None:
    """Waits until nothing is built for a collection, nor is to be."""
    await until(lambda: not (collection.needs_generation or builder_of(collections).building(collection.row.number)))


def fails_once(failure: Exception) -> Run:
    """A build that leaves half of a generation and fails; the next succeeds."""
    failures = [failure]

    def run(_: Builder, order: Order) -> None:
        if failures:
            half = Path(order.directory + BUILDING)
            half.mkdir(parents=True)
            (half / ROWS).write_bytes(b"half of it")
            raise failures.pop()
        build.build(order)

    return run


async def test_build_that_failed_is_tried_again(
    collections: Collections, collection: Collection, monkeypatch: pytest.MonkeyPatch, pauses: list[list[str]]
) -> None:
    """After a pause, without another write; what the failed build has left does not keep the disk full until then."""
    monkeypatch.setattr(Builder, "_run_child", fails_once(OSError(28, "No space left on device")))

    with capture_logs() as logs:
        await fill(collection, range(ENOUGH))
        await until(lambda: collection.recall.generation == 1)

    assert [entry["error"] for entry in logs if entry["log_level"] == "warning"] == [
        "[Errno 28] No space left on device"
    ]
    assert pauses == [[]]


async def test_new_generation_that_cannot_be_read_is_built_again(
    collections: Collections,
    collection: Collection,
    monkeypatch: pytest.MonkeyPatch,
    in_process: None,
    pauses: list[list[str]],
) -> None:
    """There is a pause before each further attempt, and no directory is left of the last."""
    opened, refusals = generation.index_of, [OSError(12, "Cannot allocate memory")] * 2

    def index_of(*arguments: Any) -> Any:
        if refusals:
            raise refusals.pop()
        return opened(*arguments)

    monkeypatch.setattr(generation, "index_of", index_of)

    await fill(collection, range(ENOUGH))
    await until(lambda: collection.recall.generation > 0)

    assert pauses == [[], []]
    assert collection.generations.numbers() == [1]


@pytest.mark.parametrize("damage", ["flipped", "removed"])
async def test_damaged_generation_is_followed_by_a_sound_one(
    collections: Collections, in_process: None, pauses: list[list[str]], damage: str
) -> None:
    """What happened to the files of the generation in use does not keep the next from being built."""
    collection = await collections.create(replace(SHOES, index=IndexSettings(IndexKind.IVF, 0.9)))
    await fill(collection, range(ENOUGH))
    await at_rest(collections, collection)
    rows = collection.generations.path(1) / ROWS
    if damage == "removed":
        rows.unlink()
    else:
        content = bytearray(rows.read_bytes())
        content[len(content) // 2] ^= 1
        rows.write_bytes(content)

    await fill(collection, range(100, 100 + ENOUGH))
    await at_rest(collections, collection)

    assert collection.recall.generation == 2
    assert pauses == []


async def test_dead_slots_are_bounded_in_a_collection_that_became_small(
    collections: Collections, collection: Collection, in_process: None
) -> None:
    """Items that are replaced again and again take no more and more memory, and none of them may be left."""
    await fill(collection, range(ENOUGH))
    await at_rest(collections, collection)
    await collection.delete_items([f"i{number}" for number in range(5, ENOUGH)])

    for number in range(3 * ENOUGH):
        await collection.update_payloads([PayloadUpdate(f"i{item}", b'{"stock": %d}' % number) for item in range(5)])
    await at_rest(collections, collection)
    slots = collection.index.view.count
    await collection.delete_items([f"i{number}" for number in range(5)])
    for number in range(2 * ENOUGH):
        await collection.upsert(items(range(number, number + 1)), np.ones((1, DIMENSION)))
        await collection.delete_items([f"i{number}"])
    await at_rest(collections, collection)

    assert slots < ENOUGH + 5
    assert collection.index.view.count < ENOUGH
    assert (await collection.search(np.ones(DIMENSION))).ids == []


async def test_failing_probe_does_not_end_the_builder(
    tmp_path: Path, failures: list[BaseException], in_process: None
) -> None:
    """Whatever an encoder raises where an index wants probes, the index is built without them."""

    class Broken:
        def of_fingerprint(self, encoder: str, fingerprint: str) -> None:
            raise RuntimeError("the encoder's session failed")

    probe = probe_by(cast(Encoders, Broken()))
    collections = Collections.open(tmp_path, Metrics(), search_threads=1, on_failure=failures.append, probe=probe)
    collection = await collections.create(SHOES)

    with capture_logs() as logs:
        await fill(collection, range(ENOUGH))
        await until(lambda: collection.recall.generation == 1)
    await asyncio.to_thread(collections.close)

    assert [entry["error"] for entry in logs if entry["event"] == "no probes for an index"] == [
        'RuntimeError("the encoder\'s session failed")'
    ]
    assert failures == []


@pytest.mark.parametrize("count", [ENOUGH - 1, ENOUGH])
async def test_deleted_collection_leaves_memory(collections: Collections, in_process: None, count: int) -> None:
    """Be it indexed or not, nothing holds a deleted collection's vectors until something else happens."""

    async def made_and_deleted() -> "weakref.ref[VectorIndex]":
        collection = await collections.create(SHOES)
        await fill(collection, range(count))
        await at_rest(collections, collection)
        assert (collection.recall.generation == 1) == (count == ENOUGH)
        await collections.delete("shoes")
        return weakref.ref(collection.index)

    index = await made_and_deleted()

    def is_gone() -> bool:
        gc.collect()
        return index() is None

    await until(is_gone)


async def test_deletion_gives_up_the_build(collections: Collections, collection: Collection) -> None:
    """The process ends, and that is no failure."""
    child = await started(collections, collection)

    with capture_logs() as logs:
        await collections.delete("shoes")
        await until(lambda: not builder_of(collections).building(collection.row.number))

    assert child.poll() == -signal.SIGKILL
    assert logs == []


async def test_build_of_a_deleted_collection_leaves_nothing(
    collections: Collections, collection: Collection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a build writes after the deletion has removed all is removed too."""

    def run(_: Builder, order: Order) -> None:
        asyncio.run(collections.delete("shoes"))
        Path(order.directory + BUILDING).mkdir(parents=True)
        raise BuildFailure("killed")

    monkeypatch.setattr(Builder, "_run_child", run)
    await fill(collection, range(ENOUGH))
    await until(lambda: collection.deleted and not builder_of(collections).building(collection.row.number))

    assert list((tmp_path / "indexes").iterdir()) == []


async def started(collections: Collections, collection: Collection) -> "subprocess.Popen[bytes]":
    """Returns the process that builds an index of new items."""
    await fill(collection, range(ENOUGH))
    await until(lambda: builder_of(collections)._child is not None)
    child = builder_of(collections)._child
    assert child is not None
    return child


async def test_deletion_before_the_process_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No process is started for a collection that was deleted while probes were made for it."""
    monkeypatch.setattr(subprocess, "Popen", pytest.fail)
    probed: list[str] = []

    def probe(_: object) -> None:
        probed.append("once")
        asyncio.run(collections.delete("shoes"))

    failures: list[BaseException] = []
    collections = Collections.open(
        tmp_path, Metrics(), search_threads=1, on_failure=failures.append, probe=cast(Probe, probe)
    )
    collection = await collections.create(SHOES)
    await fill(collection, range(ENOUGH))
    await until(lambda: collection.deleted and not builder_of(collections).building(collection.row.number))
    collections.close()

    assert (probed, failures) == (["once"], [])


async def test_only_the_first_index_is_urgent(
    collections: Collections, collection: Collection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A build is urgent as long as most items are in no index; a later one leaves the cores to searches."""
    orders: list[Order] = []

    def run(_: Builder, order: Order) -> None:
        orders.append(order)
        build.build(order)

    monkeypatch.setattr(Builder, "_run_child", run)
    await fill(collection, range(ENOUGH))
    await until(lambda: collection.recall.generation == 1)
    await fill(collection, range(ENOUGH))
    await until(lambda: collection.recall.generation == 2)

    assert [order.urgent for order in orders] == [True, False]


@pytest.mark.parametrize(("urgent", "policy"), [(True, os.SCHED_OTHER), (False, os.SCHED_IDLE)])
def test_builds_give_way_to_searches(urgent: bool, policy: int) -> None:
    """A build has the lowest nice value, and unless it is urgent only cores that are idle."""
    code = f"import os; from {build.__name__} import _give_way as g; g({urgent}); print(os.nice(0), os.sched_getscheduler(0))"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout

    assert printed == f"19 {policy}\n"


async def test_process_that_stands_still_is_given_up(
    collections: Collections, collection: Collection, monkeypatch: pytest.MonkeyPatch, pauses: list[list[str]]
) -> None:
    """A process that uses no processor time is killed, and another one builds the index."""
    monkeypatch.setattr(builder, "POLL_SECONDS", 0.02)
    child = await started(collections, collection)
    os.kill(child.pid, signal.SIGSTOP)

    with monkeypatch.context() as patch:
        patch.setattr(builder, "STALLED_SECONDS", 0.1)
        await until(lambda: child.poll() is not None)
    await until(lambda: collection.recall.generation == 1)

    assert child.poll() == -signal.SIGKILL
    assert pauses == [[]]


async def test_declarations_that_change_before_the_swap(
    collections: Collections, in_process: None, monkeypatch: pytest.MonkeyPatch, pauses: list[list[str]]
) -> None:
    """Fields that were changed and changed back while an index was loaded: what was written between is found by them."""
    fields = (Field("stock", FieldType.INT64),)
    collection = await collections.create(replace(SHOES, fields=fields))
    swap, swaps = collection.swap, iter(range(10))

    async def change() -> None:
        await collections.update("shoes", (Field("price", FieldType.DOUBLE),))
        await collection.upsert([NewItem("new", b'{"stock": 7777}')], np.ones((1, DIMENSION)))
        await collections.update("shoes", fields)

    def late(index: VectorIndex) -> None:
        if next(swaps) == 0:
            asyncio.run(change())
        swap(index)

    monkeypatch.setattr(collection, "swap", late)
    await fill(collection, range(ENOUGH))
    await until(lambda: collection.recall.generation > 0)

    assert await collection.count(Equals("stock", 7777)) == 1
    assert next(swaps) == 2
    assert pauses == []


@pytest.fixture
def two_efforts(in_process: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Inverted files that look into two cells for queries like the items, into five for others."""
    monkeypatch.setattr(build, "tune", lambda *_: Tuned(Effort(2, 5), 1.0, 1.0))


async def test_queries_like_deleted_items_get_the_effort_of_far_ones(
    collections: Collections, two_efforts: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where more than one item of twenty is gone, what a query resembles may be: searches and measurements allow for that."""
    collection = await collections.create(replace(SHOES, index=IndexSettings(IndexKind.IVF, 0.9)))
    await fill(collection, range(300))
    await at_rest(collections, collection)
    measured: list[Effort] = []

    def measure(_: object, effort: Effort, *__: object) -> Tuned:
        measured.append(effort)
        return Tuned(effort, 1.0, 1.0)

    monkeypatch.setattr(recall, "measure", measure)

    async def probes() -> int:
        far = np.ones((1, DIMENSION), np.float32)
        recall.measured(collections._engine.store, collection.index.view, far, lambda: False)
        return (await collection.search(np.ones(DIMENSION), SearchOptions(top_k=3, far=False))).plan.probes

    before = await probes()
    await collection.delete_items([f"i{number}" for number in range(10)])
    slightly = await probes()
    await collection.delete_items([f"i{number}" for number in range(10, 20)])
    after = await probes()

    assert collection.recall.generation == 1
    assert (before, slightly) == (2, 3)
    assert after > 5
    assert [measured[0], measured[-1]] == [Effort(2, 5), Effort(5, 5)]


@pytest.mark.parametrize(
    ("near", "far", "falls"),
    [(1.0, 1.0, False), (0.895, 0.895, False), (0.88, 1.0, True), (1.0, 0.88, True), (None, None, False)],
)
async def test_fallen_recall_asks_for_another_generation(
    collections: Collections, two_efforts: None, near: float | None, far: float | None, falls: bool
) -> None:
    """Be it with queries like the items or with others; a little below the target is chance."""
    collection = await collections.create(replace(SHOES, index=IndexSettings(IndexKind.IVF, 0.9)))
    await fill(collection, range(ENOUGH))
    await at_rest(collections, collection)

    collection._measured = Recall(1, near, far)

    assert collection.needs_generation == falls


async def test_closing_during_a_build(open_collections: Open) -> None:
    """The process ends with the server, and the next start is without an index."""
    collections = open_collections()
    collection = await collections.create(SHOES)
    child = await started(collections, collection)

    collections.close()

    assert child.poll() == -signal.SIGKILL
    assert open_collections().get("shoes").index.view.generation is None
