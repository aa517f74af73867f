"""Payloads are read by the declared fields."""

import json

import pytest

from lookwire_server.errors import InvalidArgument
from lookwire_server.search.fields import Field, FieldType, check_fields, read_payload, read_stored_payload

FIELDS = [Field(type.name.lower(), type) for type in FieldType]
DEEP = b'{"a":' + b"[" * 30_000 + b"]" * 30_000 + b"}"


def nested(levels: int) -> bytes:
    """A payload of so many objects and arrays within each other, with brackets in strings that count for nothing."""
    opened = [b'{"[[[[\\"[[[":', b"["] * (levels // 2)
    return b"".join(opened) + b'"{{{{"' + b"]}" * (levels // 2)


def test_reads_declared_fields() -> None:
    """Every declared type is read; other members are let be, whatever they are."""
    payload = {
        "string": "é",
        "int64": -(2**63),
        "double": 3,
        "bool": False,
        "geo_point": {"lat": -90, "lon": 180.0},
        "text": "Ein Satz.",
        "timestamp": "1970-01-01T00:59:59.9999999+01:00",
        "other": {"double": "x"},
    }

    values = read_payload(json.dumps(payload).encode(), FIELDS, "payload")

    assert values == {
        "string": "é",
        "int64": -(2**63),
        "double": 3.0,
        "bool": False,
        "geo_point": (-90.0, 180.0),
        "text": "Ein Satz.",
        "timestamp": -1,
    }
    assert type(values["double"]) is float


def test_absent_and_null_are_no_value() -> None:
    """A field that is absent or null has no value."""
    assert read_payload(b'{"string": null, "bool": null}', FIELDS, "payload") == {}


@pytest.mark.parametrize(
    ("payload", "said"),
    [
        (b"[]", "not a JSON object"),
        (b'"x"', "not a JSON object"),
        (b"", "not JSON"),
        (b"{} {}", "not JSON"),
        (b'{"a": NaN}', "NaN is not a JSON number"),
        (b'{"a": -Infinity}', "-Infinity is not a JSON number"),
        (b'{"a": "\xff"}', "not UTF-8"),
        ('{"a": 1}'.encode("utf-16"), "not UTF-8"),
        ('{"a": 1}'.encode("utf-16-le"), "not JSON"),
        (b"\xef\xbb\xbf{}", "not JSON"),
        (DEEP, "in more than 64 levels"),
        (nested(66), "in more than 64 levels"),
        (b'{"a": ' + b"9" * 5_000 + b"}", "has an integer of more than 4300 digits"),
        (b'{"a": "' + b"x" * 65_536 + b'"}', "at most 65536"),
        (b'{"string": 1}', "must be a string"),
        (rb'{"string": "\ud800"}', "must be a string of whole Unicode characters"),
        (b'{"int64": true}', "must be an integer"),
        (b'{"int64": 1.0}', "must be an integer"),
        (b'{"int64": 9223372036854775808}', "fits 64 bits"),
        (b'{"double": "1"}', "must be a finite number"),
        (b'{"double": true}', "must be a finite number"),
        (b'{"double": 1e999}', "must be a finite number"),
        (b'{"double": 1' + b"0" * 400 + b"}", "must be a finite number"),
        (b'{"bool": 1}', "must be true or false"),
        (b'{"geo_point": [1, 2]}', 'must be an object {"lat"'),
        (b'{"geo_point": {"lat": 1}}', 'must be an object {"lat"'),
        (b'{"geo_point": {"lat": 90.5, "lon": 0}}', 'must be an object {"lat"'),
        (b'{"geo_point": {"lat": 0, "lon": -181}}', 'must be an object {"lat"'),
        (b'{"geo_point": {"lat": true, "lon": 1}}', 'must be an object {"lat"'),
        (b'{"text": ["a"]}', "must be a string"),
        (rb'{"text": "\udfff"}', "must be a string of whole Unicode characters"),
        (b'{"timestamp": 0}', "must be a date and time by RFC 3339"),
        (b'{"timestamp": "2026-11-21"}', "must be a date and time by RFC 3339"),
        (b'{"timestamp": "2026-11-21T09:30:00"}', "with an offset"),
        (b'{"timestamp": "2026-11-21T09:30Z"}', "such as 2026-11-21T09:30:00Z"),
        (b'{"timestamp": "20261121T093000Z"}', "by RFC 3339"),
        (b'{"timestamp": "2026-02-29T09:30:00Z"}', "by RFC 3339"),
        (b'{"timestamp": "2026-11-21T09:30:00+01:60"}', "by RFC 3339"),
        (b'{"timestamp": "0001-01-01T00:00:00+00:01"}', "in the years 1 to 9999 of UTC"),
        (b'{"timestamp": "9999-12-31T23:59:59-00:01"}', "in the years 1 to 9999 of UTC"),
        ('{"timestamp": "2026-11-21T09:30:0\u0661Z"}'.encode(), "by RFC 3339"),
    ],
)
def test_bad_payload_is_refused(payload: bytes, said: str) -> None:
    """A payload that breaks a rule is refused with the path of the payload and the rule."""
    with pytest.raises(InvalidArgument) as caught:
        read_payload(payload, FIELDS, "items[3].payload")

    assert caught.value.field == "items[3].payload"
    assert said in caught.value.message
    assert "sys." not in caught.value.message


def test_payload_of_the_greatest_depth_is_taken() -> None:
    """64 levels are allowed, however many objects, arrays and brackets in strings there are besides."""
    read_payload(nested(64), FIELDS, "payload")
    read_payload(b'{"a":[' + b",".join([b"[{}]"] * 10_000) + b"]}", FIELDS, "payload")


def test_stored_payload_is_read_beyond_the_limits() -> None:
    """What was accepted under other limits is read, and what cannot be read is InvalidArgument at any depth."""
    deep = b'{"bool": true, "a":' + nested(200) + b"}"

    assert read_stored_payload(deep, FIELDS) == {"bool": True}
    with pytest.raises(InvalidArgument, match="nested too deeply"):
        read_stored_payload(DEEP, FIELDS)


def test_payload_of_the_greatest_size_is_taken() -> None:
    """64 KiB are allowed."""
    payload = b'{"a":"' + b"x" * (65_536 - 8) + b'"}'

    assert len(payload) == 65_536
    assert read_payload(payload, FIELDS, "payload") == {}


@pytest.mark.parametrize(
    ("names", "path"),
    [
        ([""], "fields[0].name"),
        (["a", "é" * 65], "fields[1].name"),
        (["a", "\ud800"], "fields[1].name"),
        (["a", "b", "a"], "fields[2].name"),
        ([str(number) for number in range(65)], "fields"),
    ],
)
def test_bad_declaration_is_refused(names: list[str], path: str) -> None:
    """Names are 1 to 128 bytes, differ, and are at most 64."""
    with pytest.raises(InvalidArgument) as caught:
        check_fields([Field(name, FieldType.BOOL) for name in names])

    assert caught.value.field == path


def test_largest_declaration_is_taken() -> None:
    """64 fields with names of 128 bytes are allowed."""
    check_fields([Field("é" * 62 + f"{number:04}", FieldType.BOOL) for number in range(64)])
