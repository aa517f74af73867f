from datetime import UTC, datetime, timedelta, timezone

import numpy as np
import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from lookwire import Filter, all_of, any_of, field, ids, none_of
from lookwire.v1 import filter_pb2 as pb


def equals(name: str, **value: str | int | float | bool) -> pb.Filter:
    return pb.Filter(equals=pb.EqualsCondition(field=name, value=pb.FieldValue(**value)))  # type: ignore[arg-type]


def between(**bounds: float) -> pb.Filter:
    return pb.Filter(range=pb.RangeCondition(field="x", **bounds))


def during(**bounds: Timestamp) -> pb.Filter:
    return pb.Filter(time_range=pb.TimeRangeCondition(field="x", **bounds))


x = field("x")
NOON = datetime(1970, 1, 1, 12, 0, 0, 250_000, tzinfo=UTC)
NOON_MESSAGE = Timestamp(seconds=43_200, nanos=250_000_000)
EVE = datetime(1969, 12, 31, 23, 0, tzinfo=timezone(timedelta(hours=-1)))
A, B, C = equals("x", string_value="a"), equals("x", string_value="b"), equals("x", string_value="c")


@pytest.mark.parametrize(
    ("filter", "message"),
    [
        (x == "red", equals("x", string_value="red")),
        (x == 3, equals("x", int64_value=3)),
        (x == -(2**63), equals("x", int64_value=-(2**63))),
        (x == 3.0, equals("x", double_value=3.0)),
        (np.int32(3) == x, equals("x", int64_value=3)),
        (np.float32(0.5) == x, equals("x", double_value=0.5)),
        (x == np.True_, equals("x", bool_value=True)),
        (x != "a", pb.Filter(none_of=pb.FilterList(filters=[A]))),
        (x < 3, between(lt=3.0)),
        (x <= 0, between(lte=0.0)),
        (x > 0.5, between(gt=0.5)),
        (np.int64(7) <= x, between(gte=7.0)),
        (3 > x, between(lt=3.0)),  # noqa: SIM300 - the other way round is the point
        (x.between(1, 2.5), between(gte=1.0, lte=2.5)),
        (
            x.is_in(["a", 1, 2.0, False]),
            pb.Filter(
                in_values=pb.InCondition(
                    field="x",
                    values=[
                        pb.FieldValue(string_value="a"),
                        pb.FieldValue(int64_value=1),
                        pb.FieldValue(double_value=2.0),
                        pb.FieldValue(bool_value=False),
                    ],
                )
            ),
        ),
        (x.is_in([]), pb.Filter(in_values=pb.InCondition(field="x"))),
        (x < NOON, during(lt=NOON_MESSAGE)),
        (x <= NOON, during(lte=NOON_MESSAGE)),
        (x > NOON, during(gt=NOON_MESSAGE)),
        (x >= EVE, during(gte=Timestamp())),
        (x.between(EVE, NOON), during(gte=Timestamp(), lte=NOON_MESSAGE)),
        (x.startswith("re"), pb.Filter(prefix=pb.PrefixCondition(field="x", prefix="re"))),
        (x.exists(), pb.Filter(exists=pb.ExistsCondition(field="x"))),
        (
            x.within(52.5, 13.4, meters=1000),
            pb.Filter(
                geo_radius=pb.GeoRadiusCondition(
                    field="x", center=pb.GeoPoint(latitude_degrees=52.5, longitude_degrees=13.4), radius_meters=1000.0
                )
            ),
        ),
        (
            x.in_box((-10, 170), (10, -170)),
            pb.Filter(
                geo_box=pb.GeoBoxCondition(
                    field="x",
                    south_west=pb.GeoPoint(latitude_degrees=-10.0, longitude_degrees=170.0),
                    north_east=pb.GeoPoint(latitude_degrees=10.0, longitude_degrees=-170.0),
                )
            ),
        ),
        (ids(["a", "b"]), pb.Filter(ids=pb.IdsCondition(ids=["a", "b"]))),
        ((x == "a") & (x == "b"), pb.Filter(all_of=pb.FilterList(filters=[A, B]))),
        ((x == "a") | (x == "b"), pb.Filter(any_of=pb.FilterList(filters=[A, B]))),
        (~(x == "a"), pb.Filter(none_of=pb.FilterList(filters=[A]))),
        (all_of(x == "a"), pb.Filter(all_of=pb.FilterList(filters=[A]))),
        (any_of(), pb.Filter(any_of=pb.FilterList())),
        (none_of(x == "a", x == "b"), pb.Filter(none_of=pb.FilterList(filters=[A, B]))),
        (
            (x == "a") | (x == "b") & (x == "c"),
            pb.Filter(any_of=pb.FilterList(filters=[A, pb.Filter(all_of=pb.FilterList(filters=[B, C]))])),
        ),
    ],
)
def test_builders(filter: Filter, message: pb.Filter) -> None:
    """Each comparison and operator makes the condition of its name."""
    assert filter.message == message


