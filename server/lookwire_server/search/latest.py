"""Items that are replaced so often that a reader never meets the version that the view has: their newest versions instead."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

import numpy as np

from lookwire_server.errors import InvalidArgument
from lookwire_server.search.fields import Values, read_stored_payload
from lookwire_server.search.filters import Filter, matching
from lookwire_server.search.index.columns import Columns
from lookwire_server.search.items import StoredItem
from lookwire_server.search.store.collections import CollectionRow
from lookwire_server.search.store.store import Store


@dataclass(frozen=True, slots=True)
class _Table:
    """A few items, as filters see them."""

    ids: list[str]
    columns: Columns

    @property
    def count(self) -> int:
        return len(self.ids)

    def slot_of(self, id: str) -> int | None:
        return self.ids.index(id) if id in self.ids else None


def latest(
    store: Store, row: CollectionRow, ids: Sequence[str], filter: Filter | None
) -> dict[str, tuple[StoredItem, bytes]]:
    """Returns the items that exist and match, with their vectors as float32; for a thread that reads."""
    stored = store.items.by_id(row.number, ids)
    if filter is None:
        return stored
    columns = Columns(row.fields)
    columns.append([_values(item, row) for item, _ in stored.values()])
    kept = matching(filter, _Table(list(stored), columns))
    return {id: stored[id] for id, keep in zip(stored, np.asarray(kept).tolist(), strict=True) if keep}


def _values(item: StoredItem, row: CollectionRow) -> Values:
    # One that was written before its field was declared has no values, as at the start.
    with suppress(InvalidArgument):
        return read_stored_payload(item.payload, row.fields)
    return {}
