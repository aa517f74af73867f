"""Copies of collections in files, and collections made of them."""

import asyncio
import hashlib
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Coroutine
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

import apsw
import numpy as np
import pytest

from lookwire_server.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound, StorageFailure
from lookwire_server.search import restore as restore_module
from lookwire_server.search import snapshots as snapshots_module
from lookwire_server.search.collection import Collection
from lookwire_server.search.collections import Collections
from lookwire_server.search.fields import Field, FieldType
from lookwire_server.search.filters import Equals
from lookwire_server.search.items import NewItem
from lookwire_server.search.search_options import SearchOptions
from lookwire_server.search.snapshots import Snapshot
from lookwire_server.search.store import snapshot_file
from lookwire_server.search.store.collections import EPOCH, IndexKind, IndexSettings
from lookwire_server.search.store.snapshot_file import MARK, TRAILER_BYTES, GivenUp, SnapshotFile

from .conftest import DIMENSION, FIELDS, SHOES, Open

Rows = dict[str, tuple[bytes, int, bytes, str | bytes | None]]


def rows_of(collections: Collections, collection: Collection) -> Rows:
    """Payload, sequence, vector and source of every item, in the order of their keys."""
    connection = collections._engine.store.database.reader()
    found = connection.execute(
        "SELECT id, payload, sequence, vector, content FROM items LEFT JOIN sources USING (key) WHERE collection = ?"
        " ORDER BY items.key",
        (collection.row.number,),
    )
    return {id: (payload, sequence, vector, source) for id, payload, sequence, vector, source in found}


async def fill(collection: Collection, *, writes: int = 30) -> None:
    """Writes, replaces and deletes items."""
    rng = np.random.default_rng(1)
    for number in range(writes):
        items = [
            NewItem(f"{number % 20}-{member}", b'{"brand": "b%d", "stock": %d}' % (member, number), source=source)
            for member, source in enumerate([None, "a red shoe", b"\xff\xd8\0", "ein grüner Schuh"])
        ]
        await collection.upsert(items, rng.normal(size=(4, DIMENSION)))
    await collection.delete_items(["3-0", "4-1"])


async def test_restored_collection_is_as_the_copied_one_was(open_collections: Open) -> None:
    """Items, vectors, sequences, sources, fields, settings, fingerprint and answers are the same, after a restart too."""
    collections = open_collections()
    settings = IndexSettings(IndexKind.IVF, 0.9)
    shoes = await collections.create(replace(SHOES, index=settings, keeps_sources=True))
    await fill(shoes)
    copied, sequence = rows_of(collections, shoes), shoes.sequence
    query, options = np.array([1, 0.5, 0, 0]), SearchOptions(filter=Equals("brand", "b2"))
    found = await shoes.search(query, options)

    snapshot = await collections.snapshots.create("shoes")
    await shoes.upsert([NewItem("later", b"{}")], np.ones((1, DIMENSION)))
    restored = await collections.snapshots.restore(snapshot.name, "again")
    in_memory = restored.index.view.rows.ids(np.arange(restored.index.view.count))
    collections.close()
    collections = open_collections()
    reopened = collections.get("again")

    assert (snapshot.manifest.item_count, snapshot.manifest.sequence) == (len(copied), sequence) == (78, 31)
    for again in (restored, reopened):
        assert again.row.described == replace(shoes.row.described, name="again")
        assert (again.item_count, again.sequence) == (78, sequence)
    assert rows_of(collections, reopened) == copied
    assert in_memory == list(copied)
    result = await reopened.search(query, options)
    assert (result.ids, result.scores.tolist()) == (found.ids, found.scores.tolist())
    assert (await reopened.upsert([NewItem("next", b"{}")], np.ones((1, DIMENSION)))).sequence == sequence + 1


async def test_restored_words_are_found(collections: Collections) -> None:
    """The words of TEXT fields can be searched in the restored collection."""
    fields = (Field("title", FieldType.TEXT),)
    shoes = await collections.create(replace(SHOES, fields=fields))
    titles = ("red boots", "blue boots", "a hat")
    items = [NewItem(title, json.dumps({"title": title}).encode()) for title in titles]
    await shoes.upsert(items, np.eye(4)[:3])
    snapshot = await collections.snapshots.create("shoes")

    restored = await collections.snapshots.restore(snapshot.name, "again")

    store = collections._engine.store
    keys, _ = await asyncio.to_thread(store.words.search, restored.row, (), "blue boots", 10)
    stored = await asyncio.to_thread(store.items.by_key, keys.tolist())
    assert [stored[key][0].id for key in keys.tolist()] == ["blue boots", "red boots"]


