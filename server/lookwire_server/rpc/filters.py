"""Filter messages to the filters of the search room."""

from typing import Literal

from google.protobuf.timestamp_pb2 import Timestamp

from lookwire.v1 import filter_pb2
from lookwire_server.errors import InvalidArgument
from lookwire_server.search import filters
from lookwire_server.search.fields import TIMESTAMP_MAX, TIMESTAMP_MIN, Value

# A tree that is deeper is refused while it is read, before anything recurses further.
MAX_LEVELS = 16
SIDES: tuple[Literal["gt", "gte", "lt", "lte"], ...] = ("gt", "gte", "lt", "lte")


def from_message(message: filter_pb2.Filter, path: str = "filter", level: int = 1) -> filters.Filter:
    """The filter of a message; InvalidArgument names the node that is wrong by its path."""
    if level > MAX_LEVELS:
        raise InvalidArgument(f"a filter has at most {MAX_LEVELS} levels", field=path)
    kind = message.WhichOneof("condition")
    at = f"{path}.{kind}"

    def members(parts: filter_pb2.FilterList) -> tuple[filters.Filter, ...]:
        return tuple(
            from_message(part, f"{at}.filters[{index}]", level + 1) for index, part in enumerate(parts.filters)
        )

    match kind:
        case "all_of":
            return filters.AllOf(members(message.all_of))
        case "any_of":
            return filters.AnyOf(members(message.any_of))
        case "none_of":
            return filters.NoneOf(members(message.none_of))
        case "equals":
            return filters.Equals(message.equals.field, value(message.equals.value, f"{at}.value"))
        case "in_values":
            values = message.in_values.values
            return filters.In(
                message.in_values.field,
                tuple(value(part, f"{at}.values[{index}]") for index, part in enumerate(values)),
            )
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
            return filters.GeoRadius(
                radius.field, radius.center.latitude_degrees, radius.center.longitude_degrees, radius.radius_meters
            )
        case "geo_box":
            box = message.geo_box
            return filters.GeoBox(
                box.field,
                box.south_west.latitude_degrees,
                box.south_west.longitude_degrees,
                box.north_east.latitude_degrees,
                box.north_east.longitude_degrees,
            )
        case "ids":
            return filters.Ids(tuple(message.ids.ids))
        case _:
            raise InvalidArgument("a filter must have a condition", field=path)


def value(message: filter_pb2.FieldValue, path: str) -> str | int | float | bool:
    """The value of a message."""
    match message.WhichOneof("kind"):
        case "string_value":
            return message.string_value
        case "int64_value":
            return message.int64_value
        case "double_value":
            return message.double_value
        case "bool_value":
            return message.bool_value
        case _:
            raise InvalidArgument("set one of string_value, int64_value, double_value, bool_value", field=path)


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
