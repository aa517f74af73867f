"""Items through the real client: conditional writes, changes of payloads, repeated requests, deletion by filter."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import numpy as np
import pytest

from lookwire import Client, Deleted, Item, PayloadUpdate, Upserted, errors, field
from lookwire.local import LocalServer
from lookwire.v1 import item_service_pb2 as pb
from lookwire.v1 import item_service_pb2_grpc
from lookwire.v1.filter_pb2 import ExistsCondition, Filter
from lookwire.v1.vector_pb2 import Vector


@pytest.fixture
def stub(server: LocalServer) -> Iterator[item_service_pb2_grpc.ItemServiceStub]:
    with grpc.insecure_channel(server.address) as channel:
        yield item_service_pb2_grpc.ItemServiceStub(channel)


def test_conditional_upsert(client: Client, collection: str) -> None:
    """An upsert that expects another version of an item is a Conflict that says which there is, and writes nothing."""
    [red] = client.get_items(collection, ["red"])

    with pytest.raises(errors.Conflict) as caught:
        client.upsert(collection, [Item("new", text="a hat"), Item("red", text="a hat", if_sequence=0)])
    written = client.upsert(collection, [Item("red", {"stock": 9}, text="a hat", if_sequence=red.sequence)])

    assert (caught.value.code, caught.value.reason) == (grpc.StatusCode.ABORTED, "CONFLICT")
    assert caught.value.metadata == {"item": "red", "sequence": f"{red.sequence}", "if_sequence": "0"}
    assert caught.value.violations[0].field == "items[1].if_sequence"
    assert written == Upserted(red.sequence + 1, inserted=0, replaced=1)
    assert client.count_items(collection) == 3


def test_payloads_are_changed_in_part(client: Client, collection: str) -> None:
    """A merge patch and a replacement change payloads and what filters find; vectors, and so searches, stay."""
    before = client.get_items(collection, ["red", "hat"], include_vectors=True)

    sequence = client.update_payloads(
        collection,
        [
            PayloadUpdate("red", merge_patch={"price": 30.0, "sale": None, "place": {"lat": 0.5}}),
            PayloadUpdate("hat", replacement={"kind": "cap"}, if_sequence=before[1].sequence),
        ],
    )

    red, hat = client.get_items(collection, ["red", "hat"], include_vectors=True)
    assert red.payload == {"kind": "dress", "price": 30.0, "stock": 3, "place": {"lat": 0.5, "lon": 13.4}}
    assert (hat.payload, hat.sequence) == ({"kind": "cap"}, sequence)
    for old, new in zip(before, (red, hat), strict=True):
        assert old.vector is not None
        assert new.vector is not None
        np.testing.assert_array_equal(old.vector, new.vector)
    assert client.search(collection, text="a plain red dress", filter=field("price") < 35).hits[0].id == "red"
    assert client.count_items(collection, filter=field("sale").exists()) == 1


def test_bad_payload_updates(client: Client, collection: str, stub: item_service_pb2_grpc.ItemServiceStub) -> None:
    """An unknown id, an unmet condition, a value of another type and an update of nothing are refused with their place."""
    good = PayloadUpdate("hat", merge_patch={"stock": 1})
    cases: list[tuple[PayloadUpdate, type[errors.LookwireError], str]] = [
        (PayloadUpdate("nobody", merge_patch={}), errors.NotFound, "updates[1].id"),
        (PayloadUpdate("red", merge_patch={}, if_sequence=77), errors.Conflict, "updates[1].if_sequence"),
        (PayloadUpdate("red", merge_patch={"stock": 0.5}), errors.InvalidArgument, "updates[1].merge_patch"),
        (PayloadUpdate("hat", replacement={}), errors.InvalidArgument, "updates[1].id"),
    ]
    for update, kind, path in cases:
        with pytest.raises(kind) as caught:
            client.update_payloads(collection, [good, update])
        assert caught.value.violations[0].field == path

    for update_message, message in (
        (pb.PayloadUpdate(id="hat"), r"updates\[0\]: set replacement or merge_patch"),
        (pb.PayloadUpdate(id="hat", merge_patch=b"[1]"), r"updates\[0\].merge_patch: .* not a JSON object"),
    ):
        with pytest.raises(grpc.RpcError, match=message):
            stub.UpdatePayloads(pb.UpdatePayloadsRequest(collection=collection, updates=[update_message]))
    assert client.get_items(collection, ["hat"])[0].payload == {"kind": "hat"}


def test_repeated_upsert(client: Client, collection: str) -> None:
    """An upsert of the same key and items writes once, however often and from how many threads; all have one answer."""
    vectors = np.random.default_rng(5).standard_normal((300, client.get_encoder().dimension))

    def upsert(_: int = 0) -> Upserted:
        items = (Item(f"i{number}", {"stock": number}, vector=vectors[number]) for number in range(300))
        return client.upsert(collection, items, idempotency_key="spring")

    first = upsert()
    with ThreadPoolExecutor(4) as pool:
        assert set(pool.map(upsert, range(4))) == {first}
    described = client.get_collection(collection)

    assert first == Upserted(first.sequence, inserted=300, replaced=0)
    assert (described.sequence, described.item_count) == (first.sequence, 303)
    with pytest.raises(errors.InvalidArgument, match="'spring'") as caught:
        client.upsert(collection, [Item("i0", vector=vectors[1])], idempotency_key="spring")
    assert caught.value.violations[0].field == "idempotency_key"
    with pytest.raises(errors.InvalidArgument, match="1 to 128 bytes"):
        client.upsert(collection, [Item("i0", vector=vectors[1])], idempotency_key="x" * 129)


def test_delete_by_filter(client: Client, collection: str) -> None:
    """What matches is removed, and what a filter cannot say is refused."""
    with pytest.raises(errors.InvalidArgument, match="no field 'colour'"):
        client.delete_items(collection, filter=field("colour") == "red")

    deleted = client.delete_items(collection, filter=field("kind") == "dress")

    assert deleted == Deleted(client.get_collection(collection).sequence, count=2)
    assert [item.id for item in client.list_items(collection)] == ["hat"]


def test_delete_by_ids_and_filter_is_refused(
    client: Client, collection: str, stub: item_service_pb2_grpc.ItemServiceStub
) -> None:
    """Ids and a filter together, a filter that says nothing, and neither of both are errors that delete nothing."""
    kind = Filter(exists=ExistsCondition(field="kind"))

    for request in (
        pb.DeleteItemsRequest(collection=collection, ids=["red"], filter=kind),
        pb.DeleteItemsRequest(collection=collection, filter=Filter()),
        pb.DeleteItemsRequest(collection=collection),
    ):
        with pytest.raises(grpc.RpcError) as caught:
            stub.DeleteItems(request)
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert client.count_items(collection) == 3


def test_vectors_of_either_element_type(
    client: Client, collection: str, stub: item_service_pb2_grpc.ItemServiceStub
) -> None:
    """float32 and float16 vectors may come in one request; of bad ones the first is named."""
    dimension = client.get_encoder().dimension
    row = np.arange(1, dimension + 1)
    good = [
        pb.Item(id="half", vector=Vector(f16=row.astype("<f2").tobytes())),
        pb.Item(id="whole", vector=Vector(f32=row.astype("<f4").tobytes())),
    ]

    stub.UpsertItems(pb.UpsertItemsRequest(collection=collection, items=good))

    half, whole = client.get_items(collection, ["half", "whole"], include_vectors=True)
    for item in (half, whole):
        assert item.vector is not None
        np.testing.assert_allclose(item.vector, row / np.linalg.norm(row), atol=1e-6)
    short = row[:-1].astype("<f4").tobytes()
    for bad, message in (
        ([Vector(f32=short), Vector()], f"items[2].vector: the vector has {dimension - 1} dimensions"),
        ([Vector(f32=short[:-1]), Vector()], f"items[2].vector.f32: {len(short) - 1} bytes are no whole number"),
        ([Vector(), Vector(f32=short)], "items[2].vector: set f32 or f16"),
        ([Vector(f16=np.full(dimension, np.inf, "<f2").tobytes())], "items[2].vector: the vector has an element"),
    ):
        items = [*good, *(pb.Item(id=f"bad{number}", vector=vector) for number, vector in enumerate(bad))]
        with pytest.raises(grpc.RpcError) as caught:
            stub.UpsertItems(pb.UpsertItemsRequest(collection=collection, items=items))
        assert message in str(caught.value.details())


def test_sources_are_kept_where_the_collection_keeps_them(client: Client, server: LocalServer) -> None:
    """A collection that keeps sources can be embedded anew after upserts, imports and changes of payloads."""
    client.create_collection("kept", keep_sources=True)
    try:
        client.upsert("kept", [Item("a", text="a red dress")])
        client.import_items("kept", [Item("b", text="a blue hat")])
        client.update_payloads("kept", [PayloadUpdate("a", replacement={"x": 1})])
        for _ in client.reembed_collection("kept", "kept-again", client.get_encoder().name):
            pass
        again = client.get_items("kept-again", ["a", "b"])
    finally:
        client.delete_collection("kept")
        client.delete_collection("kept-again")

    assert [(item.id, item.payload) for item in again] == [("a", {"x": 1}), ("b", {})]