async def test_empty_collection_comes_back(collections: Collections) -> None:
    """A collection that was never written to is copied and restored."""
    await collections.create(SHOES)
    snapshot = await collections.snapshots.create("shoes")

    restored = await collections.snapshots.restore(snapshot.name, "again")

    assert (restored.item_count, restored.sequence, restored.row.fields) == (0, 0, FIELDS)
    assert (await restored.upsert([NewItem("a", b"")], np.ones((1, DIMENSION)))).sequence == 1


async def test_snapshot_under_load_is_one_moment(collections: Collections) -> None:
    """A copy that is made while several tasks write holds exactly the writes up to its sequence."""
    shoes = await collections.create(replace(SHOES, fields=()))
    history: dict[int, tuple[list[str], bytes | None]] = {}
    stop = asyncio.Event()

    async def write(task: int) -> None:
        rng = random.Random(task)
        round = 0
        while not stop.is_set():
            round += 1
            ids = rng.sample([f"i{number}" for number in range(200)], rng.randint(1, 40))
            if rng.random() < 0.2:
                history[(await shoes.delete_items(ids)).sequence] = (ids, None)
            else:
                payload = b'{"written": "%d-%d"}' % (task, round)
                written = await shoes.upsert([NewItem(id, payload) for id in ids], np.ones((len(ids), DIMENSION)))
                history[written.sequence] = (ids, payload)

    writers = [asyncio.create_task(write(task)) for task in range(4)]
    snapshots: list[Snapshot] = []
    while len(snapshots) < 8:
        snapshots.append(await collections.snapshots.create("shoes"))
        await asyncio.sleep(0.03)
    stop.set()
    await asyncio.gather(*writers)

    assert len({snapshot.manifest.sequence for snapshot in snapshots}) > 4
    for number, snapshot in enumerate(snapshots):
        expected: dict[str, tuple[bytes, int]] = {}
        for sequence in range(1, snapshot.manifest.sequence + 1):
            ids, payload = history[sequence]
            for id in ids:
                expected.pop(id, None)
                if payload is not None:
                    expected[id] = (payload, sequence)
        restored = await collections.snapshots.restore(snapshot.name, f"again-{number}")
        assert {id: row[:2] for id, row in rows_of(collections, restored).items()} == expected
        assert (restored.item_count, restored.sequence) == (len(expected), snapshot.manifest.sequence)


