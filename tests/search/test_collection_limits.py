"""A collection refuses what breaks a rule, and says which."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from lookwire_server.errors import (
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    InvalidVector,
    NotFound,
)
from lookwire_server.search.collection import Collection
from lookwire_server.search.collections import Collections
from lookwire_server.search.fields import Field, FieldType
from lookwire_server.search.filters import Equals
from lookwire_server.search.items import NewItem
from lookwire_server.search.search_options import SearchOptions
from lookwire_server.search.store.collections import NewCollection

from .conftest import DIMENSION, SHOES

ONE = np.array([1.0, 0.0, 0.0, 0.0])


def item(id: str, payload: bytes = b"{}") -> NewItem:
    return NewItem(id, payload)


@pytest.mark.parametrize(
    ("items", "path", "said"),
    [
        ([], "items", "1 to 1024"),
        ([item(str(number)) for number in range(1_025)], "items", "1 to 1024"),
        ([item("a"), item("")], "items[1].id", "1 to 512 bytes"),
        ([item("é" * 257)], "items[0].id", "this one has 514"),
        ([item("a\ud800")], "items[0].id", "surrogate"),
        ([item("a"), item("b"), item("a")], "items[2].id", "items[0] and items[2] have the same id 'a'"),
        ([item("a"), item("b", b"[]")], "items[1].payload", "not a JSON object"),
        ([item("a", b'{"stock": "many"}')], "items[0].payload", "field 'stock' must be an integer"),
    ],
)
async def test_bad_items_are_refused_whole(collection: Collection, items: list[NewItem], path: str, said: str) -> None:
    """One bad item and none is written; the error has its path."""
    for attempt in (lambda: collection.check(items), None):
        with pytest.raises(InvalidArgument) as caught:
            attempt() if attempt else await collection.upsert(items, np.ones((len(items), DIMENSION)))
        assert caught.value.field == path
        assert said in caught.value.message

    assert (collection.item_count, collection.sequence) == (0, 0)


@pytest.mark.parametrize(
    ("vector", "said"),
    [
        ([1, 2, 3], "the vector has 3 dimensions, the collection has 4"),
        ([1, math.nan, 3, 4], "NaN or infinite"),
        ([1, -math.inf, 3, 4], "NaN or infinite"),
        ([0, 0, 0, -0.0], "all zero"),
    ],
)
async def test_bad_vectors_are_refused(collection: Collection, vector: list[float], said: str) -> None:
    """A vector of another dimension, NaN, infinite or zero is refused wherever it comes in."""
    rows = np.ones((2, len(vector)))
    rows[-1 if len(vector) == DIMENSION else 0] = vector

    with pytest.raises(InvalidVector, match=said) as checked:
        collection.normalised(np.array(vector), "query.mix.parts[1]")
    with pytest.raises(InvalidVector, match=said) as upserted:
        await collection.upsert([item("a"), item("b")], rows)
    with pytest.raises(InvalidVector, match=said):
        await collection.search(np.array(vector))

    assert checked.value.field == "query.mix.parts[1]"
    assert upserted.value.field == ("items[1].vector" if len(vector) == DIMENSION else "items[0].vector")
    assert collection.item_count == 0


@pytest.mark.parametrize("scale", [1e-300, 1e-30, 1.0, 1e300])
def test_vectors_of_any_length_are_normalised(collection: Collection, scale: float) -> None:
    """Neither very short nor very long vectors lose their direction."""
    row = collection.normalised(np.array([3.0, 0.0, -4.0, 0.0]) * scale, "query")

    assert row.dtype == np.float32
    np.testing.assert_allclose(row, [0.6, 0.0, -0.8, 0.0], rtol=1e-6)


@pytest.mark.parametrize(
    ("options", "path", "said"),
    [
        ({"top_k": 0}, "top_k", "1 to 1000 hits, not 0"),
        ({"top_k": 1_001}, "top_k", "1 to 1000 hits, not 1001"),
        ({"score_threshold": 1.5}, "score_threshold", "a cosine, in [-1, 1], got 1.5"),
        ({"score_threshold": math.nan}, "score_threshold", "got nan"),
        ({"filter": Equals("colour", "red")}, "filter.equals.field", "no field 'colour'"),
    ],
)
async def test_bad_searches_are_refused(collection: Collection, options: dict[str, Any], path: str, said: str) -> None:
    """A search outside the limits is refused with the field that is at fault, the limit and what was given."""
    with pytest.raises(InvalidArgument) as caught:
        await collection.search(ONE, SearchOptions(**options))

    assert caught.value.field == path
    assert said in caught.value.message


async def test_sequence_not_reached_is_refused(collection: Collection) -> None:
    """A search for a write that there has not been is told which write there was last."""
    await collection.upsert([item("a")], ONE[None])

    with pytest.raises(FailedPrecondition, match="is at sequence 1, not yet at 2") as caught:
        await collection.search(ONE, min_sequence=2)

    assert caught.value.field == "min_sequence"


async def test_bad_ids_are_refused(collection: Collection) -> None:
    """Reads and deletions take 1 to 1,024 ids that could exist."""
    for ids, path in (([], "ids"), (["a"] * 1_025, "ids"), (["a", ""], "ids[1]"), (["\udfff"], "ids[0]")):
        with pytest.raises(InvalidArgument) as read:
            await collection.get_items(ids)
        with pytest.raises(InvalidArgument) as deleted:
            await collection.delete_items(ids)
        assert read.value.field == deleted.value.field == path


async def test_missing_item_is_named(collection: Collection) -> None:
    """The vector of an item that does not exist is NOT_FOUND with the item's id."""
    await collection.upsert([item("a")], ONE[None])

    with pytest.raises(NotFound, match="has no item 'b'") as caught:
        await collection.vectors_of(["a", "b"], "query.item_id")

    assert caught.value.field == "query.item_id"
    assert caught.value.metadata["item"] == "b"


