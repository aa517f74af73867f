"""CollectionService."""

from typing import Any

import grpc

from lookwire.v1 import collection_service_pb2 as pb
from lookwire.v1 import collection_service_pb2_grpc
from lookwire_server.encoding.encoders import Encoders
from lookwire_server.errors import InvalidArgument
from lookwire_server.search import pages
from lookwire_server.search.collection import Collection
from lookwire_server.search.collections import Collections
from lookwire_server.search.fields import Field, FieldType

# What binds a page token to this list.
SCOPE = "collections"
TYPES = {
    pb.FIELD_TYPE_STRING: FieldType.STRING,
    pb.FIELD_TYPE_INT64: FieldType.INT64,
    pb.FIELD_TYPE_DOUBLE: FieldType.DOUBLE,
    pb.FIELD_TYPE_BOOL: FieldType.BOOL,
    pb.FIELD_TYPE_GEO_POINT: FieldType.GEO_POINT,
}
MESSAGES = {type: message for message, type in TYPES.items()}

Context = grpc.aio.ServicerContext[Any, Any]


class CollectionServicer(collection_service_pb2_grpc.CollectionServiceServicer):
    """Makes, describes and removes collections."""

    def __init__(self, collections: Collections, encoders: Encoders) -> None:
        self._collections = collections
        self._encoders = encoders

    async def CreateCollection(
        self, request: pb.CreateCollectionRequest, context: Context
    ) -> pb.CreateCollectionResponse:
        encoder = self._encoders.get(request.encoder)
        fields = [declared(field, f"fields[{index}]") for index, field in enumerate(request.fields)]
        collection = await self._collections.create(
            request.name, encoder.name, encoder.fingerprint, encoder.dimension, fields
        )
        return pb.CreateCollectionResponse(collection=describe(collection))

    async def GetCollection(self, request: pb.GetCollectionRequest, context: Context) -> pb.GetCollectionResponse:
        return pb.GetCollectionResponse(collection=describe(self._collections.get(request.name)))

    async def ListCollections(self, request: pb.ListCollectionsRequest, context: Context) -> pb.ListCollectionsResponse:
        size = pages.members_on_page(request.page_size)
        after = pages.last_id(request.page_token, SCOPE)
        rest = [collection for collection in self._collections.list() if collection.name > after]
        page = rest[:size]
        return pb.ListCollectionsResponse(
            collections=map(describe, page),
            next_page_token=pages.token_after(page[-1].name, SCOPE) if len(rest) > size else "",
        )

    async def DeleteCollection(
        self, request: pb.DeleteCollectionRequest, context: Context
    ) -> pb.DeleteCollectionResponse:
        await self._collections.delete(request.name)
        return pb.DeleteCollectionResponse()


def declared(message: pb.Field, path: str) -> Field:
    """The declared field of a message."""
    if message.type not in TYPES:
        raise InvalidArgument(
            f"field '{message.name}' must have one of the types {', '.join(TYPES.values())}", field=f"{path}.type"
        )
    return Field(message.name, TYPES[message.type])


def describe(collection: Collection) -> pb.Collection:
    """The message that describes a collection."""
    message = pb.Collection(
        name=collection.name,
        encoder=collection.encoder,
        fingerprint=collection.fingerprint,
        dimension=collection.dimension,
        fields=[pb.Field(name=field.name, type=MESSAGES[field.type]) for field in collection.fields],
        item_count=collection.item_count,
        sequence=collection.sequence,
    )
    message.create_time.FromDatetime(collection.created)
    return message
