from datetime import UTC, datetime

import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from lookwire import Client, Collection, FieldType
from lookwire.v1 import collection_service_pb2 as pb
from tests.client.fake_server import FakeServer

SHOP = pb.Collection(
    name="shop",
    encoder="small",
    fingerprint="ab" * 16,
    dimension=2,
    fields=[
        pb.Field(name="colour", type=pb.FIELD_TYPE_STRING),
        pb.Field(name="stock", type=pb.FIELD_TYPE_INT64),
        pb.Field(name="price", type=pb.FIELD_TYPE_DOUBLE),
        pb.Field(name="new", type=pb.FIELD_TYPE_BOOL),
        pb.Field(name="place", type=pb.FIELD_TYPE_GEO_POINT),
    ],
    item_count=5,
    sequence=7,
    create_time=Timestamp(seconds=1_700_000_000, nanos=500_000_000),
)
FIELDS = {
    "colour": FieldType.STRING,
    "stock": FieldType.INT64,
    "price": FieldType.DOUBLE,
    "new": FieldType.BOOL,
    "place": FieldType.GEO_POINT,
}


def test_create_collection(client: Client, server: FakeServer) -> None:
    """Field types are given as members or as words, and the new collection comes back."""
    server.reply(pb.CreateCollectionResponse(collection=SHOP))

    shop = client.create_collection("shop", FIELDS | {"stock": "int64", "place": "geo_point"}, encoder="small")

    assert server.requests == [pb.CreateCollectionRequest(name="shop", encoder="small", fields=SHOP.fields)]
    assert shop == Collection(
        name="shop",
        encoder="small",
        fingerprint="ab" * 16,
        dimension=2,
        fields=FIELDS,
        item_count=5,
        sequence=7,
        create_time=datetime(2023, 11, 14, 22, 13, 20, 500_000, tzinfo=UTC),
    )


def test_create_collection_refuses_an_unknown_type(client: Client, server: FakeServer) -> None:
    """A field type that does not exist never reaches the server."""
    with pytest.raises(ValueError, match="'number' is not a valid FieldType"):
        client.create_collection("shop", {"price": "number"})

    assert server.requests == []


def test_get_collection(client: Client, server: FakeServer) -> None:
    """A collection is asked for by its name."""
    server.reply(pb.GetCollectionResponse(collection=SHOP))

    shop = client.get_collection("shop")

    assert server.requests == [pb.GetCollectionRequest(name="shop")]
    assert shop.item_count == 5


def test_list_collections_reads_every_page(client: Client, server: FakeServer) -> None:
    """Pages are asked for until there is no next, each with the token of the page before."""
    pages = [("a", "b"), (), ("c",)]
    for names, token in zip(pages, ("t1", "t2", ""), strict=True):
        page = [pb.Collection(name=name) for name in names]
        server.reply(pb.ListCollectionsResponse(collections=page, next_page_token=token))

    collections = client.list_collections()

    assert [each.name for each in collections] == ["a", "b", "c"]
    assert server.requests == [
        pb.ListCollectionsRequest(),
        pb.ListCollectionsRequest(page_token="t1"),
        pb.ListCollectionsRequest(page_token="t2"),
    ]


def test_delete_collection(client: Client, server: FakeServer) -> None:
    """A collection is deleted by its name."""
    server.reply(pb.DeleteCollectionResponse())

    client.delete_collection("shop")

    assert server.requests == [pb.DeleteCollectionRequest(name="shop")]
