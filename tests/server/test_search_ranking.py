"""Hybrid, calibrated, diverse, grouped and batched searches through the front door."""

from collections.abc import Iterator
from typing import Any

import grpc
import numpy as np
import pytest

from lookwire import Client, Diversity, GroupBy, Hybrid, Item, Query, Search, errors
from lookwire.local import LocalServer
from lookwire.v1 import search_service_pb2 as pb
from lookwire.v1 import search_service_pb2_grpc
from tests.server.images import jpeg

COLOURS = ("red", "blue", "green", "black", "white", "yellow")
KINDS = ("dress", "hat", "bag", "shoe")


@pytest.fixture(scope="module")
def shop(client: Client) -> Iterator[str]:
    """24 items: each kind in each colour, with the kind as product and a name that says little of it."""
    client.create_collection("ranked", {"name": "text", "product": "string", "number": "int64", "sale": "bool"})
    client.upsert(
        "ranked",
        [
            Item(
                f"{colour}-{kind}",
                {"name": f"Model {number:03}", "product": kind, "number": number % 5, "sale": number % 2 == 0},
                text=f"a plain {colour} {kind}",
            )
            for number, (colour, kind) in enumerate((colour, kind) for colour in COLOURS for kind in KINDS)
        ],
    )
    yield "ranked"
    client.delete_collection("ranked")


def test_name_that_is_typed_comes_first(client: Client, shop: str) -> None:
    """An item whose exact name is typed comes first although its vector ranks low; the legs' ranks are in the reply."""
    result = client.search(shop, text="model  017", hybrid=Hybrid(), top_k=3)
    by_vector = [hit.id for hit in client.search(shop, text="model  017", top_k=24).hits]

    best = result.hits[0]
    assert best.payload["name"] == "Model 017"
    assert best.legs is not None
    assert best.legs.equal
    assert best.legs.vector_rank == by_vector.index(best.id) + 1
    assert best.legs.word_rank == 1
    assert best.legs.fused_score == pytest.approx(1 / 61 + 1 / (60 + best.legs.vector_rank))
    assert all(hit.legs is not None and not hit.legs.equal for hit in result.hits[1:])


def test_words_beside_an_image(client: Client, shop: str) -> None:
    """The words of a hybrid search may go with a query of any kind."""
    result = client.search(shop, image=jpeg(), hybrid=Hybrid("Model 005", ["name"]))

    assert result.hits[0].payload["name"] == "Model 005"


@pytest.mark.parametrize("field", ["product", "number", "sale"])
def test_groups_by_each_type(client: Client, shop: str, field: str) -> None:
    """The best hit of each value is returned with the value, in the order of their scores."""
    result = client.search(shop, text="a plain red dress", group_by=GroupBy(field))
    everything = client.search(shop, text="a plain red dress", top_k=24).hits

    best: dict[Any, str] = {}
    for hit in everything:
        best.setdefault(hit.payload[field], hit.id)
    assert {hit.group_value: hit.id for hit in result.hits} == best
    assert [hit.group_value for hit in result.hits] == list(best)
    assert [type(hit.group_value) for hit in result.hits] == [type(value) for value in best]


def test_top_k_counts_groups(client: Client, shop: str) -> None:
    """Hits of one value stand together, at most as many as asked for."""
    result = client.search(shop, text="a plain red dress", top_k=2, group_by=GroupBy("product", 3))

    values = [hit.group_value for hit in result.hits]
    assert len(values) == 6
    assert values == [values[0]] * 3 + [values[3]] * 3


def test_collapse_and_diversity(client: Client, shop: str) -> None:
    """Collapsed hits are all farther from each other than the limit; diverse ones are less alike than the nearest."""

    def likeness(**options: Any) -> float:
        hits = client.search(shop, text="a plain red dress", top_k=6, include_vectors=True, **options).hits
        vectors = np.stack([hit.vector for hit in hits if hit.vector is not None])
        assert hits[0].id == "red-dress"
        return float((vectors @ vectors.T)[np.triu_indices(len(vectors), 1)].max())

    nearest = likeness()
    assert likeness(collapse_cosine=nearest - 0.01) < nearest - 0.01
    assert likeness(diversity=Diversity(0.7)) < nearest


