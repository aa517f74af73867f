"""Filter messages to the filters of the search room."""

from collections.abc import Callable, Sequence
from typing import Any, Literal

from google.protobuf.timestamp_pb2 import Timestamp

from lookwire.v1 import filter_pb2
from lookwire_server.errors import InvalidArgument
from lookwire_server.search import filters
from lookwire_server.search.fields import TIMESTAMP_MAX, TIMESTAMP_MIN, Value

SIDES: tuple[Literal["gt", "gte", "lt", "lte"], ...] = ("gt", "gte", "lt", "lte")
CORNERS: tuple[Literal["south_west", "north_east"], ...] = ("south_west", "north_east")


def from_message(message: filter_pb2.Filter) -> filters.Filter:
    """The filter of a message; InvalidArgument names the node that is wrong by its path."""
    return node(message, "filter", 1, filters.FilterSize())


def node(message: filter_pb2.Filter, path: str, level: int, size: filters.FilterSize) -> filters.Filter:
    """One node of a filter. What is too large is refused while it is read, before anything recurses further."""
    size.add_node(path, level)
    kind = message.WhichOneof("condition")
    at = f"{path}.{kind}"

    def members(parts: filter_pb2.FilterList) -> tuple[filters.Filter, ...]:
        return tuple(node(part, f"{at}.filters[{index}]", level + 1, size) for index, part in enumerate(parts.filters))

    match kind:
        case "all_of":
            return filters.AllOf(members(message.all_of))
        case "any_of":
            return filters.AnyOf(members(message.any_of))
        case "none_of":
            return filters.NoneOf(members(message.none_of))
        case "equals":
            [value] = values([message.equals.value], lambda _: f"{at}.value")
            return filters.Equals(message.equals.field, value)
        case "in_values":
            accepted = message.in_values.values
            size.add_values(len(accepted), f"{at}.values")
            return filters.In(message.in_values.field, values(accepted, lambda index: f"{at}.values[{index}]"))
        case "range":
            bounds = {name: getattr(message.range, name) if message.range.HasField(name) else None for name in SIDES}
            return filters.Range(message.range.field, **bounds)
        case "time_range":
            times = message.time_range
            return filters.TimeRange(
                times.field,
                **{
                    side: microseconds(getattr(times, side), f"{at}.{side}") if times.HasField(side) else None
                    for side in SIDES
                },
            )
        case "prefix":
            return filters.Prefix(message.prefix.field, message.prefix.prefix)
        case "exists":
            return filters.Exists(message.exists.field)
        case "geo_radius":
            radius = message.geo_radius
            if not radius.HasField("center"):
                raise InvalidArgument("set the point that distances are measured from", field=f"{at}.center")
            return filters.GeoRadius(
                radius.field, radius.center.latitude_degrees, radius.center.longitude_degrees, radius.radius_meters
            )
        case "geo_box":
            box = message.geo_box
            for corner in CORNERS:
                if not box.HasField(corner):
                    raise InvalidArgument("set both corners of the box", field=f"{at}.{corner}")
            return filters.GeoBox(
                box.field,
                box.south_west.latitude_degrees,
                box.south_west.longitude_degrees,
                box.north_east.latitude_degrees,
                box.north_east.longitude_degrees,
            )
        case "ids":
            size.add_values(len(message.ids.ids), f"{at}.ids")
            return filters.Ids(tuple(message.ids.ids))
        case _:
            raise InvalidArgument("a filter must have a condition", field=path)


def values(messages: Sequence[filter_pb2.FieldValue], path: Callable[[int], str]) -> tuple[Value, ...]:
    """The values of messages; `path` names the one of a position."""
    kinds: list[Any] = [message.WhichOneof("kind") for message in messages]
    if None in kinds:
        raise InvalidArgument(
            "set one of string_value, int64_value, double_value, bool_value", field=path(kinds.index(None))
        )
    return tuple(map(getattr, messages, kinds))


def value_message(value: Value) -> filter_pb2.FieldValue:
    """The message of a value of a STRING, INT64, DOUBLE or BOOL field."""
    match value:
        case str():
            return filter_pb2.FieldValue(string_value=value)
        case bool():
            return filter_pb2.FieldValue(bool_value=value)
        case int():
            return filter_pb2.FieldValue(int64_value=value)
        case float():
            return filter_pb2.FieldValue(double_value=value)
        case _:
            raise TypeError(f"there is no message of {value!r}")


def microseconds(message: Timestamp, path: str) -> int:
    """The whole microseconds since 1970 of a message."""
    count = message.seconds * 1_000_000 + message.nanos // 1_000
    if not (0 <= message.nanos < 1_000_000_000 and TIMESTAMP_MIN <= count <= TIMESTAMP_MAX):
        raise InvalidArgument(
            "a time lies between 0001-01-01T00:00:00Z and 9999-12-31T23:59:59.999999999Z, with 0 to 999,999,999 nanos",
            field=path,
        )
    return count
