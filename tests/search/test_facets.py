"""Facets count items by the values of a field."""

import itertools
import json
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lookwire import Client, Facet, Item, errors, field, ids
from lookwire_server.search.facets import count_facets
from lookwire_server.search.fields import Field, FieldType, read_payload
from lookwire_server.search.filters import Filter
from lookwire_server.search.index.live import Delete, Upsert, VectorIndex

from .plain_filter import filters, payloads, satisfies

FIELDS = {"brand": "string", "stock": "int64", "new": "bool", "price": "double", "title": "text", "made": "timestamp"}
DECLARED = [*(Field(name, FieldType(type)) for name, type in FIELDS.items()), Field("place", FieldType.GEO_POINT)]
NUMBERS = itertools.count()


@pytest.fixture
def shop(client: Client) -> Iterator[str]:
    """A collection with a field of each type but the geo point."""
    name = f"facets-{next(NUMBERS)}"
    client.create_collection(name, FIELDS)
    yield name
    client.delete_collection(name)


def write(client: Client, shop: str, *payloads: dict[str, Any]) -> None:
    """Writes items with the ids 0, 1, 2..."""
    dimension = client.get_collection(shop).dimension
    client.upsert(shop, [Item(str(n), payload, vector=np.ones(dimension)) for n, payload in enumerate(payloads)])


def test_counts_by_value(client: Client, shop: str) -> None:
    """The commonest values come first, equal counts by rising value, with the items that have none."""
    write(
        client,
        shop,
        {"brand": "b", "stock": -5, "new": True},
        {"brand": "a", "stock": 7, "new": False},
        {"brand": "c", "stock": 7},
        {"brand": "c", "stock": -(2**63)},
        {"stock": 2**63 - 1},
    )

    facets = client.facet_items(shop, ["brand", "stock", "new", "brand"])

    assert facets.match_count == 5
    assert list(facets.fields) == ["brand", "stock", "new"]
    assert facets.fields["brand"] == Facet({"c": 2, "a": 1, "b": 1}, value_count=3, missing_count=1)
    assert list(facets.fields["brand"].counts) == ["c", "a", "b"]
    assert list(facets.fields["stock"].counts.items()) == [(7, 2), (-(2**63), 1), (-5, 1), (2**63 - 1, 1)]
    assert [(type(value), value) for value in facets.fields["new"].counts] == [(bool, False), (bool, True)]


def test_counts_what_matches_the_filter(client: Client, shop: str) -> None:
    """Items that do not match, that were replaced and that were deleted are not counted."""
    write(client, shop, {"brand": "a"}, {"brand": "a"}, {"brand": "b"}, {"brand": "c"})
    write(client, shop, {"brand": "b"})
    client.delete_items(shop, ["3"])

    assert client.facet_items(shop, ["brand"]).fields["brand"].counts == {"b": 2, "a": 1}
    assert client.facet_items(shop, ["brand"], filter=ids(["1", "3"])).fields["brand"].counts == {"a": 1}
    nothing = client.facet_items(shop, ["brand", "stock"], filter=field("brand") == "c")
    assert nothing.match_count == 0
    assert nothing.fields["brand"] == nothing.fields["stock"] == Facet({}, value_count=0, missing_count=0)


def test_limit_cuts_the_rarest(client: Client, shop: str) -> None:
    """Only so many values are returned, ten unless told otherwise, and the number of all values besides."""
    write(client, shop, *({"stock": number} for number in (*range(20), 13, 17, 17)))

    facet = client.facet_items(shop, ["stock"], limit=4).fields["stock"]

    assert list(facet.counts.items()) == [(17, 3), (13, 2), (0, 1), (1, 1)]
    assert facet.value_count == 20
    assert len(client.facet_items(shop, ["stock"]).fields["stock"].counts) == 10


@pytest.mark.parametrize(
    ("fields", "limit", "path", "said"),
    [
        (["colour"], 10, "fields[0]", "no field 'colour': it declares 'brand', 'stock'"),
        (
            ["brand", "price"],
            10,
            "fields[1]",
            "is a double; values are counted of fields of type string or int64 or bool",
        ),
        (["title"], 10, "fields[0]", "is a text"),
        (["made"], 10, "fields[0]", "is a timestamp"),
        ([], 10, "fields", "0 fields: a request has 1 to 16"),
        (["brand"] * 17, 10, "fields", "17 fields: a request has 1 to 16"),
        (["brand"], 1_001, "limit", "1 to 1000, not 1001"),
    ],
)
def test_what_cannot_be_counted_is_explained(
    client: Client, shop: str, fields: list[str], limit: int, path: str, said: str
) -> None:
    """A field that is not declared or of another type, too many fields and too large a limit are named."""
    with pytest.raises(errors.InvalidArgument) as caught:
        client.facet_items(shop, fields, limit=limit)

    assert [violation.field for violation in caught.value.violations] == [path]
    assert said in caught.value.message


def test_filter_is_checked(client: Client, shop: str) -> None:
    """A filter that does not fit is refused as it is for a count."""
    with pytest.raises(errors.InvalidArgument, match="time_range and exists") as caught:
        client.facet_items(shop, ["brand"], filter=field("made") > 3)

    assert [violation.field for violation in caught.value.violations] == ["filter.range.field"]


@settings(max_examples=100, deadline=None)
@given(filter=filters(), items=st.lists(payloads(), min_size=1, max_size=8), limit=st.integers(1, 4))
def test_equals_plain_counting(filter: Filter, items: list[dict[str, Any]], limit: int) -> None:
    """Any filter over any items gives the counts that counting them one by one gives."""
    index = VectorIndex(2, DECLARED, 0)
    names = ["x", "y", "z", "zz", "ü", "v", "w", "u"][: len(items)]
    values = [read_payload(json.dumps(payload).encode(), DECLARED, "payload") for payload in items]
    index.upsert(Upsert(1, names, range(len(names)), np.ones((len(names), 2), np.float32), values))
    index.delete(Delete(2, names[:1]))
    index.publish()
    matching = [payload for name, payload in zip(names, items, strict=True) if satisfies(filter, name, payload)]
    if satisfies(filter, names[0], items[0]):
        matching = matching[1:]

    facets = count_facets(index.view, ["brand", "stock", "new"], filter, limit)

    assert facets.match_count == len(matching)
    for facet in facets.facets:
        counts = Counter(payload[facet.field] for payload in matching if payload.get(facet.field) is not None)
        expected = sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))
        assert list(zip(facet.values, facet.counts, strict=True)) == expected[:limit]
        assert facet.value_count == len(counts)
        assert facet.missing_count == len(matching) - counts.total()
