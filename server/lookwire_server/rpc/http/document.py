"""The JSON of a request, and what is wrong with it."""

import json
from typing import Any

from lookwire_server.errors import InvalidArgument

WORDS = {
    bool: "true or false",
    int: "an integer",
    float: "a number",
    str: "a string",
    list: "an array",
    dict: "an object",
}


def described(value: object) -> str:
    """A JSON value as error messages name it."""
    return "null" if value is None else WORDS[type(value)]


def parse(text: bytes | memoryview) -> dict[str, Any]:
    """The object that a request's JSON is; raises InvalidArgument that says where it is malformed.

    The numbers are read by functions of ours, as they let other threads run where json's own do not.
    """
    try:
        # An unfinished escape or surrogate is json's to find.
        document = json.loads(
            str(text, "utf-8"),
            parse_float=lambda digits: float(digits),
            parse_int=lambda digits: int(digits),
            parse_constant=refuse,
        )
    except UnicodeDecodeError as error:
        raise InvalidArgument(f"failed to parse the request JSON buffer: not UTF-8 at byte {error.start}") from None
    except json.JSONDecodeError as error:
        raise InvalidArgument(
            f"failed to parse the request JSON buffer: {error.msg} at line {error.lineno}, column {error.colno}"
        ) from None
    except RecursionError:
        raise InvalidArgument("failed to parse the request JSON buffer: nested too deep") from None
    except ValueError as error:
        raise InvalidArgument(f"failed to parse the request JSON buffer: {error}") from None
    if not isinstance(document, dict):
        raise InvalidArgument(f"the request must be a JSON object, got {described(document)}")
    return document


def refuse(constant: str) -> float:
    """Refuses NaN and the infinities, which Python's json would take."""
    raise ValueError(f"{constant} is no JSON number")


def member(document: dict[str, Any], name: str, kind: type, where: str = "", default: Any = None) -> Any:
    """A member of an object, of the given type; `default` where it is absent, required if that is None."""
    path = f"{where}.{name}" if where else name
    if name not in document:
        if default is None:
            raise InvalidArgument(f"'{path}' is missing")
        return default
    content = document[name]
    if type(content) is not kind:
        raise InvalidArgument(f"'{path}' must be {described(kind())}, got {described(content)}")
    return content


def check_object(content: Any, where: str) -> None:
    if not isinstance(content, dict):
        raise InvalidArgument(f"'{where}' must be an object, got {described(content)}")
