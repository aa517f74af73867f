from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from google.protobuf.any_pb2 import Any as AnyMessage
from google.rpc.code_pb2 import ABORTED, INVALID_ARGUMENT, NOT_FOUND, UNAVAILABLE
from google.rpc.error_details_pb2 import BadRequest
from google.rpc.status_pb2 import Status

from lookwire import Client, Deleted, Item, PayloadUpdate, Upserted, errors, field
from lookwire.v1 import item_service_pb2 as pb
from lookwire.v1.filter_pb2 import ExistsCondition, Filter
from lookwire.v1.vector_pb2 import Matrix, Vector
from tests.client.fake_server import FakeServer


def sent_items(server: FakeServer) -> list[list[str]]:
    """The ids of the items of each upsert request."""
    return [
        [item.id for item in request.items] for request in server.requests if isinstance(request, pb.UpsertItemsRequest)
    ]


def written(sequence: int, inserted: int, replaced: int = 0) -> pb.UpsertItemsResponse:
    return pb.UpsertItemsResponse(sequence=sequence, inserted_count=inserted, replaced_count=replaced)


def test_upsert_sends_every_kind_of_item(client: Client, server: FakeServer, tmp_path: Path) -> None:
    """Payloads are compact JSON in UTF-8; texts, images, image files and vectors each go as what they are."""
    (tmp_path / "a.png").write_bytes(b"from file")
    server.reply(written(7, inserted=3, replaced=2))

    upserted = client.upsert(
        "shop",
        [
            Item("a", {"name": "Kleid für Ä", "price": 3.5, "sizes": [1, 2], "gone": None}, text="red"),
            Item("b", image=b"in memory"),
            Item("c", image=tmp_path / "a.png"),
            Item("d", vector=[1, -0.5]),
            Item("e", vector=np.array([1, -0.5], np.float16)),
        ],
    )

    payload = '{"name":"Kleid für Ä","price":3.5,"sizes":[1,2],"gone":null}'.encode()
    items = [
        pb.Item(id="a", payload=payload, text="red"),
        pb.Item(id="b", payload=b"{}", image=b"in memory"),
        pb.Item(id="c", payload=b"{}", image=b"from file"),
        pb.Item(id="d", payload=b"{}", vector=Vector(f32=b"\x00\x00\x80\x3f\x00\x00\x00\xbf")),
        pb.Item(id="e", payload=b"{}", vector=Vector(f16=b"\x00\x3c\x00\xb8")),
    ]
    assert server.requests == [pb.UpsertItemsRequest(collection="shop", items=items)]
    assert upserted == Upserted(sequence=7, inserted=3, replaced=2)


def test_upsert_in_chunks_by_count(client: Client, server: FakeServer) -> None:
    """No request has more than 256 items; counts add up, the last sequence stays, progress follows each chunk."""
    server.reply(written(1, 256), written(2, 200, 56), written(3, 1))
    progress: list[int] = []

    upserted = client.upsert("shop", (Item(f"{n}", text="red") for n in range(513)), progress=progress.append)

    assert [len(ids) for ids in sent_items(server)] == [256, 256, 1]
    assert [id for ids in sent_items(server) for id in ids] == [f"{n}" for n in range(513)]
    assert upserted == Upserted(sequence=3, inserted=457, replaced=56)
    assert progress == [256, 512, 513]


def test_upsert_in_chunks_by_bytes(client: Client, server: FakeServer) -> None:
    """A request ends before it exceeds 4 MiB, and an item that is larger by itself goes alone."""
    mebibyte = 1024 * 1024
    server.reply(written(1, 3), written(2, 1), written(3, 1))
    sizes = {"a": mebibyte, "b": mebibyte, "c": mebibyte, "d": 5 * mebibyte, "e": 1}

    client.upsert("shop", (Item(id, image=bytes(size)) for id, size in sizes.items()))

    assert sent_items(server) == [["a", "b", "c"], ["d"], ["e"]]


def test_upsert_reads_no_further_than_the_chunk(client: Client, server: FakeServer) -> None:
    """A generator is read one item past the chunk at most when the chunk is written."""
    server.reply(written(1, 256), written(2, 256), written(3, 88))
    read = 0
    read_at_progress: list[int] = []

    def items() -> Iterator[Item]:
        nonlocal read
        for read in range(1, 601):
            yield Item(f"{read}", text="red")

    client.upsert("shop", items(), progress=lambda count: read_at_progress.append(read))

    assert read_at_progress == [257, 513, 600]


