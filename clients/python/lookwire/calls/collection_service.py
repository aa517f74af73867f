"""The calls of CollectionService."""

from collections.abc import Mapping
from datetime import UTC

from lookwire.calls.call import Call, Page
from lookwire.types import (
    Collection,
    CollectionStatistics,
    FieldType,
    IndexKind,
    IndexSettings,
    ReembedProgress,
)
from lookwire.v1 import collection_service_pb2 as pb


def create_collection(
    name: str, fields: Mapping[str, FieldType | str], encoder: str, index: IndexSettings | None, *, keep_sources: bool
) -> Call[Collection]:
    """Asks for a new, empty collection. Raises ValueError for an unknown field type or kind of index."""

    def parse(response: pb.CreateCollectionResponse) -> Collection:
        return read_collection(response.collection)

    request = pb.CreateCollectionRequest(
        name=name, encoder=encoder, fields=_fields(fields), index=_index(index), keep_sources=keep_sources
    )
    return Call("CreateCollection", request, parse)


def get_collection(name: str) -> Call[Collection]:
    """Asks for one collection."""

    def parse(response: pb.GetCollectionResponse) -> Collection:
        return read_collection(response.collection)

    return Call("GetCollection", pb.GetCollectionRequest(name=name), parse)


def list_collections(page_token: str) -> Call[Page[Collection]]:
    """Asks for a page of collections."""

    def parse(response: pb.ListCollectionsResponse) -> Page[Collection]:
        return Page(tuple(read_collection(message) for message in response.collections), response.next_page_token)

    return Call("ListCollections", pb.ListCollectionsRequest(page_token=page_token), parse)


def delete_collection(name: str) -> Call[None]:
    """Asks for a collection's removal."""

    def parse(response: pb.DeleteCollectionResponse) -> None:
        return None

    return Call("DeleteCollection", pb.DeleteCollectionRequest(name=name), parse)


def update_collection(
    name: str, fields: Mapping[str, FieldType | str] | None, index: IndexSettings | None
) -> Call[Collection]:
    """Asks for other declarations; None leaves them. Raises ValueError for an unknown field type or kind of index."""

    def parse(response: pb.UpdateCollectionResponse) -> Collection:
        return read_collection(response.collection)

    given = None if fields is None else pb.FieldList(fields=_fields(fields))
    return Call("UpdateCollection", pb.UpdateCollectionRequest(name=name, fields=given, index=_index(index)), parse)


def collection_statistics(name: str) -> Call[CollectionStatistics]:
    """Asks for figures about a collection."""

    def parse(response: pb.GetCollectionStatisticsResponse) -> CollectionStatistics:
        return CollectionStatistics(
            item_count=response.item_count,
            sequence=response.sequence,
            vector_bytes=response.vector_bytes,
            row_bytes=response.row_bytes,
            bytes_per_item=response.bytes_per_item,
            disk_bytes=response.disk_bytes,
            kind=_kind(response.kind),
            generation=response.generation,
            indexed_count=response.indexed_count,
            unindexed_count=response.unindexed_count,
            dead_count=response.dead_count,
            near_recall=response.near_recall or None,
            far_recall=response.far_recall or None,
            building=response.building,
        )

    return Call("GetCollectionStatistics", pb.GetCollectionStatisticsRequest(name=name), parse)


def set_alias(alias: str, collection: str) -> Call[Collection]:
    """Asks for an alias to name a collection."""

    def parse(response: pb.SetAliasResponse) -> Collection:
        return read_collection(response.collection)

    return Call("SetAlias", pb.SetAliasRequest(alias=alias, collection=collection), parse)


def delete_alias(alias: str) -> Call[None]:
    """Asks for an alias's removal."""

    def parse(response: pb.DeleteAliasResponse) -> None:
        return None

    return Call("DeleteAlias", pb.DeleteAliasRequest(alias=alias), parse)


def reembed_collection(name: str, target: str, encoder: str, alias: str) -> Call[ReembedProgress]:
    """Asks for a copy of a collection by another encoder; `parse` reads each reply of the stream."""

    def parse(response: pb.ReembedCollectionResponse) -> ReembedProgress:
        return ReembedProgress(response.copied_count, response.item_count, response.done)

    request = pb.ReembedCollectionRequest(name=name, target=target, encoder=encoder, alias=alias)
    return Call("ReembedCollection", request, parse)


def _fields(fields: Mapping[str, FieldType | str]) -> list[pb.Field]:
    return [
        pb.Field(name=name, type=pb.FieldType.Value(f"FIELD_TYPE_{FieldType(type).name}"))
        for name, type in fields.items()
    ]


def _index(settings: IndexSettings | None) -> pb.IndexSettings | None:
    if settings is None:
        return None
    if not isinstance(settings, IndexSettings):
        raise TypeError(f"index is a lookwire.IndexSettings, not {type(settings).__name__}")
    kind = IndexKind(settings.kind)
    name = "UNSPECIFIED" if kind is IndexKind.AUTOMATIC else kind.name
    return pb.IndexSettings(kind=pb.IndexKind.Value(f"INDEX_KIND_{name}"), target_recall=settings.target_recall)


def _kind(value: int) -> IndexKind | str:
    known = pb.IndexKind.DESCRIPTOR.values_by_number.get(value)
    if known is None:
        return str(value)  # of a newer server
    return IndexKind[known.name.removeprefix("INDEX_KIND_")] if value else IndexKind.AUTOMATIC


def read_collection(message: pb.Collection) -> Collection:
    """Returns what a message says of a collection."""
    return Collection(
        name=message.name,
        encoder=message.encoder,
        fingerprint=message.fingerprint,
        dimension=message.dimension,
        fields={
            field.name: FieldType[pb.FieldType.Name(field.type).removeprefix("FIELD_TYPE_")] for field in message.fields
        },
        item_count=message.item_count,
        sequence=message.sequence,
        create_time=message.create_time.ToDatetime(UTC),
        aliases=tuple(message.aliases),
        # A float of the message has 24 bits: 0.98 comes as 0.9800000190734863.
        index=IndexSettings(_kind(message.index.kind), round(message.index.target_recall, 6)),
        keeps_sources=message.keeps_sources,
    )
