"""Filters select items by their fields."""

import json
import math
from datetime import UTC, datetime, timedelta, timezone
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import given, settings
from hypothesis import strategies as st

from lookwire import Client, Item, errors, field
from lookwire import Filter as ClientFilter
from lookwire.v1 import filter_pb2
from lookwire_server.errors import InvalidArgument
from lookwire_server.rpc.filters import from_message
from lookwire_server.search.fields import Field, FieldType, Values, read_payload
from lookwire_server.search.filters import (
    AllOf,
    AnyOf,
    Equals,
    Exists,
    Filter,
    GeoBox,
    GeoRadius,
    Ids,
    In,
    NoneOf,
    Prefix,
    Range,
    TimeRange,
    check_filter,
)
from lookwire_server.search.index.columns import Columns, StringColumn
from lookwire_server.search.index.live import Upsert, VectorIndex
from lookwire_server.search.index.view import View

from .plain_filter import BOUNDS, DOUBLES, INTEGERS, filters, payloads, satisfies

FIELDS = [
    Field("brand", FieldType.STRING),
    Field("stock", FieldType.INT64),
    Field("price", FieldType.DOUBLE),
    Field("new", FieldType.BOOL),
    Field("place", FieldType.GEO_POINT),
    Field("made", FieldType.TIMESTAMP),
    Field("title", FieldType.TEXT),
]
Items = dict[str, dict[str, Any]]
DECLARED = {field.name: field for field in FIELDS}


def view_of(items: Items) -> View:
    index = VectorIndex(2, FIELDS, 0)
    values = [read_payload(json.dumps(payload).encode(), FIELDS, "payload") for payload in items.values()]
    vectors = np.ones((len(items), 2), np.float32)
    index.upsert(Upsert(1, list(items), range(len(items)), vectors, values))
    index.publish()
    return index.view


def selected(filter: Filter, items: Items) -> list[str]:
    check_filter(filter, DECLARED)
    return [id for id, matches in zip(items, view_of(items).matching(filter), strict=True) if matches]


@settings(max_examples=300, deadline=None)
@given(filter=filters(), items=st.lists(payloads(), max_size=8))
def test_equals_the_plain_meaning(filter: Filter, items: list[dict[str, Any]]) -> None:
    """Any filter over any items selects what its words say."""
    named = dict(zip(["x", "y", "z", "zz", "ü", "v", "w", "u"], items, strict=False))

    expected = [id for id, payload in named.items() if satisfies(filter, id, payload)]

    assert selected(filter, named) == expected


@settings(max_examples=100, deadline=None)
@given(filter=filters(), items=st.lists(payloads(), max_size=8), kept=st.sets(st.integers(0, 7)))
def test_columns_survive(filter: Filter, items: list[dict[str, Any]], kept: set[int]) -> None:
    """Columns that were written to a file, or of which slots were taken, select what they did before."""
    view = view_of(dict(zip(["x", "y", "z", "zz", "ü", "v", "w", "u"], items, strict=False)))
    before = view.matching(filter)
    columns, file = view.columns, BytesIO()
    written: dict[str, Any] = columns.arrays(view.count)
    slots = np.array(sorted(slot for slot in kept if slot < view.count), np.int64)

    np.savez(file, **written)
    file.seek(0)
    view.rows.columns = Columns(FIELDS)
    with np.load(file, allow_pickle=False) as arrays:
        view.rows.columns.restore(arrays)

    assert np.array_equal(view.matching(filter), before)

    view.rows.columns = view.columns.compacted(slots, view.count)
    for name in DECLARED:
        assert np.array_equal(view.columns[name].exists(len(slots)), columns[name].exists(view.count)[slots])


def test_equal_strings_are_folded() -> None:
    """Strings that are equal but for case and spaces match, those that came since the last question too."""
    index = VectorIndex(2, FIELDS, 0)
    brands = ["Red  Dress", "red dress", "reddress", " RED DRESS ", "red", "red dress"]
    for first in (0, 3):
        ids = [str(number) for number in range(first, first + 3)]
        values: list[Values] = [{"brand": brand} for brand in brands[first : first + 3]]
        index.upsert(Upsert(first, ids, range(first, first + 3), np.ones((3, 2), np.float32), values))
        index.publish()
        column = index.view.columns["brand"]
        assert isinstance(column, StringColumn)
        expected = [brand.casefold().split() == ["red", "dress"] for brand in brands[: first + 3]]
        assert column.equal("rEd dress", index.view.count).tolist() == expected
        assert not column.equal("blue", index.view.count).any()


