"""What all tests share: a real server on the bundled encoder, and a real client."""

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest

from lookwire import Client, Item
from lookwire.local import LocalServer

ROOT = Path(__file__).parents[1]
MODEL_REPOSITORY = ROOT / "model_repo"


@pytest.fixture(scope="session")
def server() -> Iterator[LocalServer]:
    """A server that keeps no vectors, so that each text of a test is embedded."""
    with LocalServer(MODEL_REPOSITORY, embedding_cache_bytes=0) as server:
        yield server


@pytest.fixture(scope="session")
def client(server: LocalServer) -> Iterator[Client]:
    with Client(server.address) as client:
        yield client


NUMBERS = itertools.count()


@pytest.fixture
def collection(client: Client) -> Iterator[str]:
    """A collection of three items: red and blue dresses with a price, and a hat without one."""
    name = f"shop-{next(NUMBERS)}"
    client.create_collection(
        name, {"kind": "string", "price": "double", "stock": "int64", "sale": "bool", "place": "geo_point"}
    )

    client.upsert(
        name,
        [
            Item(
                "red",
                {"kind": "dress", "price": 40.0, "stock": 3, "sale": True, "place": {"lat": 52.5, "lon": 13.4}},
                text="a plain red dress",
            ),
            Item("blue", {"kind": "dress", "price": 60.0, "stock": 0, "sale": False}, text="a plain blue dress"),
            Item("hat", {"kind": "hat"}, text="a plain black hat"),
        ],
    )
    yield name
    client.delete_collection(name)