def test_upsert_of_nothing(client: Client, server: FakeServer) -> None:
    """No items are no request, and sequence 0."""
    assert client.upsert("shop", []) == Upserted(sequence=0, inserted=0, replaced=0)
    assert server.requests == []


def test_upsert_says_what_was_written_before_it_failed(client: Client, server: FakeServer) -> None:
    """The error counts the confirmed items, and its violations count from the first item of all."""
    detail = AnyMessage()
    detail.Pack(BadRequest(field_violations=[{"field": "items[3].payload", "description": "items[3] is too large"}]))
    status = Status(code=INVALID_ARGUMENT, message="items[3].payload is too large", details=[detail])
    server.reply(written(1, 250, 6), status)
    progress: list[int] = []

    with pytest.raises(errors.InvalidArgument) as caught:
        client.upsert("shop", [Item(f"{n}", text="red") for n in range(300)], progress=progress.append)

    assert caught.value.acknowledged == 256
    assert str(caught.value) == "items[259].payload is too large (the 256 items before were written)"
    assert caught.value.violations == (errors.FieldViolation("items[259].payload", "items[259] is too large"),)
    assert caught.value.code is grpc.StatusCode.INVALID_ARGUMENT
    assert progress == [256]


def test_upsert_that_failed_at_once(client: Client, server: FakeServer) -> None:
    """An error of the first chunk is as the server sent it, with nothing acknowledged."""
    server.reply(Status(code=INVALID_ARGUMENT, message="items[0] is bad"))

    with pytest.raises(errors.InvalidArgument, match=r"^items\[0\] is bad$") as caught:
        client.upsert("shop", [Item("a", text="red")])

    assert caught.value.acknowledged == 0


@pytest.mark.parametrize(
    "sources",
    [{}, {"text": "red", "image": b"red"}, {"text": "", "vector": [1.0]}],
    ids=["none", "text and image", "empty text and vector"],
)
def test_item_needs_one_source(sources: dict[str, Any]) -> None:
    """An item has exactly one of text, image and vector."""
    with pytest.raises(ValueError, match="item 'a' needs exactly one"):
        Item("a", **sources)


def test_upsert_refuses_what_cannot_be_sent(client: Client, server: FakeServer) -> None:
    """NaN in a payload, a vector of strings or of two dimensions, and what is no Item never reach the server."""
    with pytest.raises(ValueError, match="not JSON compliant"):
        client.upsert("shop", [Item("a", {"price": float("nan")}, text="red")])
    with pytest.raises(TypeError, match="real numbers"):
        client.upsert("shop", [Item("a", vector=["1"])])  # type: ignore[list-item]
    with pytest.raises(ValueError, match=r"not the shape \[1, 2\]"):
        client.upsert("shop", [Item("a", vector=np.ones((1, 2)))])
    with pytest.raises(TypeError, match=r"lookwire\.Item, not dict"):
        client.upsert("shop", [{"id": "a"}])  # type: ignore[list-item]

    assert server.requests == []


def test_get_items(client: Client, server: FakeServer) -> None:
    """Items come without vectors unless asked for, and those that do not exist are left out."""
    stored = [pb.StoredItem(id="a", payload=b'{"price": 3}', sequence=4), pb.StoredItem(id="c")]
    server.reply(pb.GetItemsResponse(items=stored, missing_ids=["b"]))

    first, second = client.get_items("shop", ["a", "b", "c"])

    assert server.requests == [pb.GetItemsRequest(collection="shop", ids=["a", "b", "c"])]
    assert (first.id, first.payload, first.sequence, first.vector) == ("a", {"price": 3}, 4, None)
    assert (second.id, second.payload) == ("c", {})


def test_get_items_with_vectors(client: Client, server: FakeServer) -> None:
    """Each item has its row of the reply's matrix."""
    rows = np.array([[1, 0], [0, 1]], "<f4")
    matrix = Matrix(f32=rows.tobytes(), rows=2, dimension=2)
    server.reply(pb.GetItemsResponse(items=[pb.StoredItem(id="a"), pb.StoredItem(id="b")], vectors=matrix))

    items = client.get_items("shop", ["a", "b"], include_vectors=True)

    assert server.requests == [pb.GetItemsRequest(collection="shop", ids=["a", "b"], include_vectors=True)]
    np.testing.assert_array_equal([item.vector for item in items], rows)


def test_delete_items(client: Client, server: FakeServer) -> None:
    """A deletion says which write it was and how many items there were."""
    server.reply(pb.DeleteItemsResponse(sequence=9, deleted_count=1))

    assert client.delete_items("shop", ["a", "b"]) == Deleted(sequence=9, count=1)
    assert server.requests == [pb.DeleteItemsRequest(collection="shop", ids=["a", "b"])]