def test_equal_strings_are_composed() -> None:
    """A letter and its accent are equal to the one character for both."""
    index = VectorIndex(2, FIELDS, 0)
    index.upsert(Upsert(1, ["a"], [1], np.ones((1, 2), np.float32), [{"brand": "Cre\u0300me"}]))
    index.publish()
    column = index.view.columns["brand"]

    assert isinstance(column, StringColumn)
    assert column.equal("CR\u00c8ME", 1).all()


def test_integers_beyond_doubles_compare_exactly() -> None:
    """Neighbours that are one and the same double are told apart."""
    items: Items = {"even": {"stock": 2**53}, "odd": {"stock": 2**53 + 1}}

    assert selected(Equals("stock", 2**53 + 1), items) == ["odd"]
    assert selected(In("stock", (2**53, 5)), items) == ["even"]
    assert selected(Range("stock", gt=2.0**53), items) == ["odd"]
    assert selected(Range("stock", lte=2.0**53), items) == ["even"]


@pytest.mark.parametrize("side", ["gt", "gte", "lt", "lte"])
@pytest.mark.parametrize("bound", [*BOUNDS, 2.5, -7.5])
def test_every_bound_is_exact(side: str, bound: float) -> None:
    """A bound of any size, whole or not, cuts integers and doubles where the numbers themselves lie."""
    stock: Items = {str(number): {"stock": number} for number in [*INTEGERS, 2, 3, -7, -8]}
    price: Items = {str(number): {"price": number} for number in [*DOUBLES, *BOUNDS]}

    for name, items in (("stock", stock), ("price", price)):
        filter = Range(name, **{side: bound})
        assert selected(filter, items) == [id for id, payload in items.items() if satisfies(filter, id, payload)]


def test_integer_value_fits_a_double_field() -> None:
    """An int64 equals the double that is exactly as large, not its neighbour; in a list it takes nothing from the others."""
    items: Items = {"a": {"price": 2.0**53}, "b": {"price": 4.5}, "c": {"price": 4}}

    assert selected(Equals("price", 2**53), items) == ["a"]
    assert selected(Equals("price", 2**53 + 1), items) == []
    assert selected(In("price", (2**53 + 1, 4)), items) == ["c"]
    assert selected(Equals("price", 2**63 - 1), {"a": {"price": 2.0**63}}) == []


def test_times_compare_as_moments() -> None:
    """One moment written with two offsets is equal, and neighbours of a microsecond are told apart."""
    items: Items = {
        "utc": {"made": "2026-11-21T09:30:00Z"},
        "paris": {"made": "2026-11-21t10:30:00.0000009+01:00"},
        "later": {"made": "2026-11-21T09:30:00.000001z"},
    }
    moment = 1_795_253_400_000_000

    assert selected(TimeRange("made", gte=moment, lte=moment), items) == ["utc", "paris"]
    assert selected(TimeRange("made", gt=moment), items) == ["later"]
    assert selected(TimeRange("made", lt=moment + 1), items) == ["utc", "paris"]


def test_times_are_bounded_by_callers(client: Client) -> None:
    """A caller's datetime of any zone bounds what its payloads say, to the microsecond; a time that is none is refused."""
    client.create_collection("times", {"made": "timestamp", "title": "text"})
    dimension = client.get_collection("times").dimension
    moment = datetime(2026, 11, 21, 9, 30, tzinfo=timezone(timedelta(hours=5.5)))
    payloads = [
        {"made": (moment + timedelta(microseconds=number)).astimezone(UTC).isoformat(), "title": "red"}
        for number in (-1, 0, 1)
    ]
    client.upsert("times", [Item(str(n), each, vector=np.ones(dimension)) for n, each in enumerate(payloads)])
    made = field("made")

    assert client.get_collection("times").fields == {"made": "timestamp", "title": "text"}
    assert [item.id for item in client.list_items("times", filter=made > moment)] == ["2"]
    assert [item.id for item in client.list_items("times", filter=made <= moment)] == ["0", "1"]
    assert client.count_items("times", filter=made.between(moment, moment) & field("title").exists()) == 1
    for time in (Timestamp(nanos=-1), Timestamp(nanos=10**9), Timestamp(seconds=253_402_300_800)):
        wrong = filter_pb2.Filter(time_range=filter_pb2.TimeRangeCondition(field="made", gte=time))
        with pytest.raises(errors.InvalidArgument, match="a time lies between 0001") as caught:
            client.count_items("times", filter=ClientFilter(wrong))
        assert [violation.field for violation in caught.value.violations] == ["filter.time_range.gte"]
    with pytest.raises(errors.InvalidArgument, match="'made' must be a date and time by RFC 3339"):
        client.upsert("times", [Item("x", {"made": "2026-11-21"}, vector=np.ones(dimension))])
    client.delete_collection("times")


