"""Collections through the front door."""

import io
import urllib.request
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from PIL import Image

from lookwire import Client, FieldType, IndexKind, IndexSettings, Item, errors, field
from lookwire.local import LocalServer
from lookwire.v1 import collection_service_pb2 as pb
from lookwire.v1 import collection_service_pb2_grpc
from tests.conftest import MODEL_REPOSITORY


def test_collections_are_listed_page_by_page(client: Client) -> None:
    """Pages of two give every collection once, in the order of names; a token of another list is refused."""
    names = [f"paged-{letter}" for letter in "caebd"]
    for name in names:
        client.create_collection(name)
    stub = collection_service_pb2_grpc.CollectionServiceStub(client._channel)
    listed: list[str] = []
    token = ""

    while True:
        page = stub.ListCollections(pb.ListCollectionsRequest(page_size=2, page_token=token))
        listed += [collection.name for collection in page.collections]
        token = page.next_page_token
        assert len(page.collections) <= 2
        if not token:
            break

    assert listed == sorted(listed)
    assert [name for name in listed if name.startswith("paged-")] == sorted(names)
    for name in names:
        client.delete_collection(name)
    assert not {collection.name for collection in client.list_collections()} & set(names)


@pytest.mark.parametrize("wrong", [{"page_size": -1}, {"page_token": "nonsense"}])
def test_wrong_page_of_collections_is_explained(client: Client, wrong: dict[str, object]) -> None:
    """A negative page size and a token of no page are INVALID_ARGUMENT, and name the field."""
    stub = collection_service_pb2_grpc.CollectionServiceStub(client._channel)

    with pytest.raises(grpc.RpcError) as failure:
        stub.ListCollections(pb.ListCollectionsRequest(**wrong))  # type: ignore[arg-type]

    error = errors.from_rpc(failure.value)
    assert isinstance(error, errors.InvalidArgument)
    assert [violation.field for violation in error.violations] == list(wrong)


def test_declarations_come_back(client: Client) -> None:
    """What a collection is created and updated with is what it tells, and what is left out stays."""
    name = "declared"
    created = client.create_collection(name, {"a": "string"}, index=IndexSettings("ivf", 0.9), keep_sources=True)

    updated = client.update_collection(name, fields={"b": "int64", "a": "string"})
    again = client.update_collection(name, index=IndexSettings("hnsw"))

    assert (created.index, created.keeps_sources) == (IndexSettings(IndexKind.IVF, 0.9), True)
    assert (updated.fields, updated.index) == ({"b": FieldType.INT64, "a": FieldType.STRING}, created.index)
    assert (again.fields, again.index) == (updated.fields, IndexSettings(IndexKind.HNSW, 0.98))
    assert client.get_collection(name) == again
    client.delete_collection(name)


def test_alias_is_a_name_for_every_call(client: Client, collection: str) -> None:
    """Items are written, counted, found and removed by an alias, which moves to another collection at once."""
    other = client.create_collection(f"{collection}-2")
    shop = client.set_alias("the-shop", collection)

    client.upsert("the-shop", [Item("green", {"kind": "coat"}, text="a green coat")])
    found = client.search("the-shop", text="a green coat", filter=field("kind") == "coat")
    client.set_alias("the-shop", other.name)

    assert shop.aliases == ("the-shop",)
    assert [hit.id for hit in found.hits] == ["green"]
    assert client.get_collection(collection).aliases == ()
    assert (client.count_items("the-shop"), client.count_items(collection)) == (0, 4)
    client.delete_alias("the-shop")
    with pytest.raises(errors.NotFound):
        client.count_items("the-shop")
    client.delete_collection(other.name)


def test_update_that_does_not_fit_names_the_item(client: Client, collection: str) -> None:
    """A field of a type that an item's payload contradicts is FAILED_PRECONDITION with the item, and filters go on as before."""
    with pytest.raises(errors.FailedPrecondition, match="'kind' must be an integer") as failure:
        client.update_collection(collection, fields={"stock": "int64", "kind": "int64"})

    assert failure.value.metadata["item"] in ("red", "blue", "hat")
    assert failure.value.metadata["payload_field"] == "kind"
    assert [violation.field for violation in failure.value.violations] == ["fields.fields[1]"]
    assert client.count_items(collection, filter=field("price") < 50) == 1


@pytest.mark.parametrize(("message", "field"), [
    (pb.UpdateCollectionRequest(fields=pb.FieldList(fields=[pb.Field(name="a")])), "fields.fields[0].type"),
    (pb.UpdateCollectionRequest(fields=pb.FieldList(fields=[pb.Field(type=pb.FIELD_TYPE_BOOL)])), "fields.fields[0].name"),
    (pb.UpdateCollectionRequest(index=pb.IndexSettings(kind=9)), "index.kind"),  # type: ignore[arg-type]
    (pb.UpdateCollectionRequest(index=pb.IndexSettings(target_recall=1.1)), "index.target_recall"),
    (pb.SetAliasRequest(alias="a b"), "alias"),
    (pb.ReembedCollectionRequest(target="", encoder="garments"), "target"),
    (pb.ReembedCollectionRequest(target="new", encoder="garments", alias="-"), "alias"),
])  # fmt: skip
def test_wrong_request_names_its_field(client: Client, collection: str, message: Any, field: str) -> None:
    """What a request has wrong is INVALID_ARGUMENT, with the path of the field."""
    if isinstance(message, pb.SetAliasRequest):
        message.collection = collection
    else:
        message.name = collection
    stub = collection_service_pb2_grpc.CollectionServiceStub(client._channel)
    method: dict[str, Any] = {
        "Upd": stub.UpdateCollection,
        "Set": stub.SetAlias,
        "Ree": lambda m: list(stub.ReembedCollection(m)),
    }

    with pytest.raises(grpc.RpcError) as failure:
        method[type(message).__name__[:3]](message)

    error = errors.from_rpc(failure.value)
    assert isinstance(error, errors.InvalidArgument)
    assert [violation.field for violation in error.violations] == [field]


