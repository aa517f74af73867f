"""The fields that a collection declares, and the values that a payload gives them."""

import json
import math
import re
import sys
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any, NoReturn

import numpy as np

from lookwire_server.errors import InvalidArgument

MAX_FIELDS = 64
MAX_NAME_BYTES = 128
MAX_PAYLOAD_BYTES = 64 * 1024
# Objects and arrays within each other, the payload's own object counted. Python's decoder recurses: without a limit of our own
# the depth of the caller's stack would decide, and what was written in one place could not be read in another.
MAX_PAYLOAD_LEVELS = 64
INT64_MIN, INT64_MAX = -(2**63), 2**63 - 1
# What a caller sent is repeated in a message only so far: a status travels in HTTP/2 headers, which are small.
MAX_SHOWN_CHARACTERS = 80
MAX_SHOWN_NAMES = 10

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
# In microseconds since 1970: 0001-01-01T00:00:00Z to the end of the year 9999, as in protobuf's Timestamp.
TIMESTAMP_MIN, TIMESTAMP_MAX = -62_135_596_800_000_000, 253_402_300_799_999_999

# A geo point is (latitude, longitude) in degrees, a timestamp the number of microseconds since 1970-01-01T00:00:00Z.
Value = str | int | float | bool | tuple[float, float]
Values = Mapping[str, Value]


class FieldType(StrEnum):
    STRING = "string"
    INT64 = "int64"
    DOUBLE = "double"
    BOOL = "bool"
    GEO_POINT = "geo point"
    TEXT = "text"
    TIMESTAMP = "timestamp"

    @property
    def with_article(self) -> str:
        return f"{'an' if self is FieldType.INT64 else 'a'} {self}"


@dataclass(frozen=True, slots=True)
class Field:
    """A member of the payload that filters, or the search for words, can use."""

    name: str
    type: FieldType


def shown(text: str) -> str:
    """Returns `text` quoted for a message, and cut if it is long."""
    return repr(text if len(text) <= MAX_SHOWN_CHARACTERS else f"{text[:MAX_SHOWN_CHARACTERS]}...")


def listed(names: Sequence[str]) -> str:
    """Returns names for a message: the first few, and how many more there are."""
    more = f" and {len(names) - MAX_SHOWN_NAMES} more" if len(names) > MAX_SHOWN_NAMES else ""
    return ", ".join(shown(name) for name in names[:MAX_SHOWN_NAMES]) + more


def folded(text: str) -> str:
    """Returns what texts have in common that are equal but for case, spaces, and the way Unicode composes characters.

    They are composed first (normalisation form C), so that a letter and its accent are equal to the one character for both.
    """
    return " ".join(unicodedata.normalize("NFC", text).casefold().split())


def utf8_length(text: str) -> int | None:
    """Returns the length in bytes; None if the text is no Unicode text, because it holds half a surrogate pair."""
    try:
        return len(text.encode())
    except UnicodeEncodeError:
        return None


def check_fields(fields: Sequence[Field]) -> None:
    """Raises InvalidArgument unless a collection may declare these fields."""
    if len(fields) > MAX_FIELDS:
        raise InvalidArgument(
            f"{len(fields)} fields: a collection has at most {MAX_FIELDS}", field="fields", limit=MAX_FIELDS
        )
    positions: dict[str, int] = {}
    for position, field in enumerate(fields):
        path = f"fields[{position}].name"
        length = utf8_length(field.name)
        if length is None or not 1 <= length <= MAX_NAME_BYTES:
            raise InvalidArgument(f"a field's name has 1 to {MAX_NAME_BYTES} bytes of UTF-8", field=path)
        first = positions.setdefault(field.name, position)
        if first != position:
            raise InvalidArgument(f"fields[{first}] has the name {shown(field.name)} too", field=path)


def read_payload(payload: bytes, fields: Sequence[Field], path: str) -> Values:
    """Returns the values of the declared fields; raises InvalidArgument with `path` if the payload breaks a rule."""
    return _declared_values(read_object(payload, path), fields, path)


def read_stored_payload(payload: bytes, fields: Sequence[Field]) -> Values:
    """Returns the values of the declared fields of a payload that was accepted before, by whatever limits there were then.

    Raises InvalidArgument if it cannot be read, or does not fit the fields.
    """
    return _declared_values(_decoded(payload, "payload", "payload"), fields, "payload")


def read_object(data: bytes, path: str, kind: str = "payload") -> dict[str, Any]:
    """Returns the members of a JSON object; raises InvalidArgument with `path` if the data are none, or too many or deep."""
    if len(data) > MAX_PAYLOAD_BYTES:
        raise InvalidArgument(
            f"the {kind} has {len(data)} bytes; at most {MAX_PAYLOAD_BYTES} are allowed",
            field=path,
            limit=MAX_PAYLOAD_BYTES,
        )
    if not _is_shallow(data):
        raise InvalidArgument(
            f"the {kind} has objects and arrays within each other in more than {MAX_PAYLOAD_LEVELS} levels",
            field=path,
            limit=MAX_PAYLOAD_LEVELS,
        )
    return _decoded(data, path, kind)


