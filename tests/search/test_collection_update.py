"""Declared fields and settings of the index can be changed; items that do not fit keep all as it was."""

import asyncio
import json
from dataclasses import replace

import numpy as np
import pytest

from lookwire_server.errors import FailedPrecondition, InvalidArgument
from lookwire_server.search import recall as recall_module
from lookwire_server.search.collection import Collection
from lookwire_server.search.collections import Collections
from lookwire_server.search.fields import Field, FieldType
from lookwire_server.search.filters import Equals, Exists, Filter, Range
from lookwire_server.search.index import build, builder, ivf, live
from lookwire_server.search.index.tuning import measure
from lookwire_server.search.items import NewItem
from lookwire_server.search.search_options import SearchOptions
from lookwire_server.search.store.collections import IndexKind, IndexSettings

from .conftest import DIMENSION, FIELDS, SHOES, Open

SIZE = Field("size", FieldType.INT64)
NAME = Field("name", FieldType.TEXT)
COUNT = 200


def vectors(count: int) -> "np.ndarray[tuple[int, int], np.dtype[np.float64]]":
    return np.random.default_rng(count).standard_normal((count, DIMENSION))


async def fill(collection: Collection, count: int = 12) -> None:
    """Items i0, i1, ... with a brand and a size that no field declares; every third was replaced, the last was removed."""
    items = [NewItem(f"i{n}", json.dumps({"brand": "old", "size": n}).encode()) for n in range(count + 1)]
    for start in range(0, len(items), 1000):
        part = items[start : start + 1000]
        await collection.upsert(part, vectors(len(part)))
    thirds = [NewItem(f"i{n}", json.dumps({"brand": "new", "size": n}).encode()) for n in range(0, count, 3)]
    await collection.upsert(thirds, vectors(len(thirds)))
    await collection.delete_items([f"i{count}"])


async def found(collection: Collection, filter: Filter) -> set[str]:
    result = await collection.search(np.ones(DIMENSION), SearchOptions(filter=filter, top_k=100))
    assert await collection.count(filter) == len(result.ids)
    return set(result.ids)


