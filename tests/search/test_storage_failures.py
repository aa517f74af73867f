"""A disk that refuses a write costs that write and nothing else."""

import asyncio
import resource
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import apsw
import numpy as np
import pytest

from lookwire_server.errors import StorageFailure
from lookwire_server.search.collection import Collection
from lookwire_server.search.collections import Collections
from lookwire_server.search.items import NewItem

from .conftest import DIMENSION, SHOES, Open

LARGE = b'{"note": "' + b"x" * 60_000 + b'"}'
Disk = Callable[[Collections, Path], AbstractContextManager[None]]


@contextmanager
def full_disk(collections: Collections, directory: Path) -> Iterator[None]:
    """SQLite finds no page for anything larger than what its last pages can hold."""
    connection = collections._engine.store.database.connection
    pages = int(connection.pragma("page_count"))
    connection.pragma("max_page_count", pages + 2)
    yield
    connection.pragma("max_page_count", 2**31)


@contextmanager
def broken_disk(collections: Collections, directory: Path) -> Iterator[None]:
    """The system refuses to make any file longer than the log is now."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    log = (directory / "lookwire.db-wal").stat().st_size
    resource.setrlimit(resource.RLIMIT_FSIZE, (log + 4_096, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def items(*ids: str, payload: bytes = b"{}") -> list[NewItem]:
    return [NewItem(id, payload) for id in ids]


def rows(count: int) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    return np.ones((count, DIMENSION))


@pytest.mark.parametrize(
    ("disk", "said", "cause"),
    [
        (full_disk, "the disk is full", apsw.FullError),
        (broken_disk, "the disk refused the write", apsw.IOError),
    ],
)
async def test_refused_write_leaves_all_as_it_was(
    open_collections: Open, tmp_path: Path, failures: list[BaseException], disk: Disk, said: str, cause: type[Exception]
) -> None:
    """The write fails with STORAGE_FAILURE, what was there stays, and the next write succeeds when there is room."""
    collections = open_collections()
    collection = await collections.create(SHOES)
    await collection.upsert(items("a", "b", payload=b'{"brand": "old"}'), rows(2))

    with disk(collections, tmp_path):
        for _ in range(3):
            with pytest.raises(StorageFailure, match=said) as caught:
                await collection.upsert(items("a", "c", "d", payload=LARGE), rows(3))
            assert isinstance(caught.value.__cause__, cause)
        refused = await state(collection)
    await collection.upsert(items("e"), rows(1))
    collections.close()
    again = open_collections().get("shoes")

    assert refused == (["a", "b"], [b'{"brand": "old"}'] * 2, 2, 1)
    assert await state(again) == (["a", "b", "e"], [b'{"brand": "old"}'] * 2 + [b"{}"], 3, 2)
    assert failures == []


async def state(collection: Collection) -> tuple[list[str], list[bytes], int, int]:
    """Returns what a list and a search agree on."""
    listed = (await collection.list_items()).items
    found = await collection.search(rows(1)[0])
    assert sorted(zip(found.ids, found.payloads, strict=True)) == [(item.id, item.payload) for item in listed]
    return (
        [item.id for item in listed],
        [item.payload for item in listed],
        collection.item_count,
        collection.sequence,
    )


async def test_no_conflict_with_what_the_disk_refused(
    collections: Collections, collection: Collection, tmp_path: Path
) -> None:
    """A write is not refused for an item of its own transaction that the disk did not take."""
    from .test_writer import held

    gate, _ = held(collections)
    waiting = [
        asyncio.ensure_future(collection.upsert(batch, rows(1)))
        for batch in (items("a", payload=LARGE), [NewItem("a", b"{}", if_sequence=0)])
    ]
    await asyncio.sleep(0)
    with broken_disk(collections, tmp_path):
        gate.opened.set()
        results = await asyncio.gather(*waiting, return_exceptions=True)

    assert [type(result) for result in results] == [StorageFailure, StorageFailure]
    assert (await collection.upsert([NewItem("a", b"{}", if_sequence=0)], rows(1))).sequence == 1


async def test_small_write_does_not_fail_with_a_large_one(
    collections: Collections, collection: Collection, tmp_path: Path
) -> None:
    """Of writes that wait together, those that still fit the disk are kept."""
    from .test_writer import held

    await collection.upsert(items("a"), rows(1))

    with full_disk(collections, tmp_path):
        gate, _ = held(collections)
        waiting = [
            asyncio.ensure_future(collection.upsert(batch, rows(len(batch))))
            for batch in (items("b"), items("c", "d", "e", payload=LARGE), items("f"))
        ]
        await asyncio.sleep(0)
        gate.opened.set()
        results = await asyncio.gather(*waiting, return_exceptions=True)

    assert isinstance(results[1], StorageFailure)
    assert [getattr(results[position], "sequence", None) for position in (0, 2)] == [2, 3]
    assert (await state(collection))[0] == ["a", "b", "f"]
