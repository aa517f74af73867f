"""Whoever sends bad input learns what was wrong; nobody else notices."""

import math
from collections.abc import Callable

import grpc
import numpy as np
import pytest

from lookwire import Client, Item, PayloadUpdate, Query, errors, field
from lookwire.filters import Filter
from lookwire.local import LocalServer
from lookwire.v1 import (
    encoder_service_pb2,
    encoder_service_pb2_grpc,
    filter_pb2,
    item_service_pb2,
    item_service_pb2_grpc,
    search_service_pb2,
    search_service_pb2_grpc,
    vector_pb2,
)
from tests.server.images import jpeg, noise, png_header

Call = Callable[[Client, str], object]


def raw(client: Client) -> grpc.Channel:
    """The client's own channel: for requests that the client would not let out."""
    return client._channel


def upsert(*items: item_service_pb2.Item) -> Call:
    return lambda client, collection: item_service_pb2_grpc.ItemServiceStub(raw(client)).UpsertItems(
        item_service_pb2.UpsertItemsRequest(collection=collection, items=items)
    )


def search(**fields: object) -> Call:
    return lambda client, collection: search_service_pb2_grpc.SearchServiceStub(raw(client)).Search(
        search_service_pb2.SearchRequest(collection=collection, **fields)  # type: ignore[arg-type]
    )


def listing(**fields: object) -> Call:
    return lambda client, collection: item_service_pb2_grpc.ItemServiceStub(raw(client)).ListItems(
        item_service_pb2.ListItemsRequest(collection=collection, **fields)  # type: ignore[arg-type]
    )


def filtered(filter: Filter) -> Call:
    return lambda client, collection: client.search(collection, text="dress", filter=filter)


def item(id: str = "x", payload: bytes = b"{}", text: str = "a hat") -> item_service_pb2.Item:
    return item_service_pb2.Item(id=id, payload=payload, text=text)


def vector(*values: float) -> vector_pb2.Vector:
    return vector_pb2.Vector(f32=np.array(values, "<f4").tobytes())


def image_upsert(image: bytes) -> Call:
    return lambda client, collection: client.upsert(collection, [Item("x", image=image)])


def image_search(image: bytes) -> Call:
    return lambda client, collection: client.search(collection, image=image)


DEEP = filter_pb2.Filter(exists=filter_pb2.ExistsCondition(field="kind"))
for _ in range(40):
    DEEP = filter_pb2.Filter(all_of=filter_pb2.FilterList(filters=[DEEP]))

