"""Items that come to be written: what is kept of each, and its vector."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lookwire.v1 import item_service_pb2 as pb
from lookwire_server.encoding.encoder import Times
from lookwire_server.encoding.encoders import Encoders
from lookwire_server.errors import FailedPrecondition, InvalidArgument, InvalidVector, LookwireError
from lookwire_server.lanes import Lane
from lookwire_server.rpc import convert
from lookwire_server.search.collection import Collection
from lookwire_server.search.items import NewItem


@dataclass(frozen=True, slots=True)
class ItemVectors:
    """float32 vectors [items, dimension] as they came or were embedded, and the errors of items that have none, by position."""

    rows: convert.Vectors
    errors: dict[int, LookwireError]
    times: Times


def new_item(item: pb.Item, *, keeps_source: bool) -> NewItem:
    """What is to be kept of an item besides its vector."""
    source = None
    if keeps_source and (kind := item.WhichOneof("source")) in ("text", "image"):
        source = getattr(item, kind)
    return NewItem(item.id, item.payload, source, item.if_sequence if item.HasField("if_sequence") else None)


async def item_vectors(
    collection: Collection,
    encoders: Encoders,
    items: Sequence[tuple[int, pb.Item]],
    deadline: float | None,
) -> ItemVectors:
    """A vector for each item, which comes with its position in the request: given, or made by the encoder in the bulk lane.

    Given vectors have the dimension of the collection, and may otherwise be bad.
    """
    made = ItemVectors(np.zeros((len(items), collection.row.dimension), np.float32), {}, Times())
    sources: dict[int, str | bytes] = {}
    given: dict[str, dict[int, bytes]] = {member: {} for member in convert.DTYPES}
    for row, (position, item) in enumerate(items):
        match item.WhichOneof("source"):
            case "vector":
                # One without elements is refused with those of a wrong size.
                data = item.vector.WhichOneof("data") or "f32"
                given[data][row] = getattr(item.vector, data)
            case "text":
                sources[row] = item.text
            case "image":
                sources[row] = item.image
            case _:
                made.errors[position] = InvalidArgument("set text, image or vector", field=f"items[{position}]")
    for member, contents in given.items():
        _read(made, member, contents, items)
    if not sources:
        return made
    rows = list(sources)
    try:
        encoder = encoders.of_fingerprint(collection.row.encoder, collection.row.fingerprint)
    except FailedPrecondition as error:
        _refuse(made, dict.fromkeys(rows, error), items)
        return made
    embedded = await encoder.embed(list(sources.values()), lane=Lane.BULK, deadline=deadline)
    made.rows[rows] = embedded.vectors
    _refuse(made, {rows[place]: error for place, error in embedded.errors.items()}, items)
    return ItemVectors(made.rows, made.errors, embedded.times)


def _refuse(made: ItemVectors, errors: Mapping[int, LookwireError], items: Sequence[tuple[int, pb.Item]]) -> None:
    """Gives the sources in the given rows their errors."""
    for row, error in errors.items():
        position, item = items[row]
        made.errors[position] = error.at(f"items[{position}].{item.WhichOneof('source')}")


def _read(made: ItemVectors, member: str, given: dict[int, bytes], items: Sequence[tuple[int, pb.Item]]) -> None:
    """Reads the given vectors of one element type, all at once."""
    dimension = made.rows.shape[1]
    nbytes = dimension * convert.DTYPES[member].itemsize
    wrong = [row for row, data in given.items() if len(data) != nbytes]
    for row in wrong:
        position, item = items[row]
        field = f"items[{position}].vector"
        try:
            elements = len(convert.vector(item.vector, field))
            raise InvalidVector(
                f"the vector has {elements} dimensions, the collection has {dimension}",
                field=field,
                dimension=elements,
                expected=dimension,
            )
        except InvalidVector as error:
            made.errors[position] = error
        del given[row]
    if given:
        content = b"".join(given.values())
        made.rows[list(given)] = np.frombuffer(content, convert.DTYPES[member]).reshape(-1, dimension)
