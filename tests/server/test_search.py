"""Searching through the front door."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from lookwire import Client, Filter, Item, Query, errors, field
from tests.server.images import jpeg


def test_search_by_text_is_one_call(client: Client, collection: str) -> None:
    """One RPC encodes the text and ranks the items; its reply carries stage times, the plan and the fingerprint."""
    result = client.search(collection, text="a plain red dress", top_k=2)

    assert result.hits[0].id == "red"
    assert result.hits[0].score == pytest.approx(1, abs=1e-5)
    assert result.hits[0].payload["kind"] == "dress"
    assert len(result.hits) == 2
    assert result.fingerprint == client.get_encoder().fingerprint
    assert result.plan.item_count == result.plan.match_count == 3
    assert result.times.infer_us > 0
    assert result.times.total_us >= result.times.infer_us + result.times.search_us
    assert result.sequence == client.get_collection(collection).sequence


def test_every_kind_of_query(client: Client, collection: str) -> None:
    """Text, image, vector, item, mix and recommend all rank by the same cosine."""
    vectors = client.embed(["a plain red dress", "a plain black hat"]).vectors
    image = client.embed(images=[jpeg()]).vectors[0]
    items = client.get_items(collection, ["red", "blue", "hat"], include_vectors=True)
    stored = {item.id: item.vector for item in items if item.vector is not None}

    def scores(**query: Any) -> dict[str, float]:
        return {hit.id: hit.score for hit in client.search(collection, **query).hits}

    def cosines(vector: NDArray[np.float32], *ids: str) -> object:
        unit = vector / np.linalg.norm(vector)
        return pytest.approx({id: float(stored[id] @ unit) for id in ids}, abs=1e-5)

    assert scores(text="a plain red dress") == cosines(vectors[0], "red", "blue", "hat")
    assert scores(image=jpeg()) == cosines(image, "red", "blue", "hat")
    assert scores(vector=7 * vectors[1]) == cosines(vectors[1], "red", "blue", "hat")
    assert scores(item_id="hat") == cosines(stored["hat"], "red", "blue")
    mix = Query.mix((Query.text("a plain red dress"), 1.0), (Query.item("hat"), -0.5))
    assert scores(query=mix) == cosines(vectors[0] - 0.5 * stored["hat"], "red", "blue")
    liked = Query.recommend(liked=["red"], disliked=["hat"])
    assert scores(query=liked) == cosines(stored["red"] - stored["hat"], "blue")


@pytest.mark.parametrize("scale", [1e-45, 1e-7, 3e38])
def test_weights_of_a_mix_count_by_their_ratio(client: Client, collection: str, scale: float) -> None:
    """Weights may be as small or as large as a float can be: what they have in common changes nothing."""

    def hits(*weights: float) -> list[tuple[str, Any]]:
        mix = Query.mix(*zip((Query.item("red"), Query.item("blue")), weights, strict=True))
        return [(hit.id, pytest.approx(hit.score, abs=1e-5)) for hit in client.search(collection, query=mix).hits]

    assert hits(scale, scale) == hits(1, 1)
    assert hits(scale, -scale) == hits(1, -1)


@pytest.mark.parametrize(
    ("filter", "expected"),
    [
        (field("kind") == "dress", {"red", "blue"}),
        (~(field("kind") == "dress"), {"hat"}),
        (field("price") < 50, {"red"}),
        (field("price").exists(), {"red", "blue"}),
        (field("stock").is_in([0, 1]), {"blue"}),
        (field("sale") == False, {"blue"}),  # noqa: E712 - a filter, not a comparison
        (field("place").within(52.5, 13.4, 1000), {"red"}),
        ((field("kind") == "hat") | (field("price") >= 60), {"hat", "blue"}),
    ],
)
def test_filters_are_never_violated(client: Client, collection: str, filter: Filter, expected: set[str]) -> None:
    """A search with a filter returns exactly the items that match, as do a listing and a count."""
    result = client.search(collection, text="a plain red dress", filter=filter)

    assert {hit.id for hit in result.hits} == expected
    assert result.plan.match_count == len(expected)
    assert {item.id for item in client.list_items(collection, filter=filter)} == expected
    assert client.count_items(collection, filter=filter) == len(expected)


def test_score_threshold_drops_lower_hits(client: Client, collection: str) -> None:
    """Only hits of at least the threshold are returned."""
    hits = client.search(collection, text="a plain red dress", score_threshold=0.999).hits

    assert [hit.id for hit in hits] == ["red"]


def test_writes_are_visible_before_the_reply(client: Client, collection: str) -> None:
    """What was acknowledged is found by the next search: inserted, replaced and deleted items alike."""
    inserted = client.upsert(collection, [Item("coat", {"kind": "coat"}, text="a plain green coat")])
    found = client.search(collection, text="a plain green coat", min_sequence=inserted.sequence, top_k=1).hits[0]
    replaced = client.upsert(collection, [Item("coat", {"kind": "bag"}, text="a plain white bag")])
    moved = client.search(collection, text="a plain white bag", top_k=1).hits[0]
    deleted = client.delete_items(collection, ["coat", "nothing"])
    rest = client.search(collection, text="a plain white bag").hits

    assert (inserted.inserted, inserted.replaced, replaced.inserted, replaced.replaced) == (1, 0, 0, 1)
    assert (found.id, found.payload) == ("coat", {"kind": "coat"})
    assert (moved.id, moved.payload) == ("coat", {"kind": "bag"})
    assert deleted.count == 1
    assert "coat" not in {hit.id for hit in rest}
    assert inserted.sequence < replaced.sequence < deleted.sequence


def test_sequence_not_reached_is_an_error(client: Client, collection: str) -> None:
    """A search for a sequence that the collection has not reached fails instead of answering from the past."""
    with pytest.raises(errors.FailedPrecondition):
        client.search(collection, text="hat", min_sequence=1_000_000)


def test_upsert_is_atomic(client: Client, collection: str) -> None:
    """One bad item and none of the request is written."""
    with pytest.raises(errors.InvalidArgument) as failure:
        client.upsert(collection, [Item("good", text="a hat"), Item("bad", {"price": "cheap"}, text="a hat")])

    assert failure.value.violations[0].field.startswith("items[1]")
    assert client.get_items(collection, ["good", "bad"]) == []


def test_vectors_in_half_precision(client: Client, collection: str) -> None:
    """float16 vectors are those of float32, rounded."""
    full = client.embed(["a red dress"]).vectors
    half = client.embed(["a red dress"], float16=True).vectors

    np.testing.assert_array_equal(half, full.astype(np.float16).astype(np.float32))
