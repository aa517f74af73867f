"""Filters: which items a search, a count or a list is about."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol, cast

import numpy as np

from lookwire_server.errors import InvalidArgument
from lookwire_server.search.fields import INT64_MAX, INT64_MIN, Field, FieldType, Value, listed, shown
from lookwire_server.search.index.columns import (
    Columns,
    DoubleColumn,
    GeoColumn,
    Int64Column,
    Mask,
    ScalarColumn,
    StringColumn,
)

MAX_NODES = 256
MAX_LEVELS = 16
MAX_VALUES = 10_000


@dataclass(frozen=True, slots=True)
class AllOf:
    filters: tuple["Filter", ...]


@dataclass(frozen=True, slots=True)
class AnyOf:
    filters: tuple["Filter", ...]


@dataclass(frozen=True, slots=True)
class NoneOf:
    filters: tuple["Filter", ...]


@dataclass(frozen=True, slots=True)
class Equals:
    field: str
    value: Value


@dataclass(frozen=True, slots=True)
class In:
    field: str
    values: tuple[Value, ...]


@dataclass(frozen=True, slots=True)
class Range:
    field: str
    gt: float | None = None
    gte: float | None = None
    lt: float | None = None
    lte: float | None = None


@dataclass(frozen=True, slots=True)
class TimeRange:
    """Bounds of a timestamp, in microseconds since 1970-01-01T00:00:00Z."""

    field: str
    gt: int | None = None
    gte: int | None = None
    lt: int | None = None
    lte: int | None = None


@dataclass(frozen=True, slots=True)
class Prefix:
    field: str
    prefix: str


@dataclass(frozen=True, slots=True)
class Exists:
    field: str


@dataclass(frozen=True, slots=True)
class GeoRadius:
    field: str
    latitude: float
    longitude: float
    meters: float


@dataclass(frozen=True, slots=True)
class GeoBox:
    field: str
    south: float
    west: float
    north: float
    east: float


@dataclass(frozen=True, slots=True)
class Ids:
    ids: tuple[str, ...]


Filter = AllOf | AnyOf | NoneOf | Equals | In | Range | TimeRange | Prefix | Exists | GeoRadius | GeoBox | Ids


class Table(Protocol):
    """What a filter is evaluated on: `count` rows, by slot."""

    @property
    def count(self) -> int: ...
    @property
    def columns(self) -> Columns: ...
    def slot_of(self, id: str) -> int | None: ...


def matching(filter: Filter, table: Table) -> Mask:
    """Returns which slots match a filter that was checked. Slots of items that are gone are included."""
    columns, count = table.columns, table.count
    match filter:
        case AllOf(filters):
            mask = np.ones(count, np.bool_)
            for member in filters:
                mask &= matching(member, table)
            return mask
        case AnyOf(filters):
            return _any(filters, table)
        case NoneOf(filters):
            return ~_any(filters, table)
        case Equals(field, value):
            return cast(StringColumn | ScalarColumn, columns[field]).among((value,), count)
        case In(field, values):
            return cast(StringColumn | ScalarColumn, columns[field]).among(values, count)
        case Range(field, gt, gte, lt, lte) | TimeRange(field, gt, gte, lt, lte):
            numbers = cast(Int64Column | DoubleColumn, columns[field])
            return numbers.between(gt=gt, gte=gte, lt=lt, lte=lte, count=count)
        case Prefix(field, prefix):
            return cast(StringColumn, columns[field]).prefixed(prefix, count)
        case Exists(field):
            return columns[field].exists(count)
        case GeoRadius(field, latitude, longitude, meters):
            return cast(GeoColumn, columns[field]).within_radius(latitude, longitude, meters, count)
        case GeoBox(field, south, west, north, east):
            return cast(GeoColumn, columns[field]).within_box(south, west, north, east, count)
        case Ids(ids):
            mask = np.zeros(count, np.bool_)
            mask[[slot for id in ids if (slot := table.slot_of(id)) is not None]] = True
            return mask


def _any(filters: tuple[Filter, ...], table: Table) -> Mask:
    mask = np.zeros(table.count, np.bool_)
    for member in filters:
        mask |= matching(member, table)
    return mask


class FilterSize:
    """Counts what a filter has; raises InvalidArgument, with the path of what is too much."""

    def __init__(self) -> None:
        self._nodes = 0
        self._values = 0

    def add_node(self, path: str, level: int) -> None:
        self._nodes += 1
        if self._nodes > MAX_NODES:
            raise InvalidArgument(f"a filter has at most {MAX_NODES} nodes", field=path, limit=MAX_NODES)
        if level > MAX_LEVELS:
            raise InvalidArgument(f"a filter has at most {MAX_LEVELS} levels", field=path, limit=MAX_LEVELS)

    def add_values(self, count: int, path: str) -> None:
        """Adds the values or ids of a condition."""
        self._values += count
        if self._values > MAX_VALUES:
            raise InvalidArgument(
                f"a filter has at most {MAX_VALUES} values and ids in all; with these {count} it has {self._values}",
                field=path,
                limit=MAX_VALUES,
            )


def check_filter(filter: Filter, fields: Mapping[str, Field], path: str = "filter") -> None:
    """Raises InvalidArgument, with the path of what is at fault, unless the filter fits the declared fields."""
    _Check(fields).node(filter, path, level=1)


class _Check:
    def __init__(self, fields: Mapping[str, Field]) -> None:
        self._fields = fields
        self._size = FilterSize()

    def node(self, filter: Filter, path: str, level: int) -> None:
        self._size.add_node(path, level)
        match filter:
            case AllOf(filters):
                self._members(filters, f"{path}.all_of", level)
            case AnyOf(filters):
                self._members(filters, f"{path}.any_of", level)
            case NoneOf(filters):
                self._members(filters, f"{path}.none_of", level)
            case Equals(name, value):
                field = self._comparable(name, f"{path}.equals")
                if not _FITS[field.type](value):
                    raise _misfit(value, field, f"{path}.equals.value")
            case In(name, values):
                field = self._comparable(name, f"{path}.in_values")
                self._size.add_values(len(values), f"{path}.in_values.values")
                fits = _FITS[field.type]
                for position, value in enumerate(values):
                    if not fits(value):
                        raise _misfit(value, field, f"{path}.in_values.values[{position}]")
            case Range(name):
                self._declared(name, f"{path}.range", "a range", FieldType.INT64, FieldType.DOUBLE)
                bounds = self._bounds(filter, f"{path}.range", "range")
                for side, bound in bounds.items():
                    if not math.isfinite(bound):
                        raise InvalidArgument("a bound is a finite number", field=f"{path}.range.{side}")
            case TimeRange(name):
                self._declared(name, f"{path}.time_range", "a time range", FieldType.TIMESTAMP)
                self._bounds(filter, f"{path}.time_range", "time range")
            case Prefix(name):
                self._declared(name, f"{path}.prefix", "a prefix", FieldType.STRING)
            case Exists(name):
                self._declared(name, f"{path}.exists", "exists", *FieldType)
            case GeoRadius(name, latitude, longitude, meters):
                self._declared(name, f"{path}.geo_radius", "a geo radius", FieldType.GEO_POINT)
                self._point(latitude, longitude, f"{path}.geo_radius.center")
                if not (math.isfinite(meters) and meters > 0):
                    raise InvalidArgument(
                        "a radius is a finite number greater than 0", field=f"{path}.geo_radius.radius_meters"
                    )
            case GeoBox(name, south, west, north, east):
                self._declared(name, f"{path}.geo_box", "a geo box", FieldType.GEO_POINT)
                self._point(south, west, f"{path}.geo_box.south_west")
                self._point(north, east, f"{path}.geo_box.north_east")
                if south > north:
                    raise InvalidArgument("the box's south lies north of its north", field=f"{path}.geo_box")
            case Ids(ids):
                self._size.add_values(len(ids), f"{path}.ids.ids")

    def _members(self, filters: tuple[Filter, ...], path: str, level: int) -> None:
        for position, member in enumerate(filters):
            self.node(member, f"{path}.filters[{position}]", level + 1)

    def _declared(self, name: str, path: str, condition: str, *accepted: FieldType) -> Field:
        field = self._fields.get(name)
        if field is None:
            declared = f"it declares {listed(list(self._fields))}" if self._fields else "it declares none"
            raise InvalidArgument(
                f"the collection has no field {shown(name)}: {declared}",
                field=f"{path}.field",
                declared=listed(list(self._fields)),
            )
        if field.type not in accepted:
            raise InvalidArgument(
                f"field {shown(name)} is {field.type.with_article}, which {_CONDITIONS[field.type]} apply to;"
                f" {condition} wants a field of type {' or '.join(accepted)}",
                field=f"{path}.field",
                type=field.type,
            )
        return field

    def _comparable(self, name: str, path: str) -> Field:
        types = (FieldType.STRING, FieldType.INT64, FieldType.DOUBLE, FieldType.BOOL)
        return self._declared(name, path, "a comparison with values", *types)

    def _bounds(self, range: Range | TimeRange, path: str, kind: str) -> dict[str, float]:
        """Returns the bounds that are given."""
        bounds = {"gt": range.gt, "gte": range.gte, "lt": range.lt, "lte": range.lte}
        given = {side: bound for side, bound in bounds.items() if bound is not None}
        if not given:
            raise InvalidArgument(f"a {kind} has at least one of the bounds gt, gte, lt, lte", field=path)
        for exclusive, inclusive in (("gt", "gte"), ("lt", "lte")):
            if exclusive in given and inclusive in given:
                raise InvalidArgument(f"a {kind} has {exclusive} or {inclusive}, not both", field=path)
        return given

    def _point(self, latitude: float, longitude: float, path: str) -> None:
        # Written so that NaN fails too.
        if not -90 <= latitude <= 90:
            raise InvalidArgument("a latitude lies between -90 and 90 degrees", field=f"{path}.latitude_degrees")
        if not -180 <= longitude <= 180:
            raise InvalidArgument("a longitude lies between -180 and 180 degrees", field=f"{path}.longitude_degrees")


def _misfit(value: Value, field: Field, path: str) -> InvalidArgument:
    given = shown(value) if isinstance(value, str) else str(value)
    return InvalidArgument(
        f"field {shown(field.name)} is {field.type.with_article}, so its values are compared with {_VALUES[field.type]},"
        f" not {given}",
        field=path,
        expected=field.type,
    )


# What a value is that a field of each type can be compared with.
_VALUES = {
    FieldType.STRING: "a string_value",
    FieldType.INT64: "an int64_value",
    FieldType.DOUBLE: "a finite number",
    FieldType.BOOL: "a bool_value",
}
# What a field of each type can be filtered by, as the messages call it.
_CONDITIONS = {
    FieldType.STRING: "equals, in_values, prefix and exists",
    FieldType.INT64: "equals, in_values, range and exists",
    FieldType.DOUBLE: "equals, in_values, range and exists",
    FieldType.BOOL: "equals, in_values and exists",
    FieldType.GEO_POINT: "geo_radius, geo_box and exists",
    FieldType.TEXT: "only exists and hybrid searches",
    FieldType.TIMESTAMP: "time_range and exists",
}


def _is_int64(value: Value) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and INT64_MIN <= value <= INT64_MAX


_FITS: dict[FieldType, Callable[[Value], bool]] = {
    FieldType.STRING: lambda value: isinstance(value, str),
    FieldType.INT64: _is_int64,
    FieldType.DOUBLE: lambda value: _is_int64(value) or (isinstance(value, float) and math.isfinite(value)),
    FieldType.BOOL: lambda value: isinstance(value, bool),
}