VALUES = [filter_pb2.FieldValue(int64_value=number) for number in range(4_000)]
LONG = filter_pb2.Filter(in_values=filter_pb2.InCondition(field="stock", values=VALUES))
NAMED = filter_pb2.Filter(ids=filter_pb2.IdsCondition(ids=["a"] * 2_001))
DEEP = filter_pb2.Filter(ids=filter_pb2.IdsCondition())
for _ in range(16):
    DEEP = filter_pb2.Filter(none_of=filter_pb2.FilterList(filters=[DEEP]))


@pytest.mark.parametrize(
    ("message", "path", "said"),
    [
        ({"geo_radius": {"field": "place", "radius_meters": 10_000}}, "geo_radius.center", "distances are measured"),
        ({"geo_box": {"field": "place", "north_east": {}}}, "geo_box.south_west", "both corners"),
        ({"geo_box": {"field": "place", "south_west": {}}}, "geo_box.north_east", "both corners"),
        ({"equals": {"field": "stock"}}, "equals.value", "set one of string_value"),
        (
            {"in_values": {"field": "stock", "values": [VALUES[0], {}]}},
            "in_values.values[1]",
            "set one of string_value",
        ),
        (
            {"any_of": {"filters": [LONG, LONG, NAMED]}},
            "any_of.filters[2].ids.ids",
            "at most 10000 values and ids in all",
        ),
        ({"all_of": {"filters": [NAMED, LONG, LONG]}}, "all_of.filters[2].in_values.values", "it has 10001"),
        ({"any_of": {"filters": [DEEP]}}, "any_of.filters[0]" + ".none_of.filters[0]" * 15, "at most 16 levels"),
        ({"any_of": {"filters": [{"ids": {}}] * 256}}, "any_of.filters[255]", "at most 256 nodes"),
    ],
)
def test_incomplete_or_large_message_is_refused(message: dict[str, Any], path: str, said: str) -> None:
    """A filter that lacks a point or a value, or is too large, is refused while it is read, with the path."""
    with pytest.raises(InvalidArgument) as caught:
        from_message(filter_pb2.Filter(**message))

    assert caught.value.field == f"filter.{path}"
    assert said in caught.value.message


def test_radius_reaches_over_the_antimeridian() -> None:
    """Two points beside the date line are near each other; 1 degree of the equator is 111,195 m."""
    items: Items = {"east": {"place": {"lat": 0, "lon": 179.5}}, "far": {"place": {"lat": 0, "lon": 178}}}

    assert selected(GeoRadius("place", 0, -179.5, 111_196), items) == ["east"]
    assert selected(GeoRadius("place", 0, -179.5, 111_194), items) == []


def test_box_may_cross_the_antimeridian() -> None:
    """A box whose west exceeds its east holds both sides of the date line."""
    items: Items = {str(lon): {"place": {"lat": 1, "lon": lon}} for lon in (-180, -170, 0, 170, 180)}

    assert selected(GeoBox("place", 0, 165, 2, -175), items) == ["-180", "170", "180"]


def nested(levels: int) -> Filter:
    return Exists("brand") if levels == 1 else AllOf((nested(levels - 1),))


