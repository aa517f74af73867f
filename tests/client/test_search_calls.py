from pathlib import Path
from typing import Any

import numpy as np
import pytest
from google.rpc.error_details_pb2 import BadRequest
from google.rpc.status_pb2 import Status

from lookwire import Client, Diversity, GroupBy, Hybrid, Legs, Plan, Query, Search, errors, field
from lookwire.v1 import search_service_pb2 as pb
from lookwire.v1.filter_pb2 import ExistsCondition, FieldValue, Filter
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
            plan=pb.Plan(
                method=pb.Plan.METHOD_IVF,
                item_count=100,
                match_count=7,
                generation=3,
                indexed_count=90,
                cells=40,
                probes=4,
                ef_search=5,
                candidate_count=18,
                measured_recall=0.75,
                batch_size=6,
                reason="so it is",
            ),
            calibrated_scores=[0.5, 0.25],
            legs=pb.HybridLegs(
                vector_ranks=[1, 2],
                word_ranks=[3, 0],
                word_scores=[1.5, 0],
                fused_scores=[1.5, 0.5],
                equal=[True, False],
            ),
            group_values=[FieldValue(bool_value=True), FieldValue(int64_value=7)],
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
        calibrated_threshold=0.0,
        include_calibrated_scores=True,
        hybrid=Hybrid("shoe", ["title"], vector_weight=0, word_weight=2),
        diversity=Diversity(0.5, 20),
        group_by=GroupBy("product", 2),
        collapse_cosine=0.5,
        payload_fields=["price"],
        exact=True,
        explain=True,
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
            calibrated_threshold=0.0,
            include_calibrated_scores=True,
            hybrid=pb.Hybrid(words="shoe", fields=["title"], vector_weight=0, word_weight=2),
            diversity=pb.Diversity(weight=0.5, candidates=20),
            group_by=pb.GroupBy(field="product", group_size=2),
            collapse_cosine=0.5,
            payload_fields=["price"],
            exact=True,
            explain=True,
        )
    ]
    assert [(hit.id, hit.score, hit.payload) for hit in result.hits] == [("a", 0.75, {"price": 3}), ("b", 0.5, {})]
    np.testing.assert_array_equal([hit.vector for hit in result.hits], rows)
    assert [hit.calibrated_score for hit in result.hits] == [0.5, 0.25]
    assert [hit.legs for hit in result.hits] == [Legs(1, 3, 1.5, 1.5, True), Legs(2, 0, 0, 0.5, False)]
    assert [hit.group_value for hit in result.hits] == [True, 7]
    assert result.plan == Plan("ivf", 100, 7, 3, 90, 40, 4, 5, 18, 0.75, 6, "so it is")
    assert (result.sequence, result.fingerprint) == (12, "ab" * 16)
    assert (result.times.search_us, result.times.total_us) == (5, 20)


def test_search_with_no_option(client: Client, server: FakeServer) -> None:
    """By default ten hits are asked for, with no threshold and no sequence."""
    server.reply(pb.SearchResponse(ids=["a"], scores=[0.5], payloads=[b"{}"]))

    result = client.search("shop", text="red")

    assert server.requests == [pb.SearchRequest(collection="shop", query=pb.Query(text="red"), top_k=10)]
    hit = result.hits[0]
    assert (hit.vector, hit.calibrated_score, hit.legs, hit.group_value) == (None, None, None, None)


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
    with pytest.raises(ValueError, match="size of a group is at least 1, not 0"):
        client.search("shop", text="red", group_by=GroupBy("product", 0))
    with pytest.raises(ValueError, match="words of a hybrid search are empty"):
        client.search("shop", text="red", hybrid=Hybrid(""))
    with pytest.raises(TypeError, match="fields of a hybrid search are a list"):
        client.search("shop", text="red", hybrid=Hybrid(fields="title"))
    wrong = {"hybrid": ("red", "Hybrid"), "group_by": ("product", "GroupBy"), "diversity": (0.5, "Diversity")}
    for option, (value, wanted) in wrong.items():
        arguments: dict[str, Any] = {option: value}
        with pytest.raises(TypeError, match=rf"^{option} is a lookwire\.{wanted}, not {type(value).__name__}$"):
            client.search("shop", text="red", **arguments)
    with pytest.raises(TypeError, match="words of a hybrid search are a string, not int"):
        client.search("shop", text="red", hybrid=Hybrid(5))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="payload_fields are a list"):
        client.search("shop", text="red", payload_fields="title")
    with pytest.raises(ValueError, match="give searches"):
        client.batch_search("shop", [])
    with pytest.raises(TypeError, match=r"lookwire\.Search, not str"):
        client.batch_search("shop", ["red"])  # type: ignore[list-item]

    assert server.requests == []


def test_hybrid_with_the_text_of_the_query(client: Client, server: FakeServer) -> None:
    """Without words of its own a hybrid search leaves them to the server, and both weights are 1."""
    server.reply(pb.SearchResponse())

    client.search("shop", text="red", hybrid=Hybrid())

    hybrid = pb.Hybrid(vector_weight=1, word_weight=1)
    assert server.requests == [pb.SearchRequest(collection="shop", query=pb.Query(text="red"), top_k=10, hybrid=hybrid)]


FAILED = pb.BatchSearchResult(error=Status(code=3, message="query.text: too long"))
FAILED.error.details.add().Pack(
    BadRequest(field_violations=[BadRequest.FieldViolation(field="query.text", description="too long")])
)
FOUND = pb.BatchSearchResult(response=pb.SearchResponse(ids=["a"], scores=[0.5], payloads=[b"{}"]))


def test_batch_search(client: Client, server: FakeServer) -> None:
    """Searches go together, and their results come in order."""
    server.reply(pb.BatchSearchResponse(results=[FOUND, FOUND]))

    batch = client.batch_search("shop", [Search(text="red", top_k=3), Search(item_id="a", ids_only=True)])

    assert server.requests == [
        pb.BatchSearchRequest(
            requests=[
                pb.SearchRequest(collection="shop", query=pb.Query(text="red"), top_k=3),
                pb.SearchRequest(collection="shop", query=pb.Query(item_id="a"), top_k=10, ids_only=True),
            ]
        )
    ]
    assert [result.hits[0].id for result in batch.results if result is not None] == ["a", "a"]
    assert batch.errors == {}


def test_failed_search_of_a_batch(client: Client, server: FakeServer) -> None:
    """The first error is raised with the index of its search; with `partial` the others are answered."""
    server.reply(*[pb.BatchSearchResponse(results=[FOUND, FAILED])] * 2)
    searches = [Search(text="red"), Search(text="blue")]

    with pytest.raises(errors.InvalidArgument, match=r"^searches\[1\]: query.text: too long") as failure:
        client.batch_search("shop", searches)
    batch = client.batch_search("shop", searches, partial=True)

    assert failure.value.violations[0].field == "searches[1].query.text"
    assert batch.results[0] is not None
    assert batch.results[1] is None
    assert isinstance(batch.errors[1], errors.InvalidArgument)
