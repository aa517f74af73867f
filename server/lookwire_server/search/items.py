"""Items as they come and as they are kept."""

from collections.abc import Sequence
from dataclasses import dataclass

from lookwire_server.errors import InvalidArgument
from lookwire_server.search.fields import Field, Values, read_payload, shown, utf8_length

MAX_ITEMS = 1024
MAX_ID_BYTES = 512
EMPTY_PAYLOAD = b"{}"


@dataclass(frozen=True, slots=True)
class NewItem:
    """What to write, less its vector. An empty payload means an empty object."""

    id: str
    payload: bytes


@dataclass(frozen=True, slots=True)
class StoredItem:
    """An item as it is kept; `sequence` is the number of the write that made it so."""

    id: str
    payload: bytes
    sequence: int


@dataclass(frozen=True, slots=True)
class CheckedItems:
    """Items that may be written, and the values of their declared fields."""

    items: tuple[NewItem, ...]
    values: tuple[Values, ...]


def check_items(items: Sequence[NewItem], fields: Sequence[Field]) -> CheckedItems:
    """Raises InvalidArgument, with the path of what is at fault, unless all items may be written together."""
    _check_count(len(items), "items")
    positions: dict[str, int] = {}
    checked, values = [], []
    for position, item in enumerate(items):
        path = f"items[{position}].id"
        check_id(item.id, path)
        first = positions.setdefault(item.id, position)
        if first != position:
            raise InvalidArgument(
                f"items[{first}] and items[{position}] have the same id {shown(item.id)}",
                field=path,
                first=first,
                second=position,
            )
        payload = item.payload or EMPTY_PAYLOAD
        values.append(read_payload(payload, fields, f"items[{position}].payload"))
        checked.append(NewItem(item.id, payload))
    return CheckedItems(tuple(checked), tuple(values))


def check_ids(ids: Sequence[str]) -> None:
    """Raises InvalidArgument unless these may be the ids of a request; the items need not exist."""
    _check_count(len(ids), "ids")
    for position, id in enumerate(ids):
        check_id(id, f"ids[{position}]")


def check_id(id: str, path: str) -> None:
    length = utf8_length(id)
    if length is None:
        raise InvalidArgument("an id is Unicode text; this one holds half a surrogate pair", field=path)
    if not 1 <= length <= MAX_ID_BYTES:
        raise InvalidArgument(
            f"an id has 1 to {MAX_ID_BYTES} bytes of UTF-8, this one has {length}", field=path, limit=MAX_ID_BYTES
        )


def _check_count(count: int, path: str) -> None:
    if not 1 <= count <= MAX_ITEMS:
        raise InvalidArgument(f"{count} {path}: a request has 1 to {MAX_ITEMS}", field=path, limit=MAX_ITEMS)