def test_chains_stay_flat() -> None:
    """A chain of one operator is one list, however long: the server takes at most 16 levels."""
    conjunction, disjunction = x == 0, x == 0
    for n in range(1, 100):
        conjunction = conjunction & (x == n)
        disjunction = (x == n) | disjunction

    assert [each.equals.value.int64_value for each in conjunction.message.all_of.filters] == list(range(100))
    assert [each.equals.value.int64_value for each in disjunction.message.any_of.filters] == list(range(99, -1, -1))


def test_operators_leave_their_operands() -> None:
    """A filter may be part of several others."""
    pair = (x == "a") & (x == "b")

    triple = pair & (x == "c")

    assert pair.message == pb.Filter(all_of=pb.FilterList(filters=[A, B]))
    assert triple.message == pb.Filter(all_of=pb.FilterList(filters=[A, B, C]))


def test_wrong_types_are_refused_at_once() -> None:
    """A value that no field can hold is a TypeError that names the field."""
    with pytest.raises(TypeError, match="field 'x' compares with a string, a number or a bool, not NoneType"):
        x == None  # noqa: B015, E711
    with pytest.raises(TypeError, match="not list"):
        x == ["a"]  # noqa: B015
    with pytest.raises(TypeError, match="field 'x' needs a real number here, not str"):
        x < "a"  # type: ignore[operator] # noqa: B015
    with pytest.raises(TypeError, match="not bool"):
        x.between(False, 3)
    with pytest.raises(TypeError, match="not one string"):
        x.is_in("red")
    with pytest.raises(TypeError, match="not one string"):
        ids("red")
    with pytest.raises(TypeError, match="item id is a string, not int"):
        ids([1])  # type: ignore[list-item]
    with pytest.raises(TypeError, match="prefix of 'x' is a string, not int"):
        x.startswith(1)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="name is a string, not int"):
        field(1)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"lookwire\.field\(\) or lookwire\.ids\(\), not bool"):
        all_of(True)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="not FieldName"):
        (x == "a") & x  # type: ignore[operator]


@pytest.mark.parametrize(
    "value", [float("nan"), float("inf"), 2**53 + 1, 10**400], ids=["nan", "inf", "2^53+1", "1e400"]
)
def test_bounds_are_exact(value: float) -> None:
    """A bound that a 64-bit floating-point number cannot hold is refused rather than rounded."""
    with pytest.raises(ValueError, match="field 'x' is not a finite"):
        x > value  # noqa: B015


def test_integers_fit_64_bits() -> None:
    """A larger integer is refused."""
    with pytest.raises(ValueError, match="does not fit 64 bits"):
        x == 2**63  # noqa: B015


def test_times_need_a_zone() -> None:
    """A datetime that could be several moments, or that a server could not hold, is refused."""
    with pytest.raises(ValueError, match="for field 'x' has no time zone"):
        x > datetime(2026, 11, 21)  # noqa: B015
    with pytest.raises(ValueError, match="not valid"):
        x > datetime(1, 1, 1, tzinfo=timezone(timedelta(hours=1)))  # noqa: B015
    with pytest.raises(TypeError, match="datetimes on both sides, not int"):
        x.between(1, NOON)
    with pytest.raises(TypeError, match="compares with a datetime by <"):
        x == NOON  # noqa: B015


def test_filters_have_no_truth() -> None:
    """`and`, `or`, `not` and chained comparisons would drop conditions silently, so they are errors."""
    with pytest.raises(TypeError, match=r"&, \| and ~"):
        _ = (x == 1) and (x == 2)
    with pytest.raises(TypeError, match="between"):
        1 < x < 5  # noqa: B015
