"""CollectionService."""

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from functools import partial
from typing import Any

import grpc

from lookwire.v1 import collection_service_pb2 as pb
from lookwire.v1 import collection_service_pb2_grpc
from lookwire_server.encoding.encoders import Encoders
from lookwire_server.errors import FailedPrecondition, InvalidArgument
from lookwire_server.lanes import Lane
from lookwire_server.search import pages
from lookwire_server.search.collection import Collection
from lookwire_server.search.collections import Collections, Reembedded
from lookwire_server.search.fields import Field, FieldType
from lookwire_server.search.store.collections import (
    DEFAULT_TARGET_RECALL,
    IndexKind,
    IndexSettings,
    NewCollection,
)

# What binds a page token to this list.
SCOPE = "collections"
TYPES = {
    pb.FIELD_TYPE_STRING: FieldType.STRING,
    pb.FIELD_TYPE_INT64: FieldType.INT64,
    pb.FIELD_TYPE_DOUBLE: FieldType.DOUBLE,
    pb.FIELD_TYPE_BOOL: FieldType.BOOL,
    pb.FIELD_TYPE_GEO_POINT: FieldType.GEO_POINT,
    pb.FIELD_TYPE_TEXT: FieldType.TEXT,
    pb.FIELD_TYPE_TIMESTAMP: FieldType.TIMESTAMP,
}
KINDS = {
    pb.INDEX_KIND_UNSPECIFIED: IndexKind.AUTOMATIC,
    pb.INDEX_KIND_EXACT: IndexKind.EXACT,
    pb.INDEX_KIND_IVF: IndexKind.IVF,
    pb.INDEX_KIND_HNSW: IndexKind.HNSW,
}
KINDS_OF = {kind: message for message, kind in KINDS.items()}
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
        collection = await self._collections.create(
            NewCollection(
                request.name,
                encoder.name,
                encoder.fingerprint,
                encoder.dimension,
                all_declared(request.fields, "fields"),
                settings(request.index),
                request.keep_sources,
            )
        )
        return pb.CreateCollectionResponse(collection=describe(collection))

    async def GetCollection(self, request: pb.GetCollectionRequest, context: Context) -> pb.GetCollectionResponse:
        return pb.GetCollectionResponse(collection=describe(self._collections.get(request.name, "name")))

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

    async def UpdateCollection(
        self, request: pb.UpdateCollectionRequest, context: Context
    ) -> pb.UpdateCollectionResponse:
        given = request.HasField("fields")
        try:
            collection = await self._collections.update(
                request.name,
                all_declared(request.fields.fields, "fields") if given else None,
                settings(request.index) if request.HasField("index") else None,
            )
        except (InvalidArgument, FailedPrecondition) as error:
            # The list is a message of its own here.
            raise error.at(f"fields.{error.field}" if error.field.startswith("fields") else error.field) from error
        return pb.UpdateCollectionResponse(collection=describe(collection))

    async def GetCollectionStatistics(
        self, request: pb.GetCollectionStatisticsRequest, context: Context
    ) -> pb.GetCollectionStatisticsResponse:
        statistics = await self._collections.get(request.name, "name").statistics()
        return pb.GetCollectionStatisticsResponse(
            item_count=statistics.item_count,
            sequence=statistics.sequence,
            vector_bytes=statistics.vector_bytes,
            row_bytes=statistics.row_bytes,
            bytes_per_item=statistics.bytes_per_item,
            disk_bytes=statistics.disk_bytes,
            kind=KINDS_OF[statistics.kind],
            generation=statistics.generation,
            indexed_count=statistics.indexed_count,
            unindexed_count=statistics.unindexed_count,
            dead_count=statistics.dead_count,
            near_recall=statistics.near_recall or 0.0,
            far_recall=statistics.far_recall or 0.0,
            building=statistics.building,
        )

    async def SetAlias(self, request: pb.SetAliasRequest, context: Context) -> pb.SetAliasResponse:
        collection = await self._collections.set_alias(request.alias, request.collection)
        return pb.SetAliasResponse(collection=describe(collection))

    async def DeleteAlias(self, request: pb.DeleteAliasRequest, context: Context) -> pb.DeleteAliasResponse:
        await self._collections.remove_alias(request.alias)
        return pb.DeleteAliasResponse()

    async def ReembedCollection(
        self, request: pb.ReembedCollectionRequest, context: Context
    ) -> AsyncGenerator[pb.ReembedCollectionResponse, None]:
        encoder = self._encoders.get(request.encoder)
        reembedding = await self._collections.reembed(
            request.name,
            Reembedded(request.target, encoder.name, encoder.fingerprint, encoder.dimension),
            request.alias,
            partial(encoder.embed, lane=Lane.BULK),
        )
        async with aclosing(reembedding.run()) as steps:
            async for step in steps:
                yield pb.ReembedCollectionResponse(
                    copied_count=step.copied_count, item_count=step.item_count, done=step.done
                )


def all_declared(messages: Sequence[pb.Field], path: str) -> tuple[Field, ...]:
    """The declared fields of messages."""
    return tuple(declared(message, f"{path}[{index}]") for index, message in enumerate(messages))


def declared(message: pb.Field, path: str) -> Field:
    """The declared field of a message."""
    if message.type not in TYPES:
        raise InvalidArgument(
            f"field '{message.name}' must have one of the types {', '.join(TYPES.values())}", field=f"{path}.type"
        )
    return Field(message.name, TYPES[message.type])


def settings(message: pb.IndexSettings) -> IndexSettings:
    """The settings of an index, with the default where none is set."""
    if message.kind not in KINDS:
        raise InvalidArgument(f"{message.kind} is no IndexKind", field="index.kind")
    # A float of the message has 24 bits: 0.98 came as 0.9800000190734863.
    return IndexSettings(KINDS[message.kind], round(message.target_recall, 6) or DEFAULT_TARGET_RECALL)


def describe(collection: Collection) -> pb.Collection:
    """The message that describes a collection."""
    message = pb.Collection(
        name=collection.name,
        encoder=collection.row.encoder,
        fingerprint=collection.row.fingerprint,
        dimension=collection.row.dimension,
        fields=[pb.Field(name=field.name, type=MESSAGES[field.type]) for field in collection.row.fields],
        item_count=collection.item_count,
        sequence=collection.sequence,
        aliases=collection.aliases,
        index=pb.IndexSettings(
            kind=KINDS_OF[collection.row.index.kind], target_recall=collection.row.index.target_recall
        ),
        keeps_sources=collection.row.keeps_sources,
    )
    message.create_time.FromDatetime(collection.row.created)
    return message
