from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lookwire import Client, Plan, Query, field
from lookwire.v1 import search_service_pb2 as pb
from lookwire.v1.filter_pb2 import ExistsCondition, Filter
from lookwire.v1.stage_times_pb2 import StageTimes
from lookwire.v1.vector_pb2 import Matrix, Vector
from tests.client.fake_server import FakeServer

F32_1_0 = b"\x00\x00\x80\x3f\x00\x00\x00\x00"


def test_search_with_every_option(client: Client, server: FakeServer) -> None:
    """Every option reaches the server, and hits come best first with payload and vector."""
    rows = np.array([[1, 0], [0, 1]], "<f4")
    server.reply(
        pb.SearchResponse(
            ids=["a", "b"],
            scores=[0.75, 0.5],
            payloads=[b'{"price": 3}', b"{}"],
            vectors=Matrix(f32=rows.tobytes(), rows=2, dimension=2),
            plan=pb.Plan(method=pb.Plan.METHOD_GATHER, item_count=100, match_count=7),
            sequence=12,
            fingerprint="ab" * 16,
            times=StageTimes(search_us=5, total_us=20),
        )
    )

    result = client.search(
        "shop",
        text="red",
        filter=field("price").exists(),
        top_k=2,
        score_threshold=0.0,
        include_vectors=True,
        min_sequence=0,
    )

    assert server.requests == [
        pb.SearchRequest(
            collection="shop",
            query=pb.Query(text="red"),
            filter=Filter(exists=ExistsCondition(field="price")),
            top_k=2,
            score_threshold=0.0,
            include_vectors=True,
            min_sequence=0,
        )
    ]
    assert [(hit.id, hit.score, hit.payload) for hit in result.hits] == [("a", 0.75, {"price": 3}), ("b", 0.5, {})]
    np.testing.assert_array_equal([hit.vector for hit in result.hits], rows)
    assert result.plan == Plan(method="gather", item_count=100, match_count=7)
    assert (result.sequence, result.fingerprint) == (12, "ab" * 16)
    assert (result.times.search_us, result.times.total_us) == (5, 20)


def test_search_with_no_option(client: Client, server: FakeServer) -> None:
    """By default ten hits are asked for, with no threshold and no sequence."""
    server.reply(pb.SearchResponse(ids=["a"], scores=[0.5], payloads=[b"{}"]))

    result = client.search("shop", text="red")

    assert server.requests == [pb.SearchRequest(collection="shop", query=pb.Query(text="red"), top_k=10)]
    assert result.hits[0].vector is None


def test_search_for_ids_only(client: Client, server: FakeServer) -> None:
    """A reply without payloads gives hits with empty ones."""
    server.reply(pb.SearchResponse(ids=["a", "b"], scores=[0.75, 0.5]))

    result = client.search("shop", text="red", ids_only=True)

    assert [(hit.id, hit.payload) for hit in result.hits] == [("a", {}), ("b", {})]


def test_search_by_a_method_of_a_newer_server(client: Client, server: FakeServer) -> None:
    """A plan that this client has no word for is its number."""
    server.reply(pb.SearchResponse(plan=pb.Plan(method=99)))  # type: ignore[arg-type]

    assert client.search("shop", text="red").plan.method == "99"


@pytest.mark.parametrize(
    ("arguments", "query"),
    [
        ({"text": ""}, pb.Query(text="")),
        ({"image": b"red"}, pb.Query(image=b"red")),
        ({"vector": [1, 0]}, pb.Query(vector=Vector(f32=F32_1_0))),
        ({"vector": np.array([1, 0], np.float64)}, pb.Query(vector=Vector(f32=F32_1_0))),
        ({"item_id": "a"}, pb.Query(item_id="a")),
        (
            {"query": Query.mix((Query.text("red"), 1.0), (Query.item("a"), -0.5))},
            pb.Query(
                mix=pb.MixQuery(
                    parts=[
                        pb.WeightedQuery(query=pb.Query(text="red"), weight=1.0),
                        pb.WeightedQuery(query=pb.Query(item_id="a"), weight=-0.5),
                    ]
                )
            ),
        ),
        (
            {"query": Query.recommend(liked=["a", "b"], disliked=["c"])},
            pb.Query(recommend=pb.RecommendQuery(liked_ids=["a", "b"], disliked_ids=["c"])),
        ),
    ],
    ids=["text", "image", "vector", "float64 vector", "item", "mix", "recommend"],
)
def test_kinds_of_query(client: Client, server: FakeServer, arguments: dict[str, Any], query: pb.Query) -> None:
    """Each kind of query goes as the member of that name."""
    server.reply(pb.SearchResponse())

    client.search("shop", **arguments)

    assert server.requests == [pb.SearchRequest(collection="shop", query=query, top_k=10)]


def test_search_by_an_image_file(client: Client, server: FakeServer, tmp_path: Path) -> None:
    """A path is read."""
    (tmp_path / "a.png").write_bytes(b"from file")
    server.reply(pb.SearchResponse())

    client.search("shop", image=tmp_path / "a.png")

    assert server.requests == [pb.SearchRequest(collection="shop", query=pb.Query(image=b"from file"), top_k=10)]


@pytest.mark.parametrize(
    "arguments",
    [{}, {"text": "", "item_id": ""}, {"query": Query.text("red"), "image": b"red"}],
    ids=["none", "two empty ones", "query and image"],
)
def test_search_needs_one_query(client: Client, server: FakeServer, arguments: dict[str, Any]) -> None:
    """Two queries, or none, never reach the server."""
    with pytest.raises(ValueError, match=f"not {len(arguments)}$"):
        client.search("shop", **arguments)

    assert server.requests == []


def test_search_refuses_what_cannot_be_sent(client: Client, server: FakeServer) -> None:
    """Wrong types and top_k below 1 are refused at once, with a sentence."""
    with pytest.raises(ValueError, match="top_k is at least 1, not 0"):
        client.search("shop", text="red", top_k=0)
    with pytest.raises(TypeError, match=r"lookwire\.Query, not str"):
        client.search("shop", query="red")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="text is a string, not bytes"):
        client.search("shop", text=b"red")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="item id is a string, not int"):
        client.search("shop", item_id=3)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="not bool"):
        client.search("shop", text="red", filter="price" == 3)  # type: ignore[arg-type, comparison-overlap]
    with pytest.raises(TypeError, match="not one string"):
        Query.recommend(liked="abc")

    assert server.requests == []
