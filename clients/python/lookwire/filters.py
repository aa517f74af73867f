"""Filters: which items a search, a listing or a count considers.

    from lookwire import field, ids

    (field("colour") == "red") & (field("price") < 50) & ~ids(["a", "b"])

Only fields that the collection declares can be used. An item without a value for a field does not match a condition on
it, and so matches its negation. Comparisons bind weaker than `&` and `|` in Python, hence the parentheses.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from numbers import Integral, Real
from typing import Any, ClassVar, NoReturn, TypeAlias

import numpy as np
from google.protobuf.timestamp_pb2 import Timestamp

from lookwire.v1 import filter_pb2 as pb

Value: TypeAlias = str | bool | int | float
"""A value to compare a field with; numpy's scalars will do as well."""
Bound: TypeAlias = float | datetime
"""A bound of a numeric field, or, with a time zone, of a timestamp field."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Filter:
    """A condition on items. Combine filters with `&`, `|` and `~`, or with `all_of`, `any_of` and `none_of`."""

    message: pb.Filter

    def __and__(self, other: "Filter") -> "Filter":
        return all_of(*_members(self, "all_of"), *_members(other, "all_of"))

    def __or__(self, other: "Filter") -> "Filter":
        return any_of(*_members(self, "any_of"), *_members(other, "any_of"))

    def __invert__(self) -> "Filter":
        return none_of(self)

    def __bool__(self) -> NoReturn:
        raise TypeError("a filter is neither true nor false: combine filters with &, | and ~, and see between()")


def all_of(*filters: Filter) -> Filter:
    """Matches an item that matches every one of `filters`; every item if there are none."""
    return Filter(pb.Filter(all_of=_list(filters)))


def any_of(*filters: Filter) -> Filter:
    """Matches an item that matches at least one of `filters`; no item if there are none."""
    return Filter(pb.Filter(any_of=_list(filters)))


def none_of(*filters: Filter) -> Filter:
    """Matches an item that matches none of `filters`; every item if there are none."""
    return Filter(pb.Filter(none_of=_list(filters)))


def ids(ids: Iterable[str]) -> Filter:
    """Matches an item whose id is one of `ids`, at most 10,000. Raises TypeError for an id that is no string."""
    return Filter(pb.Filter(ids=pb.IdsCondition(ids=[_string(id_, "an item id") for id_ in _several(ids, "ids")])))


@dataclass(frozen=True, slots=True, eq=False)
class FieldName:
    """A declared field of the payload; its comparisons are filters. Made by `field`."""

    # So that a numpy scalar on the left leaves the comparison to the field.
    __array_ufunc__: ClassVar[None] = None

    name: str

    def __eq__(self, value: Value) -> Filter:  # type: ignore[override]
        """Matches an item whose field has the value. Strings compare byte by byte."""
        return Filter(pb.Filter(equals=pb.EqualsCondition(field=self.name, value=self._value(value))))

    def __ne__(self, value: Value) -> Filter:  # type: ignore[override]
        """Matches an item whose field has another value, or none."""
        return none_of(self == value)

    def __lt__(self, bound: Bound) -> Filter:
        return self._range(lt=bound)

    def __le__(self, bound: Bound) -> Filter:
        return self._range(lte=bound)

    def __gt__(self, bound: Bound) -> Filter:
        return self._range(gt=bound)

    def __ge__(self, bound: Bound) -> Filter:
        return self._range(gte=bound)

    def between(self, low: Bound, high: Bound) -> Filter:
        """Matches an item whose numeric field, or timestamp field for two datetimes, lies in [low, high]."""
        return self._range(gte=low, lte=high)

    def is_in(self, values: Iterable[Value]) -> Filter:
        """Matches an item whose field has one of `values`, at most 10,000; no item if there are none."""
        several = [self._value(value) for value in _several(values, f"the values of {self.name!r}")]
        return Filter(pb.Filter(in_values=pb.InCondition(field=self.name, values=several)))

    def startswith(self, prefix: str) -> Filter:
        """Matches an item whose string field begins with `prefix`; case matters."""
        prefix = _string(prefix, f"the prefix of {self.name!r}")
        return Filter(pb.Filter(prefix=pb.PrefixCondition(field=self.name, prefix=prefix)))

    def exists(self) -> Filter:
        """Matches an item that has a value for the field."""
        return Filter(pb.Filter(exists=pb.ExistsCondition(field=self.name)))

    def within(self, latitude: float, longitude: float, meters: float) -> Filter:
        """Matches an item that lies at most `meters` from a point in degrees, along the great circle."""
        center = self._point((latitude, longitude))
        condition = pb.GeoRadiusCondition(field=self.name, center=center, radius_meters=self._bound(meters))
        return Filter(pb.Filter(geo_radius=condition))

    def in_box(self, south_west: tuple[float, float], north_east: tuple[float, float]) -> Filter:
        """Matches an item between two corners (latitude, longitude) in degrees, edges included.

        A box whose west exceeds its east crosses the antimeridian.
        """
        corners = self._point(south_west), self._point(north_east)
        condition = pb.GeoBoxCondition(field=self.name, south_west=corners[0], north_east=corners[1])
        return Filter(pb.Filter(geo_box=condition))

    def _range(self, **bounds: Bound) -> Filter:
        """The range of numbers or of times. Raises TypeError and ValueError as `_bound` and `_time` do."""
        if any(isinstance(bound, datetime) for bound in bounds.values()):
            times = {side: self._time(bound) for side, bound in bounds.items()}
            return Filter(pb.Filter(time_range=pb.TimeRangeCondition(field=self.name, **times)))
        numbers = {side: self._bound(bound) for side, bound in bounds.items()}
        return Filter(pb.Filter(range=pb.RangeCondition(field=self.name, **numbers)))

    def _value(self, value: object) -> pb.FieldValue:
        match value:
            case str():
                return pb.FieldValue(string_value=value)
            case bool() | np.bool_():
                return pb.FieldValue(bool_value=bool(value))
            case Integral():
                if not -(2**63) <= int(value) < 2**63:
                    raise ValueError(f"{value} for field {self.name!r} does not fit 64 bits")
                return pb.FieldValue(int64_value=int(value))
            case Real():
                return pb.FieldValue(double_value=self._bound(value))
            case datetime():
                raise TypeError(f"field {self.name!r} compares with a datetime by <, <=, >, >= and between() only")
        raise TypeError(f"field {self.name!r} compares with a string, a number or a bool, not {type(value).__name__}")

    def _bound(self, value: object) -> float:
        """Returns `value` as a float. Raises TypeError for no real number, ValueError if no finite float equals it."""
        if not isinstance(value, Real) or isinstance(value, bool):
            raise TypeError(f"field {self.name!r} needs a real number here, not {type(value).__name__}")
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        if not math.isfinite(number) or number != value:
            raise ValueError(f"{value} for field {self.name!r} is not a finite 64-bit floating-point number")
        return number

    def _time(self, value: object) -> Timestamp:
        """Raises TypeError for no datetime, ValueError for one without a time zone or before the year 1 of UTC, or after 9999."""
        if not isinstance(value, datetime):
            raise TypeError(f"field {self.name!r} needs datetimes on both sides, not {type(value).__name__}")
        if value.utcoffset() is None:
            raise ValueError(f"{value} for field {self.name!r} has no time zone")
        message = Timestamp()
        message.FromMicroseconds((value - _EPOCH) // timedelta(microseconds=1))
        return message

    def _point(self, point: tuple[float, float]) -> pb.GeoPoint:
        latitude, longitude = point
        return pb.GeoPoint(latitude_degrees=self._bound(latitude), longitude_degrees=self._bound(longitude))


def field(name: str) -> FieldName:
    """Names a declared field, to compare it: `field("price") < 50`. Raises TypeError if `name` is no string."""
    return FieldName(_string(name, "a field's name"))


def filter_message(filter: Filter | None) -> pb.Filter | None:
    """Returns the message of a filter, None for None. Raises TypeError for anything else."""
    if filter is None:
        return None
    return _checked(filter).message


def _checked(filter: object) -> Filter:
    if not isinstance(filter, Filter):
        raise TypeError(f"a filter is made with lookwire.field() or lookwire.ids(), not {type(filter).__name__}")
    return filter


def _list(filters: Iterable[Filter]) -> pb.FilterList:
    return pb.FilterList(filters=[_checked(filter).message for filter in filters])


def _members(filter: Filter, kind: str) -> list[Filter]:
    """The members of a list of that kind, else the filter alone: chains of one operator stay one level deep."""
    message = _checked(filter).message
    if message.WhichOneof("condition") != kind:
        return [filter]
    return [Filter(member) for member in getattr(message, kind).filters]


def _string(value: object, what: str) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{what} is a string, not {type(value).__name__}")
    return value


def _several(values: Iterable[Any], what: str) -> Iterable[Any]:
    if isinstance(values, str):
        raise TypeError(f"{what} are a list, not one string")
    return values
