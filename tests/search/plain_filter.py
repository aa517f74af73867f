"""What a filter means, said in plain Python for one item: the oracle of the tests."""

import math
from datetime import datetime
from typing import Any

from hypothesis import strategies as st

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
)

STRINGS = ["", "a", "ab", "b", "é", "\U0001f600", "a\0b"]
INTEGERS = [0, 1, -1, 7, 2**53, 2**53 + 1, -(2**53) - 1, 2**63 - 1, -(2**63)]
DOUBLES = [0.0, -0.0, 0.5, 1.0, -7.25, 1e300, 9007199254740992.0]
BOUNDS = [*DOUBLES, 1.5, -0.5, -1e300, 2.0**63, -(2.0**63), 9007199254740994.0]
LATITUDES = [-90, -45.5, 0, 12, 90]
LONGITUDES = [-180, -179, 0, 33.25, 179, 180]
# No two of the points above are so far apart that rounding could decide.
RADII = [1.0, 250_000.5, 5_000_000.5, 12_345_678.9, 30_000_000.0]
# The same moment twice, a microsecond later, before 1970, and both ends.
TIMES = [
    "2026-11-21T09:30:00Z",
    "2026-11-21T10:30:00.000000+01:00",
    "2026-11-21T09:30:00.000001Z",
    "1969-12-31T23:59:59.999999Z",
    "0001-01-01T00:00:00Z",
    "9999-12-31T23:59:59.999999Z",
]
IDS = ["x", "y", "z", "zz", "ü"]


def satisfies(filter: Filter, id: str, payload: dict[str, Any]) -> bool:
    """Returns whether an item matches, by the words of the API."""
    match filter:
        case AllOf(filters):
            return all(satisfies(member, id, payload) for member in filters)
        case AnyOf(filters):
            return any(satisfies(member, id, payload) for member in filters)
        case NoneOf(filters):
            return not any(satisfies(member, id, payload) for member in filters)
        case Ids(ids):
            return id in ids
    value = payload.get(filter.field)
    if value is None:
        return False
    match filter:
        case Exists():
            return True
        case Equals(_, wanted):
            return bool(value == wanted)
        case In(_, accepted):
            return value in accepted
        case Range(_, gt, gte, lt, lte):
            # Python compares an int with a float exactly.
            return (
                (gt is None or value > gt)
                and (gte is None or value >= gte)
                and (lt is None or value < lt)
                and (lte is None or value <= lte)
            )
        case TimeRange(_, gt, gte, lt, lte):
            moment = microseconds(value)
            return (
                (gt is None or moment > gt)
                and (gte is None or moment >= gte)
                and (lt is None or moment < lt)
                and (lte is None or moment <= lte)
            )
        case Prefix(_, prefix):
            return bool(value.encode()[: len(prefix.encode())] == prefix.encode())
        case GeoRadius(_, latitude, longitude, meters):
            return _distance(value["lat"], value["lon"], latitude, longitude) <= meters
        case GeoBox(_, south, west, north, east):
            if not south <= value["lat"] <= north:
                return False
            if west <= east:
                return bool(west <= value["lon"] <= east)
            return bool(value["lon"] >= west or value["lon"] <= east)


def microseconds(time: str) -> int:
    """Returns the microseconds since 1970, by calendar days: not the server's way."""
    moment = datetime.fromisoformat(time)
    offset = moment.utcoffset()
    assert offset is not None
    seconds = (moment.toordinal() - 719_163) * 86_400 + moment.hour * 3_600 + moment.minute * 60 + moment.second
    return (seconds - int(offset.total_seconds())) * 1_000_000 + moment.microsecond


def _distance(latitude: float, longitude: float, other_latitude: float, other_longitude: float) -> float:
    """Returns the angle between two points as unit vectors, times the radius: not the server's formula."""
    points = []
    for degrees in ((latitude, longitude), (other_latitude, other_longitude)):
        north, east = math.radians(degrees[0]), math.radians(degrees[1])
        points.append((math.cos(north) * math.cos(east), math.cos(north) * math.sin(east), math.sin(north)))
    a, b = points
    cross = (a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0])
    return 6_371_008.8 * math.atan2(math.hypot(*cross), sum(x * y for x, y in zip(a, b, strict=True)))


def payloads() -> st.SearchStrategy[dict[str, Any]]:
    point = st.fixed_dictionaries({"lat": st.sampled_from(LATITUDES), "lon": st.sampled_from(LONGITUDES)})
    return st.fixed_dictionaries(
        {},
        optional={
            "brand": st.none() | st.sampled_from(STRINGS),
            "stock": st.sampled_from(INTEGERS),
            "price": st.sampled_from(DOUBLES),
            "new": st.booleans(),
            "place": point,
            "made": st.sampled_from(TIMES),
            "title": st.sampled_from(STRINGS),
            "note": st.sampled_from(["undeclared", 1]),
        },
    )


def filters() -> st.SearchStrategy[Filter]:
    values: dict[str, st.SearchStrategy[Any]] = {
        "brand": st.sampled_from([*STRINGS, "missing"]),
        "stock": st.sampled_from([*INTEGERS, 99]),
        "price": st.sampled_from([*DOUBLES, 3, 1]),
        "new": st.booleans(),
    }
    lower, upper = st.sampled_from(["gt", "gte"]), st.sampled_from(["lt", "lte"])

    def sides(bounds: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
        return st.one_of(
            st.builds(lambda side, bound: {side: bound}, lower | upper, bounds),
            st.builds(lambda low, a, high, b: {low: a, high: b}, lower, bounds, upper, bounds),
        )

    ranges = sides(st.sampled_from(BOUNDS))
    times = sides(st.sampled_from(TIMES).map(microseconds))
    latitudes, longitudes = st.sampled_from(LATITUDES), st.sampled_from(LONGITUDES)
    condition = st.one_of(
        *(st.builds(Equals, st.just(name), value) for name, value in values.items()),
        *(st.builds(In, st.just(name), st.lists(value, max_size=4).map(tuple)) for name, value in values.items()),
        st.builds(lambda name, sides: Range(name, **sides), st.sampled_from(["stock", "price"]), ranges),
        st.builds(lambda sides: TimeRange("made", **sides), times),
        st.builds(Prefix, st.just("brand"), st.sampled_from([*STRINGS, "abc"])),
        st.builds(Exists, st.sampled_from([*values, "place", "made", "title"])),
        st.builds(GeoRadius, st.just("place"), latitudes, longitudes, st.sampled_from(RADII)),
        st.builds(
            lambda a, west, b, east: GeoBox("place", min(a, b), west, max(a, b), east),
            latitudes,
            longitudes,
            latitudes,
            longitudes,
        ),
        st.builds(Ids, st.lists(st.sampled_from([*IDS, "nobody"]), max_size=4).map(tuple)),
    )

    def joined(members: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
        several = st.lists(members, max_size=3).map(tuple)
        return st.one_of(*(st.builds(node, several) for node in (AllOf, AnyOf, NoneOf)))

    return st.recursive(condition, joined, max_leaves=6)
