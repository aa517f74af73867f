"""Filter messages to the filters of the search room."""

from lookwire.v1 import filter_pb2
from lookwire_server.errors import InvalidArgument
from lookwire_server.search import filters

# A tree that is deeper is refused while it is read, before anything recurses further.
MAX_LEVELS = 16


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
            bounds = {
                name: getattr(message.range, name) if message.range.HasField(name) else None
                for name in ("gt", "gte", "lt", "lte")
            }
            return filters.Range(message.range.field, **bounds)
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
