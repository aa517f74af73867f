"""ItemService."""

import time
from collections.abc import Sequence
from typing import Any

import grpc
import numpy as np

from lookwire.v1 import item_service_pb2 as pb
from lookwire.v1 import item_service_pb2_grpc
from lookwire_server.encoding.encoder import Times
from lookwire_server.encoding.encoders import Encoders
from lookwire_server.errors import InvalidArgument
from lookwire_server.models.model import Lane
from lookwire_server.rpc import convert, filters
from lookwire_server.search.collection import Collection
from lookwire_server.search.collections import Collections
from lookwire_server.search.items import NewItem, StoredItem

Context = grpc.aio.ServicerContext[Any, Any]


class ItemServicer(item_service_pb2_grpc.ItemServiceServicer):
    """Writes and reads items."""

    def __init__(self, collections: Collections, encoders: Encoders) -> None:
        self._collections = collections
        self._encoders = encoders

    async def UpsertItems(self, request: pb.UpsertItemsRequest, context: Context) -> pb.UpsertItemsResponse:
        started = time.monotonic()
        collection = self._collections.get(request.collection)
        items = collection.check(
            [NewItem(item.id, item.payload) for item in request.items]
        )  # before anything is spent on encoding
        vectors, times = await self._vectors(collection, request.items, convert.deadline(context))
        encoded = time.monotonic()
        written = await collection.upsert(items, vectors)
        return pb.UpsertItemsResponse(
            sequence=written.sequence,
            inserted_count=written.inserted,
            replaced_count=written.replaced,
            fingerprint=collection.fingerprint,
            times=convert.stage_times(
                started,
                decode=times.decode,
                tokenise=times.tokenise,
                queue=times.queue,
                infer=times.infer,
                write=time.monotonic() - encoded,
            ),
        )

    async def _vectors(
        self, collection: Collection, items: Sequence[pb.Item], deadline: float | None
    ) -> tuple[convert.Vectors, Times]:
        """A normalised vector for each item: given, or made by the collection's encoder in the bulk lane."""
        vectors = np.empty((len(items), collection.dimension), np.float32)
        sources: dict[int, str | bytes] = {}
        for index, item in enumerate(items):
            match item.WhichOneof("source"):
                case "vector":
                    field = f"items[{index}].vector"
                    vectors[index] = collection.normalised(convert.vector(item.vector, field), field)
                case "text":
                    sources[index] = item.text
                case "image":
                    sources[index] = item.image
                case _:
                    raise InvalidArgument("set text, image or vector", field=f"items[{index}]")
        if not sources:
            return vectors, Times()
        encoder = self._encoders.of_fingerprint(collection.encoder, collection.fingerprint)
        embedded = await encoder.embed(list(sources.values()), lane=Lane.BULK, deadline=deadline)
        positions = list(sources)
        for position, error in sorted(embedded.errors.items()):
            index = positions[position]
            kind = "text" if isinstance(sources[index], str) else "image"
            raise error.at(f"items[{index}].{kind}")
        vectors[positions] = embedded.vectors
        return vectors, embedded.times

    async def GetItems(self, request: pb.GetItemsRequest, context: Context) -> pb.GetItemsResponse:
        member = convert.vector_format(request.vector_format)
        collection = self._collections.get(request.collection)
        found = await collection.get_items(list(request.ids), include_vectors=request.include_vectors)
        return pb.GetItemsResponse(
            items=map(stored, found.items),
            vectors=None if found.vectors is None else convert.matrix(found.vectors, member),
            missing_ids=found.missing,
        )

    async def DeleteItems(self, request: pb.DeleteItemsRequest, context: Context) -> pb.DeleteItemsResponse:
        deleted = await self._collections.get(request.collection).delete_items(list(request.ids))
        return pb.DeleteItemsResponse(sequence=deleted.sequence, deleted_count=deleted.count)

    async def ListItems(self, request: pb.ListItemsRequest, context: Context) -> pb.ListItemsResponse:
        collection = self._collections.get(request.collection)
        selected = filters.from_message(request.filter) if request.HasField("filter") else None
        page = await collection.list_items(selected, page_size=request.page_size, page_token=request.page_token)
        return pb.ListItemsResponse(items=map(stored, page.items), next_page_token=page.next_page_token)

    async def CountItems(self, request: pb.CountItemsRequest, context: Context) -> pb.CountItemsResponse:
        collection = self._collections.get(request.collection)
        selected = filters.from_message(request.filter) if request.HasField("filter") else None
        return pb.CountItemsResponse(count=await collection.count(selected))


def stored(item: StoredItem) -> pb.StoredItem:
    """The message of an item as it is kept."""
    return pb.StoredItem(id=item.id, payload=item.payload, sequence=item.sequence)
