"""What one reply of a search may hold, and what a batch of searches holds while it is carried out."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from lookwire import Client, GroupBy, Hybrid, Item, Search, errors
from lookwire.v1 import search_service_pb2 as pb
from lookwire.v1.vector_pb2 import Vector
from lookwire_server.encoding.encoders import Encoders
from lookwire_server.errors import ReplyTooLarge
from lookwire_server.metrics import Metrics
from lookwire_server.rpc.reply_room import MAX_REPLY_BYTES, ReplyRoom
from lookwire_server.rpc.search import MAX_ITEMS_AT_ONCE, SearchServicer
from lookwire_server.search.collection import Collection
from lookwire_server.search.collections import Collections
from lookwire_server.search.fields import Field, FieldType
from lookwire_server.search.items import NewItem
from lookwire_server.search.search_options import SearchOptions
from lookwire_server.search.searcher import SearchResult, most_items
from lookwire_server.search.store.collections import NewCollection

PAYLOAD_BYTES = 65_000


def test_batch_that_is_too_large_is_answered_in_part(client: Client) -> None:
    """Searches of a batch are answered up to 64 MiB, in their order; what no longer fits is refused in its place."""
    dimension = client.create_collection("heavy").dimension
    vectors = np.random.default_rng(3).standard_normal((100, dimension))
    text = {"text": "x" * (PAYLOAD_BYTES - len('{"text":""}'))}
    client.upsert("heavy", [Item(f"i{place}", text, vector=vector) for place, vector in enumerate(vectors)])
    fitting = MAX_REPLY_BYTES // (100 * PAYLOAD_BYTES)
    searches = [Search(vector=vector, top_k=100) for vector in vectors[: fitting + 2]]
    searches += [Search(vector=vectors[0], top_k=1), Search(vector=vectors[0], top_k=100, ids_only=True)]

    batch = client.batch_search("heavy", searches, partial=True)
    with pytest.raises(errors.ResourceExhausted, match=rf"^searches\[{fitting}\]: .* have 6500000 bytes, .* room for"):
        client.batch_search("heavy", searches)

    client.delete_collection("heavy")
    assert set(batch.errors) == {fitting, fitting + 1}
    assert batch.errors[fitting].reason == "REPLY_TOO_LARGE"
    assert [len(result.hits) for result in batch.results if result is not None] == [100] * fitting + [1, 100]


@pytest.mark.parametrize(("member", "dimension", "fits"), [("f32", 512, False), ("f16", 512, True), ("f32", 64, True)])
def test_room_counts_payloads_vectors_and_group_values(member: str, dimension: int, fits: bool) -> None:
    """A thousand of the largest payloads fit with small vectors, and what does not fit takes no room."""
    result = SearchResult(
        ids=["x"] * 1_000,
        scores=np.zeros(1_000, np.float32),
        payloads=[b"x" * 64 * 1024] * 1_000,
        vectors=np.zeros((1_000, dimension), np.float32),
        calibrated_scores=None,
        legs=None,
        group_values=cast(Any, ["\u00e9" * 20, 7, True]),
        plan=cast(Any, None),
        candidate_count=1_000,
        sequence=1,
        search_seconds=0,
        fetch_seconds=0,
    )
    taken = 65_536_000 + 1_000 * dimension * (4 if member == "f32" else 2) + 40
    room = ReplyRoom()

    if not fits:
        with pytest.raises(
            ReplyTooLarge, match=f"have {taken} bytes, the reply has room for {MAX_REPLY_BYTES}: ask for"
        ):
            room.take(result, member)
    else:
        room.take(result, member)
        with pytest.raises(
            ReplyTooLarge, match=f"have {taken} bytes, the reply has room for {MAX_REPLY_BYTES - taken}:"
        ):
            room.take(result, member)


class Unlimited:
    """The context of a call without a deadline."""

    def time_remaining(self) -> float | None:
        return None


@pytest.fixture
async def collections(tmp_path: Path) -> AsyncIterator[Collections]:
    collections = Collections.open(tmp_path, Metrics(), search_threads=1, on_failure=lambda _: None)
    fields = (Field("title", FieldType.TEXT), Field("kind", FieldType.INT64))
    collection = await collections.create(NewCollection("shop", "clip", "f", 4, fields))
    items = [NewItem(str(place), b'{"title": "a shoe", "kind": %d}' % (place % 9)) for place in range(300)]
    await collection.upsert(items, np.random.default_rng(5).standard_normal((300, 4)))
    yield collections
    await asyncio.to_thread(collections.close)


QUERY = pb.Query(vector=Vector(f32=np.ones(4, "<f4").tobytes()))


@pytest.mark.parametrize(
    ("request_", "at_once"),
    [
        (pb.SearchRequest(), 38),
        (pb.SearchRequest(top_k=200), 4),
        (pb.SearchRequest(hybrid=pb.Hybrid(words="shoe")), 2),
        (pb.SearchRequest(group_by=pb.GroupBy(field="kind")), 1),
        (pb.SearchRequest(collapse_cosine=0.9), 1),
    ],
    ids=["all but two that fail", "many hits", "hybrid", "groups", "collapsed"],
)
async def test_batch_is_carried_out_in_bounded_parts(
    collections: Collections, monkeypatch: pytest.MonkeyPatch, request_: pb.SearchRequest, at_once: int
) -> None:
    """Of a batch so many searches run at once that all items that they may hold, at their largest, are no larger than a reply."""
    running: list[SearchOptions] = []
    most = 0
    plain = Collection.search

    async def search(self: Collection, vector: Any, options: Any, **others: Any) -> SearchResult:
        nonlocal most
        running.append(options)
        most = max(most, len(running))
        assert len(running) == 1 or sum(map(most_items, running)) <= MAX_ITEMS_AT_ONCE
        try:
            return await plain(self, vector, options, **others)
        finally:
            running.remove(options)

    monkeypatch.setattr(Collection, "search", search)
    request_.collection = "shop"
    request_.query.CopyFrom(QUERY)
    requests = [request_] * 40
    requests[3] = pb.SearchRequest(collection="nowhere", query=QUERY)
    requests[30] = pb.SearchRequest(collection="shop", query=QUERY, min_sequence=99)
    servicer = SearchServicer(collections, cast(Encoders, None))

    response = await servicer.BatchSearch(pb.BatchSearchRequest(requests=requests), cast(Any, Unlimited()))
    alone = await servicer.Search(request_, cast(Any, Unlimited()))

    failed = {place for place, each in enumerate(response.results) if each.HasField("error")}
    assert failed == {3, 30}
    assert all(each.response.ids == alone.ids for place, each in enumerate(response.results) if place not in failed)
    assert most == at_once


def test_grouped_and_hybrid_batches_through_the_front_door(client: Client, collection: str) -> None:
    """Searches that are carried out one after the other come back in their places."""
    searches = [
        Search(text=text, group_by=GroupBy("kind") if place % 2 else None, collapse_cosine=0.99, ids_only=True)
        for place, text in enumerate(["a plain red dress", "a plain blue dress", "a plain black hat"] * 5)
    ]
    searches[7] = Search(text="a hat", hybrid=Hybrid())

    batch = client.batch_search(collection, searches, partial=True)

    assert set(batch.errors) == {7}
    first = [result.hits[0].id for result in batch.results if result is not None]
    expected = ["red", "blue", "hat"] * 5
    assert first == expected[:7] + expected[8:]
