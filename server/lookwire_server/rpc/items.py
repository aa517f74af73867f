"""ItemService."""

import hashlib
import time
from collections.abc import AsyncIterable
from typing import Any

import grpc

from lookwire.v1 import item_service_pb2 as pb
from lookwire.v1 import item_service_pb2_grpc, stage_times_pb2
from lookwire_server.encoding.encoders import Encoders
from lookwire_server.errors import InvalidArgument
from lookwire_server.rpc import convert, filters
from lookwire_server.rpc.handlers import Received
from lookwire_server.rpc.imports import Imports
from lookwire_server.rpc.item_vectors import item_vectors, new_item
from lookwire_server.search.collection import Collection
from lookwire_server.search.collections import Collections
from lookwire_server.search.item_writes import Written
from lookwire_server.search.items import PayloadUpdate, StoredItem
from lookwire_server.search.merge_patch import MergePatch
from lookwire_server.search.store.requests import Request

DEFAULT_FACET_VALUES = 10

Context = grpc.aio.ServicerContext[Any, Any]


class ItemServicer(item_service_pb2_grpc.ItemServiceServicer):
    """Writes and reads items."""

    def __init__(self, collections: Collections, encoders: Encoders, imports: Imports) -> None:
        self._collections = collections
        self._encoders = encoders
        self._imports = imports

    async def UpsertItems(self, request: pb.UpsertItemsRequest, context: Context) -> pb.UpsertItemsResponse:
        started = time.monotonic()
        collection = self._collections.get(request.collection, "collection")
        once = repeatable(request)
        if once and (before := await collection.written_before(once)):
            return upserted(collection, before, convert.stage_times(started))
        keeps = collection.row.keeps_sources
        # Before anything is spent on encoding.
        items = collection.check([new_item(item, keeps_source=keeps) for item in request.items])
        made = await item_vectors(collection, self._encoders, list(enumerate(request.items)), convert.deadline(context))
        for _, error in sorted(made.errors.items()):
            raise error
        encoded = time.monotonic()
        written = await collection.upsert(items, made.rows, once)
        self._collections.check_means(request.collection, collection)
        times = convert.stage_times(
            started,
            decode=made.times.decode,
            tokenise=made.times.tokenise,
            queue=made.times.queue,
            infer=made.times.infer,
            write=time.monotonic() - encoded,
        )
        return upserted(collection, written, times)

    async def UpdatePayloads(self, request: pb.UpdatePayloadsRequest, context: Context) -> pb.UpdatePayloadsResponse:
        collection = self._collections.get(request.collection, "collection")
        updates = [payload_update(update, f"updates[{index}]") for index, update in enumerate(request.updates)]
        sequence = await collection.update_payloads(updates)
        self._collections.check_means(request.collection, collection)
        return pb.UpdatePayloadsResponse(sequence=sequence)

    async def ImportItems(  # type: ignore[override]  # the stubs know no method that writes its replies itself
        self, requests: AsyncIterable[Received], context: Context
    ) -> None:
        await self._imports.serve(requests, context)

    async def GetItems(self, request: pb.GetItemsRequest, context: Context) -> pb.GetItemsResponse:
        member = convert.vector_format(request.vector_format)
        collection = self._collections.get(request.collection, "collection")
        found = await collection.get_items(list(request.ids), include_vectors=request.include_vectors)
        return pb.GetItemsResponse(
            items=map(stored, found.items),
            vectors=None if found.vectors is None else convert.matrix(found.vectors, member),
            missing_ids=found.missing,
        )

    async def DeleteItems(self, request: pb.DeleteItemsRequest, context: Context) -> pb.DeleteItemsResponse:
        collection = self._collections.get(request.collection, "collection")
        if not request.HasField("filter"):
            deleted = await collection.delete_items(list(request.ids))
        elif request.ids:
            raise InvalidArgument("give ids or a filter, not both", field="filter")
        else:
            deleted = await collection.delete_matching(filters.from_message(request.filter))
        self._collections.check_means(request.collection, collection)
        return pb.DeleteItemsResponse(sequence=deleted.sequence, deleted_count=deleted.count)

    async def ListItems(self, request: pb.ListItemsRequest, context: Context) -> pb.ListItemsResponse:
        collection = self._collections.get(request.collection, "collection")
        selected = filters.from_message(request.filter) if request.HasField("filter") else None
        page = await collection.list_items(selected, page_size=request.page_size, page_token=request.page_token)
        return pb.ListItemsResponse(items=map(stored, page.items), next_page_token=page.next_page_token)

    async def CountItems(self, request: pb.CountItemsRequest, context: Context) -> pb.CountItemsResponse:
        collection = self._collections.get(request.collection, "collection")
        selected = filters.from_message(request.filter) if request.HasField("filter") else None
        return pb.CountItemsResponse(count=await collection.count(selected))

    async def FacetItems(self, request: pb.FacetItemsRequest, context: Context) -> pb.FacetItemsResponse:
        collection = self._collections.get(request.collection, "collection")
        selected = filters.from_message(request.filter) if request.HasField("filter") else None
        found = await collection.facets(list(request.fields), selected, limit=request.limit or DEFAULT_FACET_VALUES)
        return pb.FacetItemsResponse(
            facets=[
                pb.Facet(
                    field=facet.field,
                    values=map(filters.value_message, facet.values),
                    counts=facet.counts,
                    value_count=facet.value_count,
                    missing_count=facet.missing_count,
                )
                for facet in found.facets
            ],
            match_count=found.match_count,
        )


def repeatable(request: pb.UpsertItemsRequest) -> Request | None:
    """The identity of a request with an idempotency key: of its items, under whatever name it finds the collection."""
    if not request.idempotency_key:
        return None
    digest = hashlib.sha256()
    for item in request.items:
        data = item.SerializeToString(deterministic=True)
        digest.update(len(data).to_bytes(8, "little"))
        digest.update(data)
    return Request(request.idempotency_key, digest.digest())


def payload_update(message: pb.PayloadUpdate, path: str) -> PayloadUpdate:
    """The update of a message."""
    match message.WhichOneof("change"):
        case "replacement":
            change: bytes | MergePatch = message.replacement
        case "merge_patch":
            change = MergePatch(message.merge_patch, f"{path}.merge_patch")
        case _:
            raise InvalidArgument("set replacement or merge_patch", field=path)
    return PayloadUpdate(message.id, change, message.if_sequence if message.HasField("if_sequence") else None)


def upserted(collection: Collection, written: Written, times: stage_times_pb2.StageTimes) -> pb.UpsertItemsResponse:
    """The reply to an upsert."""
    return pb.UpsertItemsResponse(
        sequence=written.sequence,
        inserted_count=written.inserted,
        replaced_count=written.replaced,
        fingerprint=collection.row.fingerprint,
        times=times,
    )


def stored(item: StoredItem) -> pb.StoredItem:
    """The message of an item as it is kept."""
    return pb.StoredItem(id=item.id, payload=item.payload, sequence=item.sequence)
