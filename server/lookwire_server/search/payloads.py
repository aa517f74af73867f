"""Parts of payloads, byte for byte as they were written."""

import json
import re
from collections.abc import Container
from typing import cast

_SPACE = re.compile(r"[ \t\n\r]*")
_DECODER = json.JSONDecoder()


def selected(payload: bytes, names: Container[str]) -> bytes:
    """Returns a JSON object of those top-level members of `payload`, a valid JSON object, that have one of the names.

    Values are copied as they stand: numbers keep every digit. Of members of the same name the last counts, as in JSON readers.
    """
    text = payload.decode()
    members: dict[str, str] = {}
    position = _after_space(text, text.index("{") + 1)
    while text[position] != "}":
        start = position
        name, position = _DECODER.raw_decode(text, position)
        position = _after_space(text, _after_space(text, position) + 1)
        _, position = _DECODER.raw_decode(text, position)
        if name in names:
            members[name] = text[start:position]
        position = _after_space(text, position)
        if text[position] == ",":
            position = _after_space(text, position + 1)
    return f"{{{','.join(members.values())}}}".encode()


def _after_space(text: str, position: int) -> int:
    return cast(re.Match[str], _SPACE.match(text, position)).end()