async def test_writes_go_on_during_a_restore(collections: Collections, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the chunks of a restore the writer takes other writes, and nobody sees the new collection before the end."""
    shoes = await collections.create(SHOES)
    await fill(shoes)
    snapshot = await collections.snapshots.create("shoes")
    monkeypatch.setattr(snapshot_file, "MAX_ITEMS", 2)
    seen, sequence = [], shoes.sequence

    restoring = asyncio.create_task(collections.snapshots.restore(snapshot.name, "again"))
    while not restoring.done():
        await shoes.upsert([NewItem("x", b"")], np.ones((1, DIMENSION)))
        if not restoring.done():
            seen.append([collection.name for collection in collections.list()])

    assert (await restoring).item_count == 78
    assert len(seen) > 5
    assert seen[:-1] == [["shoes"]] * (len(seen) - 1)
    assert shoes.sequence > sequence + 5


async def test_every_damage_is_found(collections: Collections, tmp_path: Path) -> None:
    """A flipped bit anywhere, a file cut short and one that grew are FailedPrecondition; nothing is changed."""
    shoes = await collections.create(SHOES)
    await fill(shoes)
    snapshot = await collections.snapshots.create("shoes")
    path = tmp_path / "snapshots" / f"{snapshot.name}.snapshot"
    sound = path.read_bytes()
    rng = random.Random(3)
    offsets = [*range(100), *range(len(sound) - TRAILER_BYTES, len(sound)), *rng.sample(range(len(sound)), 150)]
    damages = [sound[:at] + bytes([sound[at] ^ 1 << rng.randrange(8)]) + sound[at + 1 :] for at in offsets]
    damages += [sound[:size] for size in (0, 50, 100, 8_192, len(sound) // 2, len(sound) - 1)]
    damages += [sound + b"\0", sound[:-TRAILER_BYTES] + bytes(8_192) + sound[-TRAILER_BYTES:]]
    before = contents(collections)

    for damaged in damages:
        path.write_bytes(damaged)
        with pytest.raises(FailedPrecondition, match=r"is damaged|is no snapshot|has format") as refusal:
            await collections.snapshots.restore(snapshot.name, "again")
        assert refusal.value.field == "snapshot"

    assert contents(collections) == before
    path.write_bytes(sound)
    assert (await collections.snapshots.restore(snapshot.name, "again")).item_count == 78


def edited(path: Path, statement: str) -> None:
    """Changes a snapshot by SQL, and gives it the checksum that it then has."""
    path.write_bytes(path.read_bytes()[:-TRAILER_BYTES])
    with closing(apsw.Connection(str(path))) as connection:
        connection.execute(statement)
    content = path.read_bytes()
    path.write_bytes(content + MARK + hashlib.sha256(content).digest())


@pytest.mark.parametrize(
    ("statement", "said"),
    [
        ("PRAGMA user_version = 2", "has format 2, this server knows 1: a newer server made it"),
        ("PRAGMA application_id = 7", "is no snapshot"),
        ("DROP TABLE manifest", "is damaged: .*no such table: manifest"),
        ("DELETE FROM manifest", "is damaged: the manifest does not have its checksum"),
        ("UPDATE manifest SET item_count = -1", "is damaged: the manifest does not have its checksum"),
        ("DROP TABLE items", "is damaged: .*no such table: items"),
        ("UPDATE items SET vector = x'00' WHERE key % 50 = 0", "cannot be restored: .*size"),
        ("UPDATE items SET payload = x'5b5d'", "cannot be restored: the payload is not a JSON object"),
        ("UPDATE items SET id = ''", "cannot be restored: an id has 1 to 512 bytes"),
        ("UPDATE items SET id = 'same'", "cannot be restored: items.* have the same id 'same'"),
        ("DELETE FROM items WHERE key % 2", "cannot be restored: .* items instead of 78"),
    ],
)
async def test_file_of_another_hand_is_refused(
    open_collections: Open, tmp_path: Path, statement: str, said: str
) -> None:
    """A file whose checksum is right and whose content is not is FailedPrecondition; nothing is left of it."""
    collections = open_collections()
    shoes = await collections.create(SHOES)
    await fill(shoes)
    snapshot = await collections.snapshots.create("shoes")
    edited(tmp_path / "snapshots" / f"{snapshot.name}.snapshot", statement)
    before = contents(collections)

    with pytest.raises(FailedPrecondition, match=said):
        await collections.snapshots.restore(snapshot.name, "again")

    assert contents(collections) == before
    await collections.create(replace(SHOES, name="again"))


def contents(collections: Collections) -> list[object]:
    """Everything that a restore could leave behind in the database and in memory."""
    connection = collections._engine.store.database.reader()
    tables = ("collections", "restores", "sqlite_schema")
    counts = connection.execute("SELECT collection, count(*) FROM items GROUP BY collection").fetchall()
    return [
        counts,
        [collection.name for collection in collections.list()],
        *(connection.execute(f"SELECT * FROM {table}").fetchall() for table in tables),
    ]


async def test_taken_and_impossible_names_are_refused(collections: Collections, tmp_path: Path) -> None:
    """Names of collections that exist or may not, and of snapshots that are unknown or lead elsewhere, are told apart."""
    await collections.create(SHOES)
    snapshots = collections.snapshots
    snapshot = await snapshots.create("shoes")
    shutil.copy(tmp_path / "snapshots" / f"{snapshot.name}.snapshot", tmp_path / "outside.snapshot")

    with pytest.raises(AlreadyExists, match="there is a collection or an alias 'shoes' already"):
        await snapshots.restore(snapshot.name, "shoes")
    with pytest.raises(InvalidArgument, match="a collection's name has 1 to 128"):
        await snapshots.restore(snapshot.name, "a/b")
    with pytest.raises(NotFound, match="no collection 'hats'"):
        await snapshots.create("hats")
    for unknown in (snapshots.restore("unknown", "again"), snapshots.delete("unknown")):
        with pytest.raises(NotFound, match="no snapshot 'unknown'"):
            await unknown
    for name in ("", "../outside", "/etc/passwd", ".hidden", "a\0b", "a\n", "x" * 201):
        for impossible in (snapshots.restore(name, "again"), snapshots.delete(name)):
            with pytest.raises(InvalidArgument, match="a snapshot's name has 1 to 200") as refusal:
                await impossible
            assert refusal.value.field == "snapshot"
    assert (tmp_path / "outside.snapshot").exists()


async def test_only_files_are_snapshots(collections: Collections, tmp_path: Path) -> None:
    """A pipe, a device and a directory among the snapshots are refused at once, and the others are listed."""
    await collections.create(SHOES)
    snapshots = collections.snapshots
    snapshot = await snapshots.create("shoes")
    os.mkfifo(tmp_path / "snapshots" / "pipe.snapshot")
    (tmp_path / "snapshots" / "device.snapshot").symlink_to("/dev/zero")
    (tmp_path / "snapshots" / "directory.snapshot").mkdir()
    try:
        async with asyncio.timeout(5):
            for name, said in (
                ("pipe", "no regular file"),
                ("device", "no regular file"),
                ("directory", "a directory"),
            ):
                with pytest.raises(FailedPrecondition, match=f"{name}.snapshot .*{said}"):
                    await snapshots.restore(name, "again")
            with pytest.raises(NotFound, match="no snapshot 'directory'"):
                await snapshots.delete("directory")
            assert await snapshots.list() == (snapshot,)
    finally:
        # Lets go of whoever waits for a writer.
        os.close(os.open(tmp_path / "snapshots" / "pipe.snapshot", os.O_RDWR))


async def test_alias_is_a_taken_name(collections: Collections) -> None:
    """A snapshot is not restored under the name of an alias."""
    shoes = await collections.create(SHOES)
    snapshot = await collections.snapshots.create("shoes")
    connection = collections._engine.store.database.connection
    connection.execute("INSERT INTO aliases VALUES ('again', ?)", (shoes.row.number,))

    with pytest.raises(AlreadyExists, match="there is a collection or an alias 'again' already"):
        await collections.snapshots.restore(snapshot.name, "again")


async def test_readable_snapshots_are_listed(
    collections: Collections, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are listed by name, of one collection or all, up to a limit, without those that are unreadable."""
    snapshots = collections.snapshots
    assert await snapshots.list() == ()
    await collections.create(SHOES)
    await collections.create(replace(SHOES, name="hats"))
    made = [await snapshots.create(name) for name in ("shoes", "hats", "shoes", "hats")]
    directory = tmp_path / "snapshots"
    shutil.copy(directory / f"{made[0].name}.snapshot", directory / "a.snapshot")
    shutil.copy(directory / f"{made[0].name}.snapshot", directory / "a-b.snapshot")
    shutil.copy(directory / f"{made[0].name}.snapshot", directory / "not allowed.snapshot")
    (directory / "short.snapshot").write_bytes((directory / "a.snapshot").read_bytes()[:-1])
    (directory / "text.snapshot").write_text("hello")
    (directory / "directory.snapshot").mkdir()
    (directory / "notes.txt").write_text("hello")

    everything = await snapshots.list()

    named = ["a", "a-b", made[1].name, made[3].name, made[0].name, made[2].name]
    assert [snapshot.name for snapshot in everything] == named
    assert everything[2] == made[1]
    assert await snapshots.list("hats") == (made[1], made[3])
    assert await snapshots.list("gloves") == ()
    monkeypatch.setattr(snapshots_module, "MAX_LISTED", 3)
    assert await snapshots.list() == everything[:3]
    await snapshots.delete("a")
    assert [snapshot.name for snapshot in await snapshots.list("shoes")] == ["a-b", made[0].name, made[2].name]


async def test_work_that_nobody_waits_for_is_given_up(
    collections: Collections, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A snapshot and a restore that are cancelled leave nothing, and the next ones succeed."""
    shoes = await collections.create(SHOES)
    await fill(shoes)
    snapshots = collections.snapshots
    sound = await snapshots.create("shoes")
    before = contents(collections)
    reached, cancelled = threading.Event(), threading.Event()

    def halt(name: str) -> None:
        reached.set()
        assert cancelled.wait(10)

    def digest(file: BinaryIO, size: int, given_up: threading.Event) -> bytes:
        halt("digest")
        return whole_digest(file, size, given_up)

    async def cancel(call: Coroutine[object, object, object]) -> None:
        reached.clear()
        cancelled.clear()
        task = asyncio.create_task(call)
        assert await asyncio.to_thread(reached.wait, 10)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        cancelled.set()

    with monkeypatch.context() as patch:
        whole_digest = snapshot_file._digest
        patch.setattr(snapshot_file, "_digest", digest)
        await cancel(snapshots.create("shoes"))
    with monkeypatch.context() as patch:
        patch.setattr(snapshot_file, "MAX_ITEMS", 10)
        patch.setattr(restore_module, "reach", halt)
        await cancel(snapshots.restore(sound.name, "again"))

    again = await snapshots.create("shoes")  # by the same thread, and so after the others have ended
    assert contents(collections) == before
    assert await snapshots.list() == (sound, again)
    assert not (tmp_path / "snapshots" / "unfinished").exists()
    assert (await snapshots.restore(again.name, "again")).item_count == 78


async def test_copying_is_interrupted_half_way(
    collections: Collections, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A copy that nobody waits for ends while SQLite copies, not only after it."""
    shoes = await collections.create(SHOES)
    await fill(shoes)
    given_up = threading.Event()
    given_up.set()
    monkeypatch.setattr(snapshot_file, "INSTRUCTIONS", 10)
    monkeypatch.setattr(snapshot_file, "_digest", pytest.fail)

    with pytest.raises(GivenUp):
        SnapshotFile(tmp_path / "copy").write(tmp_path, shoes.row.number, EPOCH, given_up)


async def test_full_disk_leaves_nothing_behind(
    collections: Collections, tmp_path: Path, failures: list[BaseException]
) -> None:
    """A snapshot or a restore that the disk has no room for is StorageFailure; writes and the next attempt succeed."""
    shoes = await collections.create(SHOES)
    await fill(shoes)
    snapshots = collections.snapshots
    sound = await snapshots.create("shoes")
    before = contents(collections)
    connection = collections._engine.store.database.connection

    with limited_files(20_000), pytest.raises(StorageFailure, match="the disk refused the snapshot"):
        await snapshots.create("shoes")
    connection.pragma("max_page_count", int(connection.pragma("page_count")))
    with pytest.raises(StorageFailure, match="the disk is full"):
        await snapshots.restore(sound.name, "again")
    connection.pragma("max_page_count", 2**31)

    assert contents(collections) == before
    assert sorted(path.name for path in (tmp_path / "snapshots").iterdir()) == [f"{sound.name}.snapshot"]
    assert (await snapshots.restore(sound.name, "again")).item_count == 78
    assert failures == []


async def test_copy_that_sqlite_undoes_of_its_own_accord(
    collections: Collections, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that refuses pages before the end of the copy, after which there is no transaction left, is StorageFailure too."""
    new = SnapshotFile._new

    def without_cache(file: SnapshotFile) -> apsw.Connection:
        connection = new(file)
        connection.pragma("cache_size", 1)
        return connection

    shoes = await collections.create(SHOES)
    for number in range(10):
        large = NewItem(f"large {number}", b'{"note": "%s"}' % (b"x" * 60_000))
        await shoes.upsert([large], np.ones((1, DIMENSION)))
    monkeypatch.setattr(SnapshotFile, "_new", without_cache)

    with limited_files(200_000), pytest.raises(StorageFailure, match="the disk refused the snapshot"):
        await collections.snapshots.create("shoes")

    assert list((tmp_path / "snapshots").iterdir()) == []


@pytest.mark.parametrize("want", ["create", "alias", "restore"])
async def test_name_of_a_restore_that_could_not_be_removed_is_free(
    collections: Collections, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, want: str
) -> None:
    """A disk that refuses even to remove what a restore has brought keeps neither the name nor the room for ever."""
    shoes = await collections.create(SHOES)
    await fill(shoes)
    snapshot = await collections.snapshots.create("shoes")
    store = collections._engine.store

    with pytest.MonkeyPatch.context() as patch:
        disk = limited_files((tmp_path / "lookwire.db-wal").stat().st_size)

        def fail(name: str) -> None:
            if name == "restore.after_chunk":
                disk.__enter__()

        patch.setattr(restore_module, "reach", fail)
        patch.setattr(snapshot_file, "CHUNK_BYTES", 1)
        with pytest.raises(StorageFailure, match="the disk refused the write"):
            await collections.snapshots.restore(snapshot.name, "again")
        disk.__exit__()
    left = [row.name for row in store.collections.unfinished()]
    match want:
        case "create":
            await collections.create(replace(SHOES, name="again"))
        case "alias":
            await collections.set_alias("again", "shoes")
        case "restore":
            await collections.snapshots.restore(snapshot.name, "again")

    assert left == ["again"]
    assert store.collections.unfinished() == []
    assert collections.get("again").item_count == (0 if want == "create" else 78)


async def test_running_restore_keeps_its_name(collections: Collections, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that a restore is bringing items to is taken."""
    shoes = await collections.create(SHOES)
    await fill(shoes)
    snapshot = await collections.snapshots.create("shoes")
    refused: list[type[BaseException] | None] = []

    def meanwhile(name: str) -> None:
        for want in (collections.create(replace(SHOES, name="again")), collections.set_alias("again", "shoes")):
            with pytest.raises(AlreadyExists) as caught:
                asyncio.run(want)
            refused.append(caught.type)

    monkeypatch.setattr(restore_module, "reach", meanwhile)

    assert (await collections.snapshots.restore(snapshot.name, "again")).item_count == 78
    assert refused == [AlreadyExists] * 4


class limited_files:  # noqa: N801 - used as a function is
    """The system refuses to make any file longer."""

    def __init__(self, size: int) -> None:
        self._size = size

    def __enter__(self) -> None:
        self._before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (self._size, self._before[1]))

    def __exit__(self, *raised: object) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, self._before)


# Copies the collection, and restores it under another name; at a failpoint it is killed.
CHILD = """
import asyncio, sys
from pathlib import Path
from lookwire_server.metrics import Metrics
from lookwire_server.search.collections import Collections
from lookwire_server.search.store import snapshot_file

snapshot_file.MAX_ITEMS = 10

async def main(directory):
    collections = Collections.open(Path(directory), Metrics(), search_threads=1, on_failure=print)
    snapshot = await collections.snapshots.create("shoes")
    await collections.snapshots.restore(snapshot.name, "again")
    print("done", flush=True)
    collections.close()

asyncio.run(main(sys.argv[1]))
"""


@pytest.mark.parametrize(
    ("failpoint", "whole_files", "restored"),
    [
        ("snapshot.before_rename", 0, False),
        ("snapshot.after_rename", 1, False),
        ("restore.after_chunk:1", 1, False),
        ("restore.after_chunk:5", 1, False),
        ("restore.before_publish", 1, False),
        ("write.after_commit:10", 1, True),  # the tenth commit, after the first and eight chunks, is the last
    ],
)
async def test_death_leaves_a_whole_copy_or_none(
    open_collections: Open, tmp_path: Path, failpoint: str, whole_files: int, restored: bool
) -> None:
    """Killed at any step, the next start has the restored collection whole or not at all, and nothing half-done."""
    collections = open_collections()
    shoes = await collections.create(SHOES)
    await fill(shoes)
    before, copied = contents(collections), rows_of(collections, shoes)
    collections.close()

    child = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-c", CHILD, str(tmp_path)],
        env={**os.environ, "LOOKWIRE_FAILPOINT": failpoint},
        capture_output=True,
        check=False,
    )
    collections = open_collections()

    assert (child.returncode, child.stdout) == (-signal.SIGKILL, b"")
    listed = await collections.snapshots.list()
    assert len(listed) == len(list((tmp_path / "snapshots").iterdir())) == whole_files
    assert rows_of(collections, collections.get("shoes")) == copied
    if restored:
        assert rows_of(collections, collections.get("again")) == copied
        return
    assert contents(collections) == before
    snapshot = await collections.snapshots.create("shoes")
    again = await collections.snapshots.restore(snapshot.name, "again")
    assert rows_of(collections, again) == copied
