"""A search while items are replaced and deleted never mixes two versions of an item."""

import asyncio
import json
import threading
from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from lookwire_server.errors import NotFound
from lookwire_server.search.collection import Collection
from lookwire_server.search.collections import Collections
from lookwire_server.search.fields import Field, FieldType
from lookwire_server.search.filters import Range
from lookwire_server.search.index.live import VectorIndex
from lookwire_server.search.items import NewItem, StoredItem
from lookwire_server.search.search_options import SearchOptions
from lookwire_server.search.searcher import ATTEMPTS
from lookwire_server.search.store.collections import NewCollection
from lookwire_server.search.store.items import ItemTable

from .conftest import DIMENSION

Stored = dict[int, tuple[StoredItem, bytes]]
ITEMS = 60
WIDE = 16


def vector_of(number: int, version: int) -> NDArray[np.float64]:
    """The vector that this version of this item has, and no other."""
    row = np.random.default_rng([number, version]).standard_normal(WIDE)
    unit: NDArray[np.float64] = row / np.linalg.norm(row)
    return unit


async def write(collection: Collection, numbers: Sequence[int], version: int) -> int:
    items = [NewItem(f"i{number}", json.dumps({"number": number, "version": version}).encode()) for number in numbers]
    written = await collection.upsert(items, np.array([vector_of(number, version) for number in numbers]))
    return written.sequence


async def test_hits_are_whole_versions(collections: Collections) -> None:
    """Score, vector, id and payload of every hit belong to one version; sequences never go back; a write is seen."""
    collection = await collections.create(
        NewCollection("c", "clip", "f", WIDE, (Field("number", FieldType.INT64), Field("version", FieldType.INT64)))
    )
    random = np.random.default_rng(3)
    done = asyncio.Event()
    searched = 0

    async def change() -> None:
        for version in range(1, 150):
            numbers = sorted({int(number) for number in random.integers(0, ITEMS, 20)})
            if version % 5 == 0:
                await collection.delete_items([f"i{number}" for number in numbers])
            sequence = await write(collection, numbers, version)
            mine = vector_of(numbers[0], version)
            result = await collection.search(mine, SearchOptions(top_k=1), min_sequence=sequence)
            assert result.ids == [f"i{numbers[0]}"]
            assert result.scores[0] > 1 - 1e-5
        done.set()

    async def search() -> None:
        nonlocal searched
        seen = 0
        while not done.is_set():
            query = random.standard_normal(WIDE)
            query /= np.linalg.norm(query)
            filter = Range("number", lt=ITEMS / 2) if searched % 2 else None
            options = SearchOptions(filter=filter, top_k=20, include_vectors=True)
            result = await collection.search(query, options)
            assert result.sequence >= seen
            assert result.vectors is not None
            seen = result.sequence
            for id, score, payload, vector in zip(
                result.ids, result.scores, result.payloads, result.vectors, strict=True
            ):
                values = json.loads(payload)
                assert id == f"i{values['number']}"
                assert filter is None or values["number"] < ITEMS / 2
                expected = vector_of(values["number"], values["version"])
                np.testing.assert_allclose(vector, expected, atol=1e-6)
                assert abs(score - expected @ query) < 1e-5
            assert len(set(result.ids)) == len(result.ids)
            searched += 1

    await asyncio.gather(change(), *(search() for _ in range(4)))

    assert searched > 50


class Interference:
    """Replaces item `a` between the scores and the payloads of the first `times` searches."""

    def __init__(self, collection: Collection, times: int, monkeypatch: pytest.MonkeyPatch) -> None:
        self.version = 0
        self._loop = asyncio.get_running_loop()
        self._times = times
        self._collection = collection
        original = ItemTable.by_key

        def by_key(table: ItemTable, keys: Sequence[int]) -> Stored:
            if self.version < self._times:
                self.version += 1
                asyncio.run_coroutine_threadsafe(self.replace(), self._loop).result(30)
            return original(table, keys)

        monkeypatch.setattr(ItemTable, "by_key", by_key)

    async def replace(self) -> None:
        vector = np.array([[1.0, 1.0, self.version, 0.0]])
        await self._collection.upsert([NewItem("a", b'{"stock": %d}' % self.version)], vector)


