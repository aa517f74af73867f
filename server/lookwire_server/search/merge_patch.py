"""Changes of a JSON object by RFC 7396, JSON Merge Patch."""

import json
from collections.abc import Mapping
from typing import Any

from lookwire_server.errors import InvalidArgument
from lookwire_server.search.fields import read_object


class MergePatch:
    """A patch from `data`, a JSON object in UTF-8; raises InvalidArgument with `path` if it is none."""

    def __init__(self, data: bytes, path: str) -> None:
        self.size = len(data)
        self._members = read_object(data, path, "merge patch")
        self._path = path

    def applied(self, payload: bytes) -> bytes:
        """Returns a JSON object with the changes, without spaces; raises InvalidArgument if it cannot be written.

        Integers keep all their digits; other numbers become doubles.
        """
        try:
            merged = _merged(read_object(payload, self._path, "stored payload"), self._members)
            text = json.dumps(merged, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        except ValueError:
            raise InvalidArgument(
                "the merged payload has a number beyond the range of a double; replace the payload as a whole",
                field=self._path,
            ) from None
        # Half a surrogate pair, which JSON can hold and UTF-8 cannot, is written as its escape.
        return text.encode(errors="backslashreplace")


def _merged(target: object, patch: Mapping[str, Any]) -> dict[str, Any]:
    """MergePatch of RFC 7396, section 2, for a patch that is an object."""
    merged = dict(target) if isinstance(target, dict) else {}
    for name, change in patch.items():
        if change is None:
            merged.pop(name, None)
        elif isinstance(change, dict):
            merged[name] = _merged(merged.get(name), change)
        else:
            merged[name] = change
    return merged