@pytest.fixture
def small_builds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Builds indexes of few items, in this process."""
    monkeypatch.setattr(live, "SEALED_ITEMS", COUNT)
    monkeypatch.setattr(builder, "APPROXIMATE_ITEMS", 4)
    monkeypatch.setattr(ivf, "MIN_CELL_VECTORS", 4)
    monkeypatch.setattr(ivf, "EXACT_MATCHES", 3)
    monkeypatch.setattr(builder.Builder, "_run_child", lambda _, order: build.build(order))


async def until(collection: Collection, generation: int) -> None:
    """Returns when the collection has an index of that generation."""
    while (await collection.statistics()).generation < generation:
        await asyncio.sleep(0.01)


async def test_new_fields_are_for_old_and_new_items(open_collections: Open) -> None:
    """After an update filters take the new fields and no longer the old ones, for all items, also after a restart."""
    collections = open_collections()
    collection = await collections.create(SHOES)
    await fill(collection)

    await collections.update("shoes", (SIZE, FIELDS[0]))
    await collection.upsert([NewItem("late", b'{"size": 100}')], vectors(1))

    assert collection.row.fields == (SIZE, FIELDS[0])
    for _ in range(2):
        assert await found(collection, Range("size", gte=9)) == {"i9", "i10", "i11", "late"}
        assert await found(collection, Equals("brand", "new")) == {"i0", "i3", "i6", "i9"}
        with pytest.raises(InvalidArgument, match="stock"):
            await collection.count(Exists("stock"))
        collections.close()
        collections = open_collections()
        collection = collections.get("shoes")


async def test_item_that_does_not_fit_changes_nothing(open_collections: Open) -> None:
    """A payload of another type is FAILED_PRECONDITION with item, field and what was expected; all stays, on disk too."""
    collections = open_collections()
    collection = await collections.create(SHOES)
    await fill(collection)
    await collection.upsert([NewItem("odd", b'{"size": "XL"}')], vectors(1))

    with pytest.raises(FailedPrecondition, match="item 'odd': field 'size' must be an integer") as failure:
        await collections.update("shoes", (SIZE,), IndexSettings(IndexKind.EXACT))

    assert failure.value.metadata == {"item": "odd", "payload_field": "size", "expected": "int64"}
    for _ in range(2):
        assert (collection.row.fields, collection.row.index) == (FIELDS, IndexSettings())
        assert await found(collection, Equals("brand", "new")) == {"i0", "i3", "i6", "i9"}
        collections.close()
        collections = open_collections()
        collection = collections.get("shoes")
    await collection.delete_items(["odd"])
    await collections.update("shoes", (SIZE,))
    assert await found(collection, Range("size", lt=2)) == {"i0", "i1"}


async def test_reader_of_an_old_view_is_not_disturbed(collections: Collections, collection: Collection) -> None:
    """A view taken before an update answers filters by the fields that it was taken with, whatever is written after."""
    await fill(collection)
    old = collection.index.view

    await collections.update("shoes", (SIZE,))
    await collection.upsert([NewItem("i1", b'{"size": 5}'), NewItem("late", b'{"size": 5}')], vectors(2))

    assert int(old.matching(Equals("brand", "new")).sum()) == 4
    assert (old.slot_of("late"), old.rows.ids(np.array([old.slot_of("i1")]))) == (None, ["i1"])
    with pytest.raises(InvalidArgument, match="size"):
        old.matching(Exists("size"))
    with pytest.raises(InvalidArgument, match="brand"):
        collection.index.view.matching(Exists("brand"))


async def test_write_that_waited_is_checked_by_the_new_fields(collections: Collections, collection: Collection) -> None:
    """Of writes behind an update, and of those checked before it, those that do not fit are refused, the others found."""
    checked = collection.check([NewItem("early", b'{"size": 7}')])
    wrong = collection.check([NewItem("wrong", b'{"size": "L"}')])

    results = await asyncio.gather(
        collection.upsert([NewItem("before", b'{"size": 7}')], vectors(1)),
        collections.update("shoes", (SIZE,)),
        collection.upsert([NewItem("behind", b'{"size": 7}')], vectors(1)),
        collection.upsert([NewItem("bad", b'{"size": true}')], vectors(1)),
        collection.upsert(checked, vectors(1)),
        collection.upsert(wrong, vectors(1)),
        return_exceptions=True,
    )

    assert [type(result).__name__ for result in results] == [
        "Written", "Collection", "Written", "InvalidArgument", "Written", "InvalidArgument",
    ]  # fmt: skip
    assert await found(collection, Equals("size", 7)) == {"before", "behind", "early"}


async def test_words_follow_the_text_fields(collections: Collections, collection: Collection) -> None:
    """A text field that is declared later finds the words of items that were there; one that is dropped finds none."""
    await collection.upsert([NewItem("a", b'{"name": "Red shoe"}'), NewItem("b", b'{"name": "Hat"}')], vectors(2))
    words = collections._engine.store.words

    await collections.update("shoes", (NAME,))
    await collection.upsert([NewItem("c", b'{"name": "red scarf"}')], vectors(1))

    keys, _ = words.search(collection.row, (), "RED", 10)
    stored = collections._engine.store.items.payloads(keys.tolist())
    assert {id for id, _ in stored.values()} == {"a", "c"}
    row = collection.row
    await collections.update("shoes", ())
    with pytest.raises(FailedPrecondition):
        words.search(row, (), "red", 10)


async def test_empty_update_changes_nothing(collections: Collections, collection: Collection) -> None:
    """An update that leaves out both, or declares what is declared, is no change; the sequence stays in any case."""
    await fill(collection)
    before = (collection.row, collection.sequence)

    await collections.update("shoes")
    await collections.update("shoes", FIELDS, IndexSettings())

    assert (collection.row, collection.sequence) == before


@pytest.mark.parametrize(("fields", "settings", "field"), [
    ((SIZE, SIZE), None, "fields[1].name"),
    (None, IndexSettings(target_recall=1.5), "index.target_recall"),
    (None, IndexSettings(target_recall=-0.1), "index.target_recall"),
    (None, IndexSettings(target_recall=float("nan")), "index.target_recall"),
])  # fmt: skip
async def test_wrong_declaration_is_explained(
    collections: Collections,
    collection: Collection,
    fields: tuple[Field, ...] | None,
    settings: IndexSettings | None,
    field: str,
) -> None:
    """A field declared twice and a recall that cannot be are INVALID_ARGUMENT with the path, at an update and at the creation."""
    with pytest.raises(InvalidArgument) as updated:
        await collections.update("shoes", fields, settings)
    with pytest.raises(InvalidArgument) as created:
        await collections.create(replace(SHOES, name="new", fields=fields or FIELDS, index=settings or IndexSettings()))

    assert updated.value.field == created.value.field == field


async def test_index_follows_settings_and_fields(open_collections: Open, small_builds: None) -> None:
    """Other settings and other fields each lead to a new generation made by them, and filters are right before and after."""
    collections = open_collections()
    collection = await collections.create(SHOES)
    await fill(collection, COUNT)
    await until(collection, 1)

    await collections.update("shoes", settings=IndexSettings(IndexKind.IVF, 0.9))
    await until(collection, 2)
    first = await collection.statistics()
    await collections.update("shoes", (SIZE,))
    at_once = await found(collection, Range("size", lt=5))
    await until(collection, 3)

    expected = {"i0", "i1", "i2", "i3", "i4"}
    assert first.kind is IndexKind.IVF
    assert at_once == await found(collection, Range("size", lt=5)) == expected
    manifest = collection.index.view.generation
    assert manifest is not None
    assert (manifest.manifest.fields, manifest.manifest.target_recall) == ((("size", "int64"),), 0.9)
    collections.close()
    again = open_collections().get("shoes")
    assert await found(again, Range("size", lt=5)) == expected
    assert (await again.statistics()).generation == 3


async def test_statistics_count_places_and_bytes(
    collections: Collections, small_builds: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The figures tell indexed items, those written since and dead places apart, and count vectors, rows and files."""
    collection = await collections.create(SHOES)
    empty = await collection.statistics()
    monkeypatch.setattr(live, "SEALED_ITEMS", 10 * COUNT)
    await fill(collection, COUNT)
    collections._engine.builder._build(collection)
    await collection.upsert([NewItem("i1", b"{}"), NewItem("new", b"{}")], vectors(2))
    await collection.delete_items(["i2"])

    statistics = await collection.statistics()

    assert (empty.item_count, empty.bytes_per_item, empty.kind, empty.far_recall) == (0, 0, IndexKind.EXACT, 1)
    assert (statistics.item_count, statistics.sequence) == (COUNT, collection.sequence)
    assert (statistics.indexed_count, statistics.unindexed_count, statistics.dead_count) == (COUNT - 2, 2, 2)
    assert statistics.vector_bytes >= COUNT * DIMENSION * 2
    assert statistics.row_bytes > COUNT * 50
    assert statistics.disk_bytes == sum(
        path.stat().st_size for path in collection.generations.directory.rglob("*") if path.is_file()
    )
    assert statistics.disk_bytes > 0