def test_statistics_are_those_of_the_items(client: Client, server: LocalServer, collection: str) -> None:
    """A small collection is exact, has no files, and the metrics tell the same bytes."""
    statistics = client.collection_statistics(collection)
    scraped = urllib.request.urlopen(f"http://{server.metrics_address}/metrics").read().decode()

    assert (statistics.item_count, statistics.unindexed_count, statistics.indexed_count) == (3, 3, 0)
    assert (statistics.kind, statistics.far_recall, statistics.disk_bytes) == (IndexKind.EXACT, 1, 0)
    assert statistics.vector_bytes >= 3 * 64 * 2
    assert statistics.bytes_per_item == pytest.approx((statistics.vector_bytes + statistics.row_bytes) / 3)
    for part, value in (("vectors", statistics.vector_bytes), ("rows", statistics.row_bytes), ("disk", 0)):
        assert f'lookwire_collection_bytes{{collection="{collection}",part="{part}"}} {value:.1f}' in scraped
    assert f'lookwire_collection_recall{{collection="{collection}",direction="far"}} 1.0' in scraped


def test_reembedding_makes_the_collection_of_another_encoder(encoders_client: Client) -> None:
    """Texts and images are embedded by the other encoder, payloads stay, the alias follows, and the old collection serves on."""
    client = encoders_client
    client.create_collection("kept", {"n": "int64"}, encoder="garments", keep_sources=True)
    client.set_alias("current", "kept")
    items = [Item(f"t{n}", {"n": n}, text="a" if n % 2 else "a a a a") for n in range(100)]
    client.upsert("kept", [*items, Item("image", {"n": 100}, image=picture())])

    steps = list(client.reembed_collection("kept", "kept-2", "opposite", alias="current"))

    new = client.get_collection("current")
    assert (new.name, new.encoder, new.item_count, new.aliases) == ("kept-2", "opposite", 101, ("current",))
    assert (steps[-1].copied_count, steps[-1].item_count, steps[-1].done) == (101, 101, True)
    stored = client.get_items("kept-2", ["t1", "t2", "image"], include_vectors=True)
    expected = client.embed(["a", "a a a a"], [picture()], encoder="opposite").vectors
    np.testing.assert_allclose(
        np.stack([item.vector for item in stored if item.vector is not None]), expected, atol=1e-5
    )
    assert [item.payload for item in stored] == [{"n": 1}, {"n": 2}, {"n": 100}]
    assert (
        client.count_items("kept", filter=field("n") >= 99)
        == client.count_items("current", filter=field("n") >= 99)
        == 2
    )
    for name in ("kept", "kept-2"):
        client.delete_collection(name)


def test_reembedding_says_what_it_cannot_do(encoders_client: Client) -> None:
    """An encoder without the tower that an item needs, and a collection without sources, end the call with their reasons."""
    client = encoders_client
    client.create_collection("texts", encoder="garments", keep_sources=True)
    client.upsert("texts", [Item("shirt", text="a shirt")])
    client.create_collection("bare", encoder="garments")

    with pytest.raises(
        errors.FailedPrecondition,
        match="item 'shirt' of collection 'texts' cannot be embedded: encoder 'blind' has no text tower",
    ):
        list(client.reembed_collection("texts", "texts-2", "blind"))
    with pytest.raises(errors.FailedPrecondition, match="'bare' keeps no sources"):
        list(client.reembed_collection("bare", "bare-2", "opposite"))
    with pytest.raises(errors.NotFound, match="no encoder 'none'"):
        list(client.reembed_collection("texts", "texts-3", "none"))
    with pytest.raises(errors.AlreadyExists):
        list(client.reembed_collection("texts", "bare", "opposite"))
    for name in ("texts", "texts-2", "bare"):
        client.delete_collection(name)


def test_reembedding_goes_on_after_a_stop(tmp_path: Path) -> None:
    """A server that stops ends the stream with UNAVAILABLE and does not wait for it; the same call goes on from there."""
    server = LocalServer(MODEL_REPOSITORY, tmp_path / "data", embedding_cache_bytes=0)
    with server, Client(server.address) as client:
        client.create_collection("kept", keep_sources=True)
        client.upsert("kept", (Item(f"t{n}", text=f"a shirt of size {n}") for n in range(3_000)))
        given_up = client.reembed_collection("kept", "new", "garments", alias="current")
        next(given_up)
        given_up.close()  # type: ignore[attr-defined]
        steps = client.reembed_collection("kept", "new", "garments", alias="current")
        first = next(steps)
        server.process.terminate()
        with pytest.raises(errors.Unavailable):
            for _ in steps:
                pass
        assert server.process.wait(10) == 0
        assert first.copied_count >= 64
    with server, Client(server.address) as client:
        before = client.count_items("new")
        steps = client.reembed_collection("kept", "new", "garments", alias="current")
        assert next(steps).copied_count == before + 64
        assert list(steps)[-1].done
        assert client.count_items("current") == 3_000


def picture() -> bytes:
    """A red square as a PNG."""
    data = io.BytesIO()
    Image.new("RGB", (32, 32), "red").save(data, "png")
    return data.getvalue()