@pytest.mark.parametrize(
    "query",
    [
        {"text": "a plain red dress"},
        {"item_id": "red-dress"},
        {"image": jpeg()},
        {"query": Query.mix((Query.text("a plain red dress"), 1.0), (Query.item("red-hat"), 0.5))},
        {"query": Query.recommend(["red-dress", "red-hat"])},
    ],
    ids=["text", "item", "image", "mix", "recommend"],
)
def test_calibrated_scores_of_every_query(client: Client, shop: str, query: dict[str, Any]) -> None:
    """Calibrated scores lie in [0, 1], fall with the score, and a threshold taken from a hit keeps that hit."""
    hits = client.search(shop, include_calibrated_scores=True, **query).hits
    scores = [hit.calibrated_score for hit in hits if hit.calibrated_score is not None]

    kept = client.search(shop, calibrated_threshold=scores[2], **query).hits

    assert len(scores) == len(hits) == 10
    assert scores == sorted(scores, reverse=True)
    assert 0 <= scores[-1] <= scores[0] <= 1
    assert [hit.id for hit in kept][:3] == [hit.id for hit in hits][:3]
    assert all(hit.calibrated_score is not None and hit.calibrated_score >= scores[2] for hit in kept)


def test_calibration_knows_a_match(client: Client, shop: str) -> None:
    """What an item was made of is surer to match than text that fits none."""

    def best(text: str) -> float:
        score = client.search(shop, text=text, top_k=1, include_calibrated_scores=True).hits[0].calibrated_score
        assert score is not None
        return score

    assert best("a plain red dress") > 0.5 > best("quarterly report of the finance department")


def test_sigmoid_encoder_gives_its_own_probability(encoders_client: Client) -> None:
    """By an encoder of the sigmoid rule a text's calibrated scores are sigmoid(scale x cosine + bias), any other query's not."""
    encoders_client.create_collection("sigmoid-shop", encoder="sigmoid")
    encoders_client.upsert("sigmoid-shop", [Item(colour, text=f"a {colour} dress") for colour in COLOURS])

    by_text = encoders_client.search("sigmoid-shop", text="a red dress", include_calibrated_scores=True).hits
    by_item = encoders_client.search("sigmoid-shop", item_id="red", include_calibrated_scores=True).hits

    encoders_client.delete_collection("sigmoid-shop")
    assert [hit.calibrated_score for hit in by_text] == pytest.approx(
        [1 / (1 + np.exp(8 - 20 * hit.score)) for hit in by_text], rel=1e-4
    )
    assert by_item[0].calibrated_score != pytest.approx(1 / (1 + np.exp(8 - 20 * by_item[0].score)), rel=1e-2)


def test_calibration_without_a_text_tower(encoders_client: Client) -> None:
    """Where no probes can be embedded, the queries that come make the background."""
    dimension = encoders_client.create_collection("blind-shop", encoder="blind").dimension
    vectors = np.random.default_rng(3).standard_normal((30, dimension))
    encoders_client.upsert("blind-shop", [Item(f"i{place}", vector=row) for place, row in enumerate(vectors)])

    hits = encoders_client.search("blind-shop", vector=vectors[3], include_calibrated_scores=True).hits

    encoders_client.delete_collection("blind-shop")
    assert hits[0].id == "i3"
    assert hits[0].calibrated_score is not None
    assert hits[1].calibrated_score is not None
    assert hits[0].calibrated_score > 0.9 > hits[1].calibrated_score


def test_payload_fields_and_ids_only(client: Client, shop: str) -> None:
    """Only the fields asked for come back, and nothing with ids only."""
    some = client.search(shop, item_id="red-hat", payload_fields=["number", "colour"], top_k=1).hits[0]
    none = client.search(shop, item_id="red-hat", payload_fields=["number"], ids_only=True, top_k=1).hits[0]

    assert set(some.payload) == {"number"}
    assert none.payload == {}


