"""Items as they come and as they are kept."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from lookwire_server.errors import Conflict, InvalidArgument, LookwireError
from lookwire_server.search.fields import Field, Values, read_payload, shown, utf8_length
from lookwire_server.search.merge_patch import MergePatch

MAX_ITEMS = 1024
MAX_ID_BYTES = 512
EMPTY_PAYLOAD = b"{}"


@dataclass(frozen=True, slots=True)
class NewItem:
    """What to write, less its vector. An empty payload means an empty object.

    `source` is the text or image that the vector was made of, None for an item that came as a vector. `if_sequence` is the
    sequence that the stored item must have, 0 if there must be none, None for no condition.
    """

    id: str
    payload: bytes
    source: str | bytes | None = None
    if_sequence: int | None = None


@dataclass(frozen=True, slots=True)
class PayloadUpdate:
    """A change of the payload of an item that exists: a new payload, or a patch of the one there is. See NewItem."""

    id: str
    change: bytes | MergePatch
    if_sequence: int | None = None


@dataclass(frozen=True, slots=True)
class StoredItem:
    """An item as it is kept; `sequence` is the number of the write that made it so."""

    id: str
    payload: bytes
    sequence: int


@dataclass(frozen=True, slots=True)
class CheckedItems:
    """Items that may be written, and the values of the declared fields, by which they were checked."""

    items: tuple[NewItem, ...]
    values: tuple[Values, ...]
    fields: Sequence[Field] = ()

    def at(self, places: Sequence[int]) -> "CheckedItems":
        """Returns those at the given places, in that order."""
        items, values = self.items, self.values
        return CheckedItems(
            tuple(items[place] for place in places), tuple(values[place] for place in places), self.fields
        )


def check_items(items: Sequence[NewItem], fields: Sequence[Field]) -> CheckedItems:
    """Raises InvalidArgument, with the path of what is at fault, unless all items may be written together."""
    check_count(len(items), "items")
    checked, values = [], []
    for position, item in enumerate(items):
        complete, read = check_item(item, fields, f"items[{position}]")
        checked.append(complete)
        values.append(read)
    check_unique([item.id for item in items], "items")
    return CheckedItems(tuple(checked), tuple(values), fields)


def check_each(
    items: Iterable[tuple[int, NewItem]], fields: Sequence[Field]
) -> tuple[list[int], CheckedItems, dict[int, LookwireError]]:
    """Sorts items out, each of which comes with its position in the request.

    Returns the positions of those that may be written, these items, and the errors of the others by position. Ids may come
    more than once.
    """
    checked: dict[int, tuple[NewItem, Values]] = {}
    errors: dict[int, LookwireError] = {}
    for position, item in items:
        try:
            checked[position] = check_item(item, fields, f"items[{position}]")
        except InvalidArgument as error:
            errors[position] = error
    good = checked.values()
    return list(checked), CheckedItems(tuple(item for item, _ in good), tuple(read for _, read in good), fields), errors


def check_item(item: NewItem, fields: Sequence[Field], path: str) -> tuple[NewItem, Values]:
    """Returns the item with its payload and the values of its fields; raises InvalidArgument if it may not be written."""
    check_id(item.id, f"{path}.id")
    complete = item if item.payload else replace(item, payload=EMPTY_PAYLOAD)
    return complete, read_payload(complete.payload, fields, f"{path}.payload")


def check_updates(updates: Sequence[PayloadUpdate]) -> None:
    """Raises InvalidArgument unless these may be the updates of a request; the items need not exist."""
    check_count(len(updates), "updates")
    for position, update in enumerate(updates):
        check_id(update.id, f"updates[{position}].id")
    check_unique([update.id for update in updates], "updates")


def check_ids(ids: Sequence[str]) -> None:
    """Raises InvalidArgument unless these may be the ids of a request; the items need not exist."""
    check_count(len(ids), "ids")
    for position, id in enumerate(ids):
        check_id(id, f"ids[{position}]")


def check_unique(ids: Sequence[str], path: str) -> None:
    """Raises InvalidArgument unless the ids of the members of a list differ."""
    if len(set(ids)) == len(ids):
        return
    positions: dict[str, int] = {}
    for position, id in enumerate(ids):
        first = positions.setdefault(id, position)
        if first != position:
            raise InvalidArgument(
                f"{path}[{first}] and {path}[{position}] have the same id {shown(id)}",
                field=f"{path}[{position}].id",
                first=first,
                second=position,
            )


def conflict(id: str, if_sequence: int | None, sequence: int, path: str) -> Conflict | None:
    """Returns the error if an item at `sequence`, 0 for one that does not exist, is not what the write is conditional on."""
    if if_sequence is None or if_sequence == sequence:
        return None
    there = f"is at sequence {sequence}" if sequence else "does not exist"
    wanted = f"be at {if_sequence}" if if_sequence else "not exist"
    return Conflict(
        f"item {shown(id)} {there}, and must {wanted} for this write",
        field=f"{path}.if_sequence",
        item=id,
        sequence=sequence,
        if_sequence=if_sequence,
    )


def check_id(id: str, path: str) -> None:
    length = utf8_length(id)
    if length is None:
        raise InvalidArgument("an id is Unicode text; this one holds half a surrogate pair", field=path)
    if not 1 <= length <= MAX_ID_BYTES:
        raise InvalidArgument(
            f"an id has 1 to {MAX_ID_BYTES} bytes of UTF-8, this one has {length}", field=path, limit=MAX_ID_BYTES
        )


def check_count(count: int, path: str) -> None:
    """Raises InvalidArgument unless a list of a request may have so many members."""
    if not 1 <= count <= MAX_ITEMS:
        raise InvalidArgument(f"{count} {path}: a request has 1 to {MAX_ITEMS}", field=path, limit=MAX_ITEMS)