INVALID: dict[str, tuple[Call, str]] = {
    # images
    "not an image": (image_search(b"GIF? no"), "not an image of a known format"),
    "not an image, upsert": (image_upsert(b"%PDF-1.7"), "items[0].image"),
    "truncated JPEG": (image_search(jpeg()[:2000]), "damaged or cut short"),
    "truncated PNG": (image_search(noise(64, 64, "PNG")[:900]), "damaged or cut short"),
    "50,000 x 50,000 PNG header": (image_search(png_header(50_000, 50_000)), "50000 x 50000 pixels"),
    "extreme aspect": (image_search(noise(60_000, 1, "PNG")), "pixels"),
    "zero bytes": (image_search(b""), "0 bytes"),
    "zero bytes, upsert": (image_upsert(b""), "0 bytes"),
    "image over the limit": (image_search(b"\xff" * (33 << 20)), "at most 33554432 are taken"),
    # texts
    "text over the limit": (lambda client, collection: client.search(collection, text="x" * 70_000), "at most 65536"),
    # vectors
    "dimension": (search(query=search_service_pb2.Query(vector=vector(1, 2, 3))), "3"),
    "dimension, upsert": (
        upsert(item_service_pb2.Item(id="x", vector=vector(1, 2, 3))),
        "items[0].vector",
    ),
    "NaN": (lambda client, name: client.search(name, vector=[math.nan] * dimension(client)), "finite"),
    "infinite": (lambda client, name: client.search(name, vector=[math.inf] * dimension(client)), "finite"),
    "all zero": (lambda client, name: client.search(name, vector=[0.0] * dimension(client)), "zero"),
    "all zero, upsert": (
        lambda client, name: client.upsert(name, [Item("x", vector=[0.0] * dimension(client))]),
        "zero",
    ),
    "odd bytes": (search(query=search_service_pb2.Query(vector=vector_pb2.Vector(f32=b"123"))), "query.vector.f32"),
    # queries
    "no query": (search(), "set text, image"),
    "top_k": (search(query=search_service_pb2.Query(text="hat"), top_k=1001), "top_k"),
    "score_threshold": (search(query=search_service_pb2.Query(text="hat"), score_threshold=2.0), "score_threshold"),
    "cancelling mix": (
        lambda client, name: client.search(name, query=Query.mix((Query.text("hat"), 1.0), (Query.text("hat"), -1.0))),
        "cancel",
    ),
    "cancelling mix of large weights": (
        lambda client, name: client.search(
            name, query=Query.mix((Query.item("red"), 3e38), (Query.item("red"), -1e38), (Query.item("red"), -2e38))
        ),
        "cancel",
    ),
    "cancelling recommend": (
        lambda client, name: client.search(name, query=Query.recommend(liked=["red"], disliked=["red"])),
        "cancel",
    ),
    "unknown vector_format": (search(query=search_service_pb2.Query(text="hat"), vector_format=9), "vector_format"),
    # filters
    "undeclared field": (filtered(field("colour") == "red"), "colour"),
    "wrong type": (filtered(field("price") == "cheap"), "price"),
    "bool for int": (filtered(field("stock") == True), "stock"),  # noqa: E712 - a filter, not a comparison
    "range of a string": (filtered(field("kind") < 3), "kind"),
    "prefix of a number": (filtered(field("price").startswith("4")), "price"),
    "radius of a number": (filtered(field("price").within(0, 0, 10)), "price"),
    "latitude": (
        search(
            query=search_service_pb2.Query(text="hat"),
            filter=filter_pb2.Filter(
                geo_radius=filter_pb2.GeoRadiusCondition(
                    field="place", center=filter_pb2.GeoPoint(latitude_degrees=91), radius_meters=1
                )
            ),
        ),
        "latitude",
    ),
    "empty filter": (search(query=search_service_pb2.Query(text="hat"), filter=filter_pb2.Filter()), "condition"),
    "deep filter": (search(query=search_service_pb2.Query(text="hat"), filter=DEEP), "levels"),
    "range without bounds": (
        search(
            query=search_service_pb2.Query(text="hat"),
            filter=filter_pb2.Filter(range=filter_pb2.RangeCondition(field="price")),
        ),
        "bound",
    ),
    # items
    "payload is no JSON": (upsert(item(payload=b"{")), "items[0].payload"),
    "payload is no object": (upsert(item(payload=b"[1]")), "items[0].payload"),
    "payload of another type": (upsert(item(payload=b'{"price": "cheap"}')), "price"),
    "payload with NaN": (upsert(item(payload=b'{"price": NaN}')), "items[0].payload"),
    "payload over the limit": (upsert(item(payload=b'{"a": "' + b"x" * 70_000 + b'"}')), "items[0].payload"),
    "empty id": (upsert(item(id="")), "items[0].id"),
    "long id": (upsert(item(id="é" * 257)), "items[0].id"),
    "duplicate ids": (upsert(item("a"), item("b"), item("a")), "items[2].id"),
    "no source": (upsert(item_service_pb2.Item(id="x")), "set text, image or vector"),
    "no items": (upsert(), "items"),
    "too many items": (upsert(*(item(str(number)) for number in range(1025))), "1024"),
    "negative page_size": (listing(page_size=-1), "page_size"),
    "foreign page_token": (listing(page_token="bm9uc2Vuc2U="), "page_token"),
    "collection name": (lambda client, _: client.create_collection("a b"), "name"),
    "no inputs": (lambda client, _: embed(client, []), "inputs"),
    "empty input": (lambda client, _: embed(client, [encoder_service_pb2.Input()]), "inputs[0]"),
}

NOT_FOUND: dict[str, tuple[Call, str]] = {
    "encoder": (lambda client, _: client.embed(["hat"], encoder="nobody"), "nobody"),
    "encoder, get": (lambda client, _: client.get_encoder("nobody"), "nobody"),
    "encoder, create": (lambda client, _: client.create_collection("new", encoder="nobody"), "nobody"),
    "collection": (lambda client, _: client.search("nowhere", text="hat"), "nowhere"),
    "collection, upsert": (lambda client, _: client.upsert("nowhere", [Item("x", text="hat")]), "nowhere"),
    "collection, delete": (lambda client, _: client.delete_collection("nowhere"), "nowhere"),
    "item": (lambda client, collection: client.search(collection, item_id="nothing"), "nothing"),
    "liked item": (
        lambda client, collection: client.search(collection, query=Query.recommend(liked=["red", "nothing"])),
        "nothing",
    ),
}


def dimension(client: Client) -> int:
    return client.get_encoder().dimension


def embed(client: Client, inputs: list[encoder_service_pb2.Input]) -> object:
    return encoder_service_pb2_grpc.EncoderServiceStub(raw(client)).Embed(
        encoder_service_pb2.EmbedRequest(inputs=inputs)
    )


def attempt(call: Call, client: Client, collection: str) -> errors.LookwireError:
    """The error of a call that must fail, as the client gives it."""
    try:
        call(client, collection)
    except errors.LookwireError as error:
        return error
    except grpc.RpcError as error:
        return errors.from_rpc(error)
    raise AssertionError("the call did not fail")