async def test_recall_that_falls_leads_to_a_new_index(
    collections: Collections, small_builds: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The recall is measured again with queries that came, is exported, and below the target the index is built anew."""
    collection = await collections.create(replace(SHOES, index=IndexSettings(IndexKind.IVF, 0.95)))
    await fill(collection, COUNT)
    await until(collection, 1)
    assert (await collection.statistics()).far_recall is None
    for query in vectors(COUNT)[:64]:
        await collection.search(query, SearchOptions(far=True))
    sample = collections._engine.metrics.registry.get_sample_value
    far = {"collection": "shoes", "direction": "far"}

    collection.measure_recall(lambda: True)
    stopped = (await collection.statistics()).far_recall
    collection.measure_recall(lambda: False)
    good = (await collection.statistics()).far_recall
    exported = sample("lookwire_collection_recall", far)
    monkeypatch.setattr(recall_module, "measure", lambda *given: replace(measure(*given), far_recall=0.5))
    collection.measure_recall(lambda: False)
    await until(collection, 2)

    assert stopped is None
    assert good is not None
    assert good >= 0.94
    assert exported == good
    assert sample("lookwire_collection_generation", {"collection": "shoes"}) == 2
    assert (sample("lookwire_collection_recall", far) or 0) >= 0.95


async def test_recall_is_measured_now_and_then(
    open_collections: Open, small_builds: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The builder's thread measures each collection that is not deleted, again and again."""
    monkeypatch.setattr(builder, "MEASURE_SECONDS", 0.01)
    measured: list[str] = []
    monkeypatch.setattr(Collection, "measure_recall", lambda collection, stopped: measured.append(collection.name))
    collections = open_collections()
    await collections.create(SHOES)
    await collections.create(replace(SHOES, name="hats"))

    while min(measured.count("shoes"), measured.count("hats")) < 2:
        await asyncio.sleep(0.01)

    await collections.delete("hats")
    await asyncio.sleep(0.03)
    count = measured.count("hats")
    shoes = measured.count("shoes")
    while measured.count("shoes") < shoes + 3:
        await asyncio.sleep(0.01)
    assert measured.count("hats") == count
