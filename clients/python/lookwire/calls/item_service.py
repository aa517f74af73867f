"""The calls of ItemService."""

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lookwire.calls.call import Call, Page
from lookwire.errors import FieldViolation, LookwireError
from lookwire.filters import Filter, filter_message
from lookwire.images import image_bytes
from lookwire.types import Deleted, Facet, Facets, Item, PayloadUpdate, StoredItem, Upserted
from lookwire.v1 import item_service_pb2 as pb
from lookwire.vectors import matrix_array, vector_message

CHUNK_ITEMS = 256
CHUNK_BYTES = 4 * 1024 * 1024
_ITEM_INDEX = re.compile(r"\bitems\[(\d+)\]")


def upsert(collection: str, items: Iterable[Item], idempotency_key: str) -> Iterator[Call[Upserted]]:
    """Yields calls that write the items chunk by chunk; reads `items` no further than the chunk.

    Chunks after the first have the key with their number appended, if there is a key.
    """

    def parse(response: pb.UpsertItemsResponse) -> Upserted:
        return Upserted(response.sequence, response.inserted_count, response.replaced_count)

    for number, chunk in enumerate(chunks(items, CHUNK_ITEMS)):
        key = f"{idempotency_key}/{number}" if idempotency_key and number else idempotency_key
        request = pb.UpsertItemsRequest(collection=collection, items=chunk, idempotency_key=key)
        yield Call("UpsertItems", request, parse)


def added(total: Upserted, chunk: Upserted) -> Upserted:
    """Returns what was written up to and with the chunk."""
    return Upserted(chunk.sequence, total.inserted + chunk.inserted, total.replaced + chunk.replaced)


def failed_after(total: Upserted, error: LookwireError) -> LookwireError:
    """Returns the error of a chunk as that of the whole upsert: with the items counted from the first of all."""

    def counted(text: str) -> str:
        return _ITEM_INDEX.sub(lambda match: f"items[{int(match[1]) + total.count}]", text)

    message = counted(error.message)
    if total.count:
        message += f" (the {total.count} items before were written)"
    violations = tuple(FieldViolation(counted(each.field), counted(each.description)) for each in error.violations)
    whole = type(error)(message, error.code, error.reason, error.metadata, violations, error.retry_after)
    whole.acknowledged = total.count
    return whole


def get_items(collection: str, ids: Sequence[str], *, include_vectors: bool) -> Call[list[StoredItem]]:
    """Asks for items by id."""

    def parse(response: pb.GetItemsResponse) -> list[StoredItem]:
        vectors = matrix_array(response.vectors) if include_vectors else [None] * len(response.items)
        return [_stored(message, vector) for message, vector in zip(response.items, vectors, strict=True)]

    request = pb.GetItemsRequest(collection=collection, ids=_ids(ids), include_vectors=include_vectors)
    return Call("GetItems", request, parse)


def update_payloads(collection: str, updates: Iterable[PayloadUpdate]) -> Call[int]:
    """Asks for changes of payloads."""

    def parse(response: pb.UpdatePayloadsResponse) -> int:
        return response.sequence

    request = pb.UpdatePayloadsRequest(collection=collection, updates=map(_update, updates))
    return Call("UpdatePayloads", request, parse)


def delete_items(collection: str, ids: Sequence[str], filter: Filter | None) -> Call[Deleted]:
    """Asks for the removal of items. Raises ValueError for both ids and a filter, or neither."""
    if bool(ids) == (filter is not None):
        raise ValueError("items to delete are given by ids or by a filter")

    def parse(response: pb.DeleteItemsResponse) -> Deleted:
        return Deleted(response.sequence, response.deleted_count)

    request = pb.DeleteItemsRequest(collection=collection, ids=_ids(ids), filter=filter_message(filter))
    return Call("DeleteItems", request, parse)


def list_items(collection: str, filter: Filter | None, page_token: str) -> Call[Page[StoredItem]]:
    """Asks for a page of the items that match a filter."""

    def parse(response: pb.ListItemsResponse) -> Page[StoredItem]:
        return Page(tuple(_stored(message, None) for message in response.items), response.next_page_token)

    request = pb.ListItemsRequest(collection=collection, filter=filter_message(filter), page_token=page_token)
    return Call("ListItems", request, parse)


def count_items(collection: str, filter: Filter | None) -> Call[int]:
    """Asks how many items match a filter."""

    def parse(response: pb.CountItemsResponse) -> int:
        return response.count

    return Call("CountItems", pb.CountItemsRequest(collection=collection, filter=filter_message(filter)), parse)


def facet_items(collection: str, fields: Sequence[str], filter: Filter | None, limit: int) -> Call[Facets]:
    """Asks for the counts of items by value. Raises TypeError for fields that are one string, ValueError for a limit below 1."""
    if isinstance(fields, str):
        raise TypeError("fields are a list of names, not one string")
    if limit < 1:
        raise ValueError(f"limit is at least 1, not {limit}")

    def parse(response: pb.FacetItemsResponse) -> Facets:
        return Facets(response.match_count, {facet.field: _facet(facet) for facet in response.facets})

    request = pb.FacetItemsRequest(collection=collection, fields=fields, filter=filter_message(filter), limit=limit)
    return Call("FacetItems", request, parse)


def _facet(message: pb.Facet) -> Facet:
    values = (getattr(value, value.WhichOneof("kind") or "") for value in message.values)
    return Facet(dict(zip(values, message.counts, strict=True)), message.value_count, message.missing_count)


def chunks(items: Iterable[Item], count: int) -> Iterator[list[pb.Item]]:
    """Yields lists of at most `count` items and CHUNK_BYTES; a larger item goes alone."""
    chunk: list[pb.Item] = []
    chunk_bytes = 0
    for item in items:
        message = _item(item)
        size = message.ByteSize()
        if chunk and (len(chunk) == count or chunk_bytes + size > CHUNK_BYTES):
            yield chunk
            chunk, chunk_bytes = [], 0
        chunk.append(message)
        chunk_bytes += size
    if chunk:
        yield chunk


def _item(item: Item) -> pb.Item:
    if not isinstance(item, Item):
        raise TypeError(f"an item to write is a lookwire.Item, not {type(item).__name__}")
    message = pb.Item(id=item.id, payload=_json(item.payload), if_sequence=item.if_sequence)
    if item.text is not None:
        message.text = item.text
    if item.image is not None:
        message.image = image_bytes(item.image)
    if item.vector is not None:
        message.vector.CopyFrom(vector_message(item.vector))
    return message


def _update(update: PayloadUpdate) -> pb.PayloadUpdate:
    if not isinstance(update, PayloadUpdate):
        raise TypeError(f"a change of a payload is a lookwire.PayloadUpdate, not {type(update).__name__}")
    message = pb.PayloadUpdate(id=update.id, if_sequence=update.if_sequence)
    if update.replacement is not None:
        message.replacement = _json(update.replacement)
    if update.merge_patch is not None:
        message.merge_patch = _json(update.merge_patch)
    return message


def _json(members: Mapping[str, Any]) -> bytes:
    return json.dumps(dict(members), ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()


def _stored(message: pb.StoredItem, vector: NDArray[np.float32] | None) -> StoredItem:
    payload: dict[str, Any] = json.loads(message.payload or b"{}")
    return StoredItem(message.id, payload, message.sequence, vector)


def _ids(ids: Sequence[str]) -> Sequence[str]:
    if isinstance(ids, str):
        raise TypeError("ids are a list of item ids, not one string")
    return ids
