"""The calls of CollectionService."""

from collections.abc import Mapping
from datetime import UTC

from lookwire.calls.call import Call, Page
from lookwire.types import Collection, FieldType
from lookwire.v1 import collection_service_pb2 as pb


def create_collection(name: str, fields: Mapping[str, FieldType | str], encoder: str) -> Call[Collection]:
    """Asks for a new, empty collection. Raises ValueError for an unknown field type."""
    messages = [
        pb.Field(name=field, type=pb.FieldType.Value(f"FIELD_TYPE_{FieldType(type).name}"))
        for field, type in fields.items()
    ]

    def parse(response: pb.CreateCollectionResponse) -> Collection:
        return _collection(response.collection)

    return Call("CreateCollection", pb.CreateCollectionRequest(name=name, encoder=encoder, fields=messages), parse)


def get_collection(name: str) -> Call[Collection]:
    """Asks for one collection."""

    def parse(response: pb.GetCollectionResponse) -> Collection:
        return _collection(response.collection)

    return Call("GetCollection", pb.GetCollectionRequest(name=name), parse)


def list_collections(page_token: str) -> Call[Page[Collection]]:
    """Asks for a page of collections."""

    def parse(response: pb.ListCollectionsResponse) -> Page[Collection]:
        return Page(tuple(_collection(message) for message in response.collections), response.next_page_token)

    return Call("ListCollections", pb.ListCollectionsRequest(page_token=page_token), parse)


def delete_collection(name: str) -> Call[None]:
    """Asks for a collection's removal."""

    def parse(response: pb.DeleteCollectionResponse) -> None:
        return None

    return Call("DeleteCollection", pb.DeleteCollectionRequest(name=name), parse)


def _collection(message: pb.Collection) -> Collection:
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
    )
