"""A collection whose encoder is not served: all that needs no encoder works, and the rest says what is missing."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from lookwire import Client, Item, Query, Search, errors
from lookwire.local import LocalServer
from tests.conftest import MODEL_REPOSITORY
from tests.server.images import jpeg

VECTORS = np.eye(64, dtype=np.float32)


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """A server without its encoder, with a collection "shop" of three items."""
    data = tmp_path_factory.mktemp("data")
    with LocalServer(MODEL_REPOSITORY, data, allow_http=False) as server, Client(server.address) as client:
        client.create_collection("shop")
        client.upsert("shop", [Item(f"i{place}", vector=VECTORS[place]) for place in range(3)])
    with (
        LocalServer(MODEL_REPOSITORY, data, allow_http=False, model_control_mode="explicit") as server,
        Client(server.address) as client,
    ):
        yield client


@pytest.mark.parametrize(
    ("call", "field"),
    [
        (lambda client: client.search("shop", text="red"), "query.text"),
        (lambda client: client.search("shop", image=jpeg()), "query.image"),
        (
            lambda client: client.search("shop", query=Query.mix((Query.item("i0"), 1), (Query.text("red"), 1))),
            "query.mix.parts[1].query.text",
        ),
        (lambda client: client.upsert("shop", [Item("m", text="red")]), "items[0].text"),
        (
            lambda client: client.upsert("shop", [Item("n", vector=VECTORS[9]), Item("m", image=jpeg())]),
            "items[1].image",
        ),
    ],
    ids=["text", "image", "mix", "upsert of a text", "upsert of an image"],
)
def test_what_needs_the_encoder_is_refused(client: Client, call: Callable[[Client], Any], field: str) -> None:
    """The error names the encoder, what to do, and the field that was to be encoded."""
    with pytest.raises(
        errors.FailedPrecondition, match=r"encoder 'garments', which is not served now\. Load"
    ) as failure:
        call(client)

    assert failure.value.violations[0].field == field
    assert client.get_collection("shop").item_count == 3


def test_what_needs_no_encoder_works(client: Client) -> None:
    """Searches by vector and item, alone and beside one that fails, are answered."""
    batch = client.batch_search(
        "shop", [Search(vector=VECTORS[1]), Search(text="red"), Search(item_id="i1")], partial=True
    )

    assert [result and len(result.hits) for result in batch.results] == [3, None, 2]
    assert isinstance(batch.errors[1], errors.FailedPrecondition)
    assert client.search("shop", vector=VECTORS[2], include_calibrated_scores=True).hits[0].id == "i2"


def test_import_goes_on_with_vectors(client: Client) -> None:
    """Texts and images of an import have an error each, and vectors, also of later chunks, are written."""
    items = [
        Item("n0", text="red"),
        Item("n1", vector=VECTORS[5]),
        Item("n2", image=jpeg()),
        Item("n3", vector=VECTORS[6]),
    ]

    imported = client.import_items("shop", items, chunk_size=2)
    client.delete_items("shop", ["n1", "n3"])

    assert (imported.inserted, imported.failed) == (2, 2)
    assert set(imported.errors) == {"n0", "n2"}
    assert isinstance(imported.errors["n0"], errors.FailedPrecondition)