def test_one_string_is_no_list_of_ids(client: Client, server: FakeServer) -> None:
    """A string where ids are expected is refused, since each of its letters would pass for an id."""
    with pytest.raises(TypeError, match="not one string"):
        client.delete_items("shop", "abc")
    with pytest.raises(TypeError, match="not one string"):
        client.get_items("shop", "abc")

    assert server.requests == []


def test_list_items_reads_every_page(client: Client, server: FakeServer) -> None:
    """Pages are asked for with the same filter and the token of the page before."""
    server.reply(
        pb.ListItemsResponse(items=[pb.StoredItem(id="a", payload=b'{"price": 3}')], next_page_token="t1"),
        pb.ListItemsResponse(items=[pb.StoredItem(id="b")]),
    )

    items = list(client.list_items("shop", filter=field("price").exists()))

    assert [(item.id, item.payload) for item in items] == [("a", {"price": 3}), ("b", {})]
    filter = Filter(exists=ExistsCondition(field="price"))
    assert server.requests == [
        pb.ListItemsRequest(collection="shop", filter=filter),
        pb.ListItemsRequest(collection="shop", filter=filter, page_token="t1"),
    ]


def test_count_items(client: Client, server: FakeServer) -> None:
    """A count is a number, with or without a filter."""
    server.reply(pb.CountItemsResponse(count=3), pb.CountItemsResponse(count=5_000_000_000))

    assert client.count_items("shop", filter=field("price").exists()) == 3
    assert client.count_items("shop") == 5_000_000_000
    assert server.requests == [
        pb.CountItemsRequest(collection="shop", filter=Filter(exists=ExistsCondition(field="price"))),
        pb.CountItemsRequest(collection="shop"),
    ]


def test_delete_items_by_filter(client: Client, server: FakeServer) -> None:
    """A filter goes out in the place of ids; both, or neither, never reach the server."""
    server.reply(pb.DeleteItemsResponse(sequence=9, deleted_count=70))

    assert client.delete_items("shop", filter=field("price").exists()) == Deleted(sequence=9, count=70)
    for ids, filter in (([], None), (["a"], field("price").exists())):
        with pytest.raises(ValueError, match="by ids or by a filter"):
            client.delete_items("shop", ids, filter=filter)
    assert server.requests == [
        pb.DeleteItemsRequest(collection="shop", filter=Filter(exists=ExistsCondition(field="price")))
    ]


def test_conditions_and_keys_of_upserts(client: Client, server: FakeServer) -> None:
    """A condition goes out with its item, 0 too; each chunk has a key of its own, the first the caller's."""
    server.reply(written(1, 256), written(2, 1))
    items = [Item("a", text="red", if_sequence=0), *(Item(f"{n}", text="red", if_sequence=7) for n in range(256))]

    client.upsert("shop", items, idempotency_key="spring")

    first, second = server.requests
    assert isinstance(first, pb.UpsertItemsRequest)
    assert isinstance(second, pb.UpsertItemsRequest)
    assert (first.items[0].HasField("if_sequence"), first.items[0].if_sequence) == (True, 0)
    assert first.items[1].if_sequence == 7
    assert (first.idempotency_key, second.idempotency_key) == ("spring", "spring/1")


def test_conflict(client: Client, server: FakeServer) -> None:
    """ABORTED is a Conflict."""
    server.reply(Status(code=ABORTED, message="item 'a' is at sequence 3"))

    with pytest.raises(errors.Conflict, match="sequence 3"):
        client.upsert("shop", [Item("a", text="red", if_sequence=2)])


def test_update_payloads(client: Client, server: FakeServer) -> None:
    """Replacements and patches go out as compact JSON; None in a patch is null."""
    server.reply(pb.UpdatePayloadsResponse(sequence=5))

    sequence = client.update_payloads(
        "shop",
        [
            PayloadUpdate("a", replacement={}),
            PayloadUpdate("b", merge_patch={"old": None, "n": {"x": 1}}, if_sequence=3),
        ],
    )

    assert sequence == 5
    updates = [
        pb.PayloadUpdate(id="a", replacement=b"{}"),
        pb.PayloadUpdate(id="b", merge_patch=b'{"old":null,"n":{"x":1}}', if_sequence=3),
    ]
    assert server.requests == [pb.UpdatePayloadsRequest(collection="shop", updates=updates)]
    with pytest.raises(ValueError, match="exactly one of replacement and merge_patch"):
        PayloadUpdate("a")
    with pytest.raises(ValueError, match="exactly one of replacement and merge_patch"):
        PayloadUpdate("a", replacement={}, merge_patch={})
    with pytest.raises(TypeError, match=r"lookwire\.PayloadUpdate, not dict"):
        client.update_payloads("shop", [{"id": "a"}])  # type: ignore[list-item]


