from datetime import UTC, datetime

import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc.status_pb2 import Status

from lookwire import Client, Collection, FieldType, IndexKind, IndexSettings, errors
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
    aliases=["a", "b"],
    index=pb.IndexSettings(kind=pb.INDEX_KIND_IVF, target_recall=0.9),
    keeps_sources=True,
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
        aliases=("a", "b"),
        index=IndexSettings(IndexKind.IVF, 0.9),
        keeps_sources=True,
    )


def test_create_collection_says_how_it_is_indexed(client: Client, server: FakeServer) -> None:
    """Settings of the index and the wish to keep sources go along; the kind is a member or a word."""
    server.reply(*[pb.CreateCollectionResponse(collection=SHOP)] * 2)

    client.create_collection("shop", index=IndexSettings("hnsw", 0.75), keep_sources=True)
    client.create_collection("shop", index=IndexSettings(target_recall=0.5))

    assert server.requests == [
        pb.CreateCollectionRequest(
            name="shop", index=pb.IndexSettings(kind=pb.INDEX_KIND_HNSW, target_recall=0.75), keep_sources=True
        ),
        pb.CreateCollectionRequest(name="shop", index=pb.IndexSettings(target_recall=0.5)),
    ]
    with pytest.raises(ValueError, match="'tree' is not a valid IndexKind"):
        client.create_collection("shop", index=IndexSettings("tree"))
    with pytest.raises(TypeError, match=r"^index is a lookwire\.IndexSettings, not str$"):
        client.update_collection("shop", index="hnsw")  # type: ignore[arg-type]


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


def test_update_collection(client: Client, server: FakeServer) -> None:
    """What is left out is not sent, so that it stays; no fields at all are an empty list."""
    server.reply(*[pb.UpdateCollectionResponse(collection=SHOP)] * 3)

    client.update_collection("shop", fields={"stock": "int64"}, index=IndexSettings("exact"))
    client.update_collection("shop", fields={})
    shop = client.update_collection("shop")

    stock = pb.Field(name="stock", type=pb.FIELD_TYPE_INT64)
    assert server.requests == [
        pb.UpdateCollectionRequest(
            name="shop",
            fields=pb.FieldList(fields=[stock]),
            index=pb.IndexSettings(kind=pb.INDEX_KIND_EXACT, target_recall=0.98),
        ),
        pb.UpdateCollectionRequest(name="shop", fields=pb.FieldList()),
        pb.UpdateCollectionRequest(name="shop"),
    ]
    assert shop.aliases == ("a", "b")


def test_collection_statistics(client: Client, server: FakeServer) -> None:
    """Figures come as they are; a recall that was not measured is None, a kind that the client does not know its number."""
    reply = pb.GetCollectionStatisticsResponse(
        item_count=5,
        vector_bytes=70,
        row_bytes=30,
        bytes_per_item=20,
        kind=pb.INDEX_KIND_IVF,
        near_recall=0.5,
        building=True,
    )
    server.reply(reply)
    reply.kind = 77  # type: ignore[assignment]
    server.reply(reply)

    statistics = client.collection_statistics("shop")
    newer = client.collection_statistics("shop")

    assert server.requests[0] == pb.GetCollectionStatisticsRequest(name="shop")
    assert (statistics.item_count, statistics.bytes_per_item, statistics.building) == (5, 20, True)
    assert (statistics.near_recall, statistics.far_recall) == (0.5, None)
    assert newer.kind == "77"


def test_aliases(client: Client, server: FakeServer) -> None:
    """An alias is set with its collection, which comes back, and removed by its name."""
    server.reply(pb.SetAliasResponse(collection=SHOP), pb.DeleteAliasResponse())

    shop = client.set_alias("a", "shop")
    client.delete_alias("a")

    assert shop.name == "shop"
    assert server.requests == [pb.SetAliasRequest(alias="a", collection="shop"), pb.DeleteAliasRequest(alias="a")]


def test_reembed_collection(client: Client, server: FakeServer) -> None:
    """Progress is yielded to the last, a failure is raised, and there is no timeout unless one is given."""
    first = pb.ReembedCollectionResponse(copied_count=1, item_count=2)
    server.reply(first, pb.ReembedCollectionResponse(copied_count=2, item_count=2, done=True))

    steps = list(client.reembed_collection("shop", "shop-2", "large", alias="a"))
    server.reply(first, Status(code=9, message="item 'a' has no source"))
    with pytest.raises(errors.FailedPrecondition, match="item 'a'"):
        list(client.reembed_collection("shop", "shop-2", "large", timeout=20))

    assert [(step.copied_count, step.item_count, step.done) for step in steps] == [(1, 2, False), (2, 2, True)]
    assert server.requests[0] == pb.ReembedCollectionRequest(name="shop", target="shop-2", encoder="large", alias="a")
    assert [left > 20.5 if left else True for left in server.seconds_left] == [True, False]