def _declared_values(members: Mapping[str, Any], fields: Sequence[Field], path: str) -> Values:
    values: dict[str, Value] = {}
    for field in fields:
        member = members.get(field.name)
        if member is not None:
            value = _read_value(member, field.type)
            if value is None:
                raise InvalidArgument(
                    f"field {shown(field.name)} must be {_EXPECTED[field.type]}",
                    field=path,
                    payload_field=field.name,
                    expected=field.type.value,
                )
            values[field.name] = value
    return values


def _is_shallow(data: bytes) -> bool:
    """Whether no value is deeper than MAX_PAYLOAD_LEVELS, as far as the data are JSON."""
    if data.count(b"{") + data.count(b"[") <= MAX_PAYLOAD_LEVELS:
        return True
    # Without strings, in which brackets mean nothing; escapes go first, as they may hold a quote.
    brackets = _STRING.sub(b"", _ESCAPE.sub(b"", data))
    levels = np.cumsum(_STEPS[np.frombuffer(brackets, np.uint8)], dtype=np.int32)
    return bool(levels.max(initial=0) <= MAX_PAYLOAD_LEVELS)


def _decoded(data: bytes, path: str, kind: str) -> dict[str, Any]:
    try:
        members = _JSON.decode(data.decode())
    except UnicodeDecodeError:
        raise InvalidArgument(f"the {kind} is not UTF-8", field=path) from None
    except (json.JSONDecodeError, _NotNumber) as error:
        raise InvalidArgument(f"the {kind} is not JSON: {error}", field=path) from None
    except ValueError:
        digits = sys.get_int_max_str_digits()
        raise InvalidArgument(f"the {kind} has an integer of more than {digits} digits", field=path) from None
    except RecursionError:
        raise InvalidArgument(f"the {kind} is nested too deeply", field=path) from None
    if not isinstance(members, dict):
        raise InvalidArgument(f"the {kind} is not a JSON object", field=path)
    return members


_EXPECTED = {
    FieldType.STRING: "a string of whole Unicode characters",
    FieldType.INT64: "an integer that fits 64 bits, written without a point or an exponent",
    FieldType.DOUBLE: "a finite number",
    FieldType.BOOL: "true or false",
    FieldType.GEO_POINT: 'an object {"lat": -90 to 90, "lon": -180 to 180}',
    FieldType.TEXT: "a string of whole Unicode characters",
    FieldType.TIMESTAMP: (
        "a date and time by RFC 3339 with an offset, such as 2026-11-21T09:30:00Z or 2026-11-21T10:30:00.25+01:00, in the"
        " years 1 to 9999 of UTC"
    ),
}
# `datetime.fromisoformat` takes other forms of ISO 8601 too. A leap second has no number of microseconds since 1970.
_RFC_3339 = re.compile(
    r"\d{4}-\d\d-\d\dT([01]\d|2[0-3]):[0-5]\d:[0-5]\d(\.\d+)?(Z|[+-]([01]\d|2[0-3]):[0-5]\d)", re.ASCII
)
_HALF_PAIR = re.compile("[\ud800-\udfff]")
_ESCAPE = re.compile(rb"\\.", re.DOTALL)
_STRING = re.compile(rb'"[^"]*"?')
# How many levels deeper each byte leads.
_STEPS = np.zeros(256, np.int8)
_STEPS[list(b"{[")] = 1
_STEPS[list(b"}]")] = -1


class _NotNumber(ValueError):
    """A constant that Python takes for a number, and JSON does not have."""


def _refuse_constant(name: str) -> NoReturn:
    raise _NotNumber(f"{name} is not a JSON number")


# Made once: `json.loads` makes one at every call that names a `parse_constant`.
_JSON = json.JSONDecoder(parse_constant=_refuse_constant)


def _read_value(member: object, type: FieldType) -> Value | None:
    match type:
        case FieldType.STRING | FieldType.TEXT:
            return member if isinstance(member, str) and not _HALF_PAIR.search(member) else None
        case FieldType.BOOL:
            return member if isinstance(member, bool) else None
        case FieldType.INT64:
            whole = isinstance(member, int) and not isinstance(member, bool)
            return member if isinstance(member, int) and whole and INT64_MIN <= member <= INT64_MAX else None
        case FieldType.DOUBLE:
            return _finite(member)
        case FieldType.GEO_POINT:
            if not isinstance(member, dict) or member.keys() != {"lat", "lon"}:
                return None
            latitude, longitude = _finite(member["lat"]), _finite(member["lon"])
            if latitude is None or longitude is None or abs(latitude) > 90 or abs(longitude) > 180:
                return None
            return latitude, longitude
        case FieldType.TIMESTAMP:
            return _microseconds(member)


def _microseconds(member: object) -> int | None:
    """Cuts what is finer than a microsecond."""
    # T and Z may be written small.
    text = member.upper() if isinstance(member, str) else ""
    if not _RFC_3339.fullmatch(text):
        return None
    try:
        microseconds = (datetime.fromisoformat(text) - EPOCH) // timedelta(microseconds=1)
    except ValueError:
        return None
    return microseconds if TIMESTAMP_MIN <= microseconds <= TIMESTAMP_MAX else None


def _finite(member: object) -> float | None:
    if isinstance(member, bool) or not isinstance(member, int | float):
        return None
    try:
        number = float(member)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None