def acknowledged(chunk: int, inserted: int, *errors: tuple[str, Status]) -> pb.ImportItemsResponse:
    return pb.ImportItemsResponse(
        chunk=chunk,
        sequence=chunk + 1,
        inserted_count=inserted,
        errors=[pb.ItemError(id=id, status=status) for id, status in errors],
    )


def sent_chunks(server: FakeServer) -> list[int]:
    return [request.chunk for request in server.requests if isinstance(request, pb.ImportItemsRequest)]


def test_import_in_chunks(client: Client, server: FakeServer, tmp_path: Path) -> None:
    """Counts add up, errors are by id, and progress counts what was written or refused."""
    (tmp_path / "a.png").write_bytes(b"from file")
    server.reply(acknowledged(0, 2), acknowledged(1, 1, ("2", Status(code=ABORTED, message="no"))), acknowledged(2, 1))
    progress: list[int] = []

    imported = client.import_items(
        "shop", (Item(f"{n}", image=tmp_path / "a.png") for n in range(5)), chunk_size=2, progress=progress.append
    )

    assert (imported.sequence, imported.inserted, imported.replaced, imported.failed) == (3, 4, 0, 1)
    assert isinstance(imported.errors["2"], errors.Conflict)
    assert progress == [2, 4, 5]
    first = server.requests[0]
    assert isinstance(first, pb.ImportItemsRequest)
    assert first.collection == "shop"
    assert [(item.id, item.image) for item in first.items] == [("0", b"from file"), ("1", b"from file")]
    assert sent_chunks(server) == [0, 1, 2]


def test_import_goes_on_from_the_last_acknowledged_chunk(client: Client, server: FakeServer) -> None:
    """After UNAVAILABLE exactly the chunks without acknowledgement are sent again, before the rest."""
    server.reply(acknowledged(0, 1), acknowledged(1, 1), Status(code=UNAVAILABLE, message="stopping"))
    server.reply(*(acknowledged(chunk, 1) for chunk in range(2, 30)))

    imported = client.import_items("shop", (Item(f"{n}", text="red") for n in range(30)), chunk_size=1)

    assert imported.count == 30
    assert sent_chunks(server) == [0, 1, 2, *range(2, 30)]


def test_import_reads_ahead_only_so_far(client: Client, server: FakeServer) -> None:
    """Without acknowledgements at most eight chunks are read and sent; after the timeout the import fails and says so."""
    server.reply(acknowledged(0, 2))
    read = 0

    def items() -> Iterator[Item]:
        nonlocal read
        for read in range(1, 101):
            yield Item(f"{read}", text="red")

    with pytest.raises(errors.DeadlineExceeded, match="no chunk of the import was acknowledged") as caught:
        client.import_items("shop", items(), chunk_size=2, timeout=0.5)

    assert caught.value.acknowledged == 2
    assert sent_chunks(server) == list(range(9))
    assert read == 2 * 9 + 1  # one more, to know that the last chunk is full


def test_import_ends_with_other_errors(client: Client, server: FakeServer) -> None:
    """An error that will not pass is raised at once; an error of the caller's own generator too."""
    deleted = Status(code=NOT_FOUND, message="the collection was deleted")
    server.reply(acknowledged(0, 1), deleted, deleted)
    with pytest.raises(errors.NotFound, match="was deleted") as caught:
        client.import_items("shop", (Item(f"{n}", text="red") for n in range(30)), chunk_size=1)
    assert caught.value.acknowledged == 1

    def broken() -> Iterator[Item]:
        yield Item("a", text="red")
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        client.import_items("shop", broken(), chunk_size=1)
    with pytest.raises(ValueError, match="1 to 1024 items, not 0"):
        client.import_items("shop", [], chunk_size=0)


def test_import_without_a_server(server: FakeServer) -> None:
    """An import that finds nobody tries until its timeout, and fails with the reason."""
    server.grpc.stop(grace=None).wait()

    with Client(server.address) as client, pytest.raises(errors.Unavailable):
        client.import_items("shop", [Item("a", text="red")], timeout=4.0)


def test_import_of_nothing(client: Client, server: FakeServer) -> None:
    """No items are no request."""
    assert client.import_items("shop", []).count == 0
    assert server.requests == []