def test_plan_is_explained(client: Client, shop: str) -> None:
    """With explain the plan has all figures and a reason, without it the method and the counts."""
    plain = client.search(shop, text="a hat", top_k=3).plan
    full = client.search(shop, text="a hat", top_k=3, explain=True, exact=True).plan

    assert (plain.method, plain.item_count, plain.reason, plain.candidate_count) == ("exact", 24, "", 0)
    assert (full.method, full.item_count, full.match_count) == ("exact", 24, 24)
    assert full.candidate_count == 3 + 8
    assert (full.measured_recall, full.batch_size >= 1) == (1, True)
    assert full.reason


def test_batch_of_searches(client: Client, shop: str) -> None:
    """Each search of a batch answers as it does alone, and one that fails leaves the others be."""
    searches = [Search(text=f"a plain {colour} hat", top_k=2) for colour in COLOURS]
    searches[2] = Search(item_id="nothing")
    searches[4] = Search(text="a hat", top_k=1_000_000)
    searches[5] = Search(text="a hat", top_k=100, group_by=GroupBy("product", 101))

    batch = client.batch_search(shop, searches, partial=True)

    assert set(batch.errors) == {2, 4, 5}
    assert isinstance(batch.errors[2], errors.NotFound)
    assert batch.errors[4].violations[0].field == "top_k"
    assert batch.errors[5].violations[0].field == "group_by.group_size"
    for index in (0, 1, 3):
        result = batch.results[index]
        assert result is not None
        assert result.hits[0].id == f"{COLOURS[index]}-hat"
        alone = client.search(shop, text=f"a plain {COLOURS[index]} hat", top_k=2)
        assert [hit.id for hit in result.hits] == [hit.id for hit in alone.hits]


@pytest.mark.parametrize(
    ("requests", "message"),
    [
        ([], "expected 1 to 256 requests, got 0"),
        ([pb.SearchRequest()] * 257, "got 257"),
        ([pb.SearchRequest(top_k=1_000)] * 11, "up to 11000 hits; at most 10000"),
        ([pb.SearchRequest(top_k=100, group_by=pb.GroupBy(group_size=10))] * 11, "up to 11000 hits"),
    ],
)
def test_batches_are_bounded(server: LocalServer, requests: list[pb.SearchRequest], message: str) -> None:
    """A batch of too many searches, or for too many hits, is refused as a whole."""
    with grpc.insecure_channel(server.address) as channel, pytest.raises(grpc.RpcError, match=message) as failure:
        search_service_pb2_grpc.SearchServiceStub(channel).BatchSearch(pb.BatchSearchRequest(requests=requests))

    assert failure.value.code() == grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize(
    ("options", "error", "field"),
    [
        ({"item_id": "red-hat", "hybrid": Hybrid()}, errors.InvalidArgument, "hybrid.words"),
        ({"text": "", "hybrid": Hybrid()}, errors.InvalidArgument, "hybrid.words"),
        ({"text": "x", "hybrid": Hybrid(fields=["product"])}, errors.InvalidArgument, "hybrid.fields[0]"),
        ({"text": "x", "group_by": GroupBy("colour")}, errors.InvalidArgument, "group_by.field"),
        ({"text": "x", "group_by": GroupBy("name")}, errors.InvalidArgument, "group_by.field"),
        ({"text": "x", "collapse_cosine": 2.0}, errors.InvalidArgument, "collapse_cosine"),
        ({"text": "x", "calibrated_threshold": -0.1}, errors.InvalidArgument, "calibrated_threshold"),
        ({"text": "x", "diversity": Diversity(-1)}, errors.InvalidArgument, "diversity.weight"),
    ],
)
def test_wrong_options_name_their_field(
    client: Client, shop: str, options: dict[str, Any], error: type[errors.LookwireError], field: str
) -> None:
    """A wrong option is refused with the path of the field."""
    with pytest.raises(error) as failure:
        client.search(shop, **options)

    assert failure.value.violations[0].field == field


def test_hybrid_search_without_text_fields(client: Client, collection: str) -> None:
    """A collection that declares no text field has no words to look for."""
    with pytest.raises(errors.FailedPrecondition, match="declares no TEXT field"):
        client.search(collection, text="red", hybrid=Hybrid())