def assert_unharmed(client: Client, collection: str) -> None:
    """The collection is as it was, and the next good request works."""
    assert client.count_items(collection) == 3
    assert [hit.id for hit in client.search(collection, text="a plain red dress", top_k=1).hits] == ["red"]


@pytest.mark.parametrize("case", INVALID)
def test_bad_input_is_explained_and_harms_nobody(client: Client, collection: str, case: str) -> None:
    """Bad input is INVALID_ARGUMENT with words that say what was wrong; nothing is written, the next request works."""
    call, words = INVALID[case]

    error = attempt(call, client, collection)

    assert isinstance(error, errors.InvalidArgument), error
    assert words in error.message
    assert_unharmed(client, collection)


@pytest.mark.parametrize("case", NOT_FOUND)
def test_unknown_names_are_not_found(client: Client, collection: str, case: str) -> None:
    """What does not exist is NOT_FOUND, named in the message."""
    call, words = NOT_FOUND[case]

    error = attempt(call, client, collection)

    assert isinstance(error, errors.NotFound), error
    assert words in error.message
    assert_unharmed(client, collection)


OF_A_COLLECTION: dict[str, Callable[[Client], object]] = {
    "search": lambda client: client.search("nowhere", text="hat"),
    "upsert": lambda client: client.upsert("nowhere", [Item("x", text="hat")]),
    "import": lambda client: client.import_items("nowhere", [Item("x", text="hat")]),
    "update": lambda client: client.update_payloads("nowhere", [PayloadUpdate("x", replacement={})]),
    "get": lambda client: client.get_items("nowhere", ["x"]),
    "delete": lambda client: client.delete_items("nowhere", ["x"]),
    "list": lambda client: list(client.list_items("nowhere")),
    "count": lambda client: client.count_items("nowhere"),
    "facets": lambda client: client.facet_items("nowhere", ["x"]),
}


@pytest.mark.parametrize("case", OF_A_COLLECTION)
def test_unknown_collection_names_its_field(client: Client, case: str) -> None:
    """Each call that is about a collection says where in the request the unknown name is."""
    with pytest.raises(errors.NotFound, match="no collection 'nowhere'") as failure:
        OF_A_COLLECTION[case](client)

    assert [violation.field for violation in failure.value.violations] == ["collection"]


def test_taken_name_already_exists(client: Client, collection: str) -> None:
    """Creating a collection twice is ALREADY_EXISTS, and leaves the first as it is."""
    with pytest.raises(errors.AlreadyExists):
        client.create_collection(collection)

    assert_unharmed(client, collection)


def test_message_over_the_limit_is_refused(server: LocalServer, client: Client, collection: str) -> None:
    """A message over the server's limit is RESOURCE_EXHAUSTED with the sizes, and the server goes on."""
    request = encoder_service_pb2.EmbedRequest(inputs=[encoder_service_pb2.Input(image=b"\0" * (65 << 20))])
    options = [("grpc.max_send_message_length", -1)]

    with (
        grpc.insecure_channel(server.address, options=options) as channel,
        pytest.raises(grpc.RpcError) as failure,
    ):
        encoder_service_pb2_grpc.EncoderServiceStub(channel).Embed(request)

    error = errors.from_rpc(failure.value)
    assert isinstance(error, errors.ResourceExhausted)
    assert str(64 << 20) in error.message
    assert_unharmed(client, collection)


def test_deadline_already_past(client: Client, collection: str) -> None:
    """A call whose deadline has passed is DEADLINE_EXCEEDED, and the next good request works."""
    with pytest.raises(errors.DeadlineExceeded):
        client.search(collection, text="a plain red dress", timeout=-1.0)

    assert_unharmed(client, collection)


def test_one_broken_image_spares_the_others(client: Client) -> None:
    """In an Embed of several inputs the broken one has an error, the others have vectors."""
    result = client.embed(["a red dress"], [jpeg(1), b"broken", jpeg(2)], partial=True)

    alone = client.embed(images=[jpeg(2)]).vectors[0]
    assert list(result.errors) == [2]
    assert result.errors[2].reason == "INVALID_IMAGE"
    assert np.isnan(result.vectors[2]).all()
    np.testing.assert_allclose(np.linalg.norm(result.vectors[[0, 1, 3]], axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(result.vectors[3], alone, atol=1e-5)


def test_errors_name_reason_field_and_metadata(client: Client, collection: str) -> None:
    """An error carries a reason for programs, the field at fault, and the variable parts of its message."""
    error = attempt(image_upsert(png_header(50_000, 50_000)), client, collection)

    assert error.reason == "INVALID_IMAGE"
    assert [violation.field for violation in error.violations] == ["items[0].image"]
    assert error.metadata["width"] == "50000"