async def test_unusual_ids_and_payloads_are_kept(collection: Collection) -> None:
    """Ids of 512 bytes, with NUL or any script, and payloads come back byte for byte."""
    payloads = {
        "\0": b'{ "b" : 1,\n"a": "\\u00e9" }',
        "a\0b": b'{"big": 123456789012345678901234567890}',
        "\U0001f45f" * 128: '{"é": "\U0001f45f"}'.encode(),
        "' OR 1=1 --": b"{}",
    }
    await collection.upsert([item(id, payload) for id, payload in payloads.items()], np.eye(4))

    found = await collection.get_items(list(payloads))
    listed = await collection.list_items()
    searched = await collection.search(ONE, SearchOptions(top_k=4))

    assert {stored.id: stored.payload for stored in found.items} == payloads
    assert [stored.id for stored in listed.items] == sorted(payloads, key=str.encode)
    assert dict(zip(searched.ids, searched.payloads, strict=True)) == payloads


async def test_empty_payload_means_an_empty_object(collection: Collection) -> None:
    """An item written without a payload is read back with {}."""
    await collection.upsert([item("a", b"")], ONE[None])

    assert (await collection.get_items(["a"])).items[0].payload == b"{}"


@pytest.mark.parametrize("name", ["", "-a", ".a", "a/b", "é", "a b", "a\n", "x" * 129])
async def test_bad_collection_names_are_refused(collections: Collections, name: str) -> None:
    """Names have 1 to 128 of the allowed characters."""
    with pytest.raises(InvalidArgument) as caught:
        await collections.create(NewCollection(name, "clip", "f", DIMENSION, ()))

    assert caught.value.field == "name"
    assert collections.list() == []


async def test_collections_are_made_found_listed_and_deleted(collections: Collections) -> None:
    """A collection keeps what it was made with, names are unique, and lists are by name."""
    new = NewCollection("shoes", "clip", "f1", DIMENSION, (Field("brand", FieldType.STRING),))
    made = await collections.create(new)
    await collections.create(NewCollection("0" + "x" * 127, "clip", "f1", 8, ()))
    await collections.create(NewCollection("Bags", "siglip", "f2", 3, ()))

    with pytest.raises(AlreadyExists, match="'shoes'"):
        await collections.create(replace(new, encoder="siglip"))
    with pytest.raises(NotFound, match=r"no collection 'hats'; existing: '0x+\.\.\.', 'Bags', 'shoes'"):
        collections.get("hats")
    await collections.delete("Bags")
    with pytest.raises(NotFound):
        await collections.delete("Bags")

    assert collections.get("shoes") is made
    assert made.row.described == new
    assert made.row.created.tzinfo is not None
    assert [collection.name for collection in collections.list()] == ["0" + "x" * 127, "shoes"]


async def test_deleted_collection_refuses_every_call(collections: Collections, collection: Collection) -> None:
    """Who still holds a deleted collection is told NOT_FOUND, and a new one of the name starts empty."""
    await collection.upsert([item("a")], ONE[None])
    await collections.delete("shoes")

    for call in (
        collection.search(ONE),
        collection.upsert([item("b")], ONE[None]),
        collection.delete_items(["a"]),
        collection.get_items(["a"]),
        collection.list_items(),
        collection.count(),
    ):
        with pytest.raises(NotFound):
            await call
    again = await collections.create(replace(SHOES, fields=()))

    assert (again.item_count, again.sequence) == (0, 0)
    assert (await again.get_items(["a"])).missing == ["a"]
    assert (await again.search(ONE)).ids == []