@pytest.mark.parametrize("times", [1, ATTEMPTS - 1])
async def test_replaced_hit_is_searched_again(
    collection: Collection, monkeypatch: pytest.MonkeyPatch, times: int
) -> None:
    """If a hit is replaced before its payload is read, the reply has the new score with the new payload."""
    await collection.upsert([NewItem("a", b'{"stock": 0}'), NewItem("b", b'{"stock": 9}')], np.eye(DIMENSION)[:2])
    Interference(collection, times, monkeypatch)

    result = await collection.search(np.array([1.0, 0, 0, 0]))

    assert list(zip(result.ids, result.payloads, strict=True)) == [
        ("a", b'{"stock": %d}' % times),
        ("b", b'{"stock": 9}'),
    ]
    assert result.scores[0] == pytest.approx(1 / np.sqrt(2 + times**2))
    assert result.sequence == 1 + times


@pytest.mark.parametrize(
    ("filter", "ids"),
    [(None, ["b", "a"]), (Range("stock", lte=ATTEMPTS), ["a"]), (Range("stock", lt=ATTEMPTS), [])],
)
async def test_hit_that_never_stands_still_is_taken_as_it_is(
    collection: Collection, monkeypatch: pytest.MonkeyPatch, filter: Range | None, ids: list[str]
) -> None:
    """If a hit is replaced at every attempt its newest version is returned, with the score of that, if it still matches."""
    await collection.upsert([NewItem("a", b'{"stock": 0}'), NewItem("b", b'{"stock": 9}')], np.eye(DIMENSION)[[0, 0]])
    interference = Interference(collection, ATTEMPTS, monkeypatch)

    result = await collection.search(np.array([1.0, 0, 0, 0]), SearchOptions(filter=filter))

    assert interference.version == ATTEMPTS
    assert result.ids == ids
    found = {
        "a": (1 / np.sqrt(2 + ATTEMPTS**2), b'{"stock": %d}' % ATTEMPTS),
        "b": (1.0, b'{"stock": 9}'),
    }
    np.testing.assert_allclose(result.scores, [found[id][0] for id in ids], rtol=1e-6)
    assert result.payloads == [found[id][1] for id in ids]


async def test_listing_by_filter_survives_replacement(collection: Collection, monkeypatch: pytest.MonkeyPatch) -> None:
    """A filtered list whose item is replaced while it is read has the new version."""
    await collection.upsert([NewItem("a", b'{"stock": 0}'), NewItem("b", b'{"stock": 9}')], np.eye(DIMENSION)[:2])
    Interference(collection, 2, monkeypatch)

    page = await collection.list_items(Range("stock", lt=100))

    assert [(item.id, item.payload) for item in page.items] == [("a", b'{"stock": 2}'), ("b", b'{"stock": 9}')]


async def test_search_between_commit_and_publication_waits(
    collection: Collection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A search that meets a write on disk but not yet in memory waits for it, and drops nothing."""
    await collection.upsert([NewItem("a", b'{"stock": 0}')], np.eye(DIMENSION)[:1])
    reached, opened = threading.Event(), threading.Event()
    original = VectorIndex.publish

    def publish(index: VectorIndex) -> None:
        reached.set()
        assert opened.wait(30)
        original(index)

    monkeypatch.setattr(VectorIndex, "publish", publish)
    upsert = asyncio.ensure_future(collection.upsert([NewItem("a", b'{"stock": 1}')], np.eye(DIMENSION)[:1]))
    assert await asyncio.to_thread(reached.wait, 30)

    search = asyncio.ensure_future(collection.search(np.eye(DIMENSION)[0]))
    finished, _ = await asyncio.wait([search], timeout=0.2)
    opened.set()
    result = await search
    await upsert

    assert not finished
    assert result.payloads == [b'{"stock": 1}']


async def test_deletion_of_the_collection_ends_a_search(
    collections: Collections, collection: Collection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A search whose collection goes before its payloads are read is NOT_FOUND, not an empty success."""
    await collection.upsert([NewItem("a", b"")], np.eye(DIMENSION)[:1])
    loop = asyncio.get_running_loop()
    original = ItemTable.by_key

    def by_key(table: ItemTable, keys: Sequence[int]) -> Stored:
        if not collection.deleted:
            asyncio.run_coroutine_threadsafe(collections.delete("shoes"), loop).result(30)
        return original(table, keys)

    monkeypatch.setattr(ItemTable, "by_key", by_key)

    with pytest.raises(NotFound, match="'shoes' was deleted"):
        await collection.search(np.eye(DIMENSION)[0])