@pytest.mark.parametrize(
    ("filter", "path", "said"),
    [
        (Equals("colour", "red"), "filter.equals.field", "no field 'colour': it declares 'brand', 'stock'"),
        (Exists("c" * 5_000), "filter.exists.field", "no field 'ccc"),
        (Equals("place", "x"), "filter.equals.field", "is a geo point"),
        (
            Equals("brand", 1),
            "filter.equals.value",
            "is a string, so its values are compared with a string_value, not 1",
        ),
        (Equals("stock", 1.0), "filter.equals.value", "is an int64"),
        (Equals("stock", True), "filter.equals.value", "is an int64"),
        (Equals("stock", 2**63), "filter.equals.value", "is an int64"),
        (Equals("price", True), "filter.equals.value", "is a double"),
        (Equals("price", math.nan), "filter.equals.value", "a finite number, not nan"),
        (Equals("stock", "x" * 5_000), "filter.equals.value", "not 'xxx"),
        (Equals("new", 1), "filter.equals.value", "is a bool"),
        (In("brand", ("a", 2)), "filter.in_values.values[1]", "is a string"),
        (In("brand", ("a",) * 10_001), "filter.in_values.values", "at most 10000"),
        (Range("stock"), "filter.range", "at least one"),
        (Range("stock", gt=1, gte=2), "filter.range", "gt or gte"),
        (Range("stock", lt=1, lte=2), "filter.range", "lt or lte"),
        (Range("stock", lt=math.inf), "filter.range.lt", "finite"),
        (Range("price", gte=math.nan), "filter.range.gte", "finite"),
        (Range("brand", gt=1), "filter.range.field", "int64 or double"),
        (Prefix("stock", "1"), "filter.prefix.field", "type string"),
        (Prefix("title", "a"), "filter.prefix.field", "is a text, which only exists and hybrid searches apply to"),
        (Equals("title", "a"), "filter.equals.field", "is a text, which only exists"),
        (In("made", (1,)), "filter.in_values.field", "is a timestamp, which time_range and exists apply to"),
        (Range("made", gt=1), "filter.range.field", "is a timestamp, which time_range and exists apply to"),
        (TimeRange("stock", gt=1), "filter.time_range.field", "is an int64, which equals"),
        (TimeRange("made"), "filter.time_range", "a time range has at least one"),
        (TimeRange("made", gt=1, gte=1), "filter.time_range", "gt or gte"),
        (TimeRange("when", gt=1), "filter.time_range.field", "no field 'when'"),
        (GeoRadius("brand", 0, 0, 1), "filter.geo_radius.field", "type geo point"),
        (GeoRadius("place", 91, 0, 1), "filter.geo_radius.center.latitude_degrees", "-90 and 90"),
        (GeoRadius("place", 0, math.nan, 1), "filter.geo_radius.center.longitude_degrees", "-180 and 180"),
        (GeoRadius("place", 0, 0, 0), "filter.geo_radius.radius_meters", "greater than 0"),
        (GeoRadius("place", 0, 0, math.inf), "filter.geo_radius.radius_meters", "finite"),
        (GeoBox("place", 1, 0, 0, 1), "filter.geo_box", "south"),
        (GeoBox("place", 0, 0, 1, 200), "filter.geo_box.north_east.longitude_degrees", "-180 and 180"),
        (Ids(("a",) * 10_001), "filter.ids.ids", "at most 10000"),
        (
            AnyOf((In("stock", (1,) * 4_000), Ids(("a",) * 4_000), In("brand", ("a",) * 2_001))),
            "filter.any_of.filters[2].in_values.values",
            "at most 10000 values and ids in all; with these 2001 it has 10001",
        ),
        (
            AllOf((Exists("brand"), NoneOf((AnyOf((Exists("x"),)),)))),
            "filter.all_of.filters[1].none_of.filters[0].any_of.filters[0].exists.field",
            "no field 'x'",
        ),
        (AnyOf((Exists("brand"),) * 256), "filter.any_of.filters[255]", "at most 256 nodes"),
        (nested(17), "filter" + ".all_of.filters[0]" * 16, "at most 16 levels"),
    ],
)
def test_bad_filter_is_refused(filter: Filter, path: str, said: str) -> None:
    """A filter that does not fit is refused with the path of what is at fault."""
    with pytest.raises(InvalidArgument) as caught:
        check_filter(filter, DECLARED)

    assert caught.value.field == path
    assert said in caught.value.message
    assert len(caught.value.message) < 1_000


def test_largest_filters_are_taken() -> None:
    """256 nodes, 16 levels, and 10,000 values and ids in all are allowed."""
    check_filter(AnyOf((Exists("brand"),) * 255), DECLARED)
    check_filter(nested(16), DECLARED)
    check_filter(In("brand", ("a",) * 10_000), DECLARED)
    check_filter(Ids(("a",) * 10_000), DECLARED)
    check_filter(AllOf((Ids(("a",) * 4_000), In("brand", ("a",) * 6_000))), DECLARED)


def test_collection_without_fields_says_so() -> None:
    """A filter on a collection without fields is told that it declares none."""
    with pytest.raises(InvalidArgument, match="it declares none"):
        check_filter(Exists("brand"), {})
