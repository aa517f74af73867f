"""The index of a collection from a generation and the store: at the start, and whenever a new generation is there."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from lookwire_server.errors import FailedPrecondition, InvalidArgument
from lookwire_server.search.fields import Field, Values, read_stored_payload
from lookwire_server.search.index.columns import Columns
from lookwire_server.search.index.generation import Doubtful, Generation, described
from lookwire_server.search.index.live import Upsert, VectorIndex
from lookwire_server.search.store.collections import CollectionRow
from lookwire_server.search.store.items import ItemRow
from lookwire_server.search.store.store import Store

# Items that are brought to memory at once: enough for numpy to be quick, little memory besides the index.
LOADED_ROWS = 2_048

Progress = Callable[[int, int], None]
# Gives the values of an item's fields by its id and payload.
Reader = Callable[[str, bytes], Values]


def load(
    store: Store,
    row: CollectionRow,
    generation: Generation | None,
    progress: Progress | None = None,
    unread: dict[str, str] | None = None,
) -> VectorIndex:
    """Returns an index with exactly the items that the store has now, by one read transaction; not published.

    A key names one version of an item, so the slots of the generation whose keys the store still has are good as they are, all
    others are dead, and what the store has besides is read from it. Raises Doubtful if the generation cannot have come from the
    store, FailedPrecondition if the store is damaged. `progress` is called with the numbers of items read and to be read.

    A payload that cannot be read gives its item no values, and `unread` has its id and the reason: what is in the store is kept,
    whatever was allowed when it was written.
    """

    def values(id: str, payload: bytes) -> Values:
        try:
            return read_stored_payload(payload, row.fields)
        except InvalidArgument as error:
            if unread is not None:
                unread[id] = error.message
            return {}

    with store.database.reader():
        sequence = store.collections.sequence(row.number)
        living = store.items.keys(row.number)
        if generation is not None and generation.manifest.fields != described(row.fields):
            columns = columns_of(store, row.fields, generation.keys, values)
            generation = Generation(generation.manifest, generation.ids, generation.keys, columns, generation.index)
        index = VectorIndex(row.dimension, row.fields, sequence, generation)
        missing = index.keep(living)
        if generation is not None and len(missing) and len(generation.keys) and missing[0] <= generation.keys[-1]:
            raise Doubtful(
                f"generation {generation.manifest.generation} lacks key {missing[0]}, which is older than it"
            )
        index.reserve(len(missing))
        for start in range(0, len(missing), LOADED_ROWS):
            keys = missing[start : start + LOADED_ROWS].tolist()
            append(row, index, sequence, store.items.rows(keys), values)
            if progress is not None:
                progress(start + len(keys), len(missing))
    return index


def append(row: CollectionRow, index: VectorIndex, sequence: int, items: list[ItemRow], values: Reader) -> None:
    """Appends rows as they are kept."""
    content = b"".join(item.vector for item in items)
    if len(content) != len(items) * row.dimension * 4:
        raise FailedPrecondition(
            f"the database is damaged: collection {row.name!r} has vectors of another length than its dimension",
            collection=row.name,
        )
    index.upsert(
        Upsert(
            sequence,
            [item.id for item in items],
            [item.key for item in items],
            np.frombuffer(content, "<f4").reshape(len(items), row.dimension),
            [values(item.id, item.payload) for item in items],
        )
    )


def columns_of(store: Store, fields: tuple[Field, ...], keys: NDArray[np.int64], values: Reader) -> Columns:
    """Returns the values of fields by the payloads of the store, with an empty row for each key that it lacks."""
    columns = Columns(fields)
    for start in range(0, len(keys), LOADED_ROWS):
        some = keys[start : start + LOADED_ROWS].tolist()
        payloads = store.items.payloads(some)
        columns.append([values(*payloads[key]) if key in payloads else {} for key in some])
    return columns
