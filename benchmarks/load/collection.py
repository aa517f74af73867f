"""A collection for searches to look through."""

import numpy as np

from lookwire import Client, Item

NAME = "shop"
ITEMS = 10_000
ITEMS_OF_A_REQUEST = 1000


def fill(address: str, dimension: int) -> None:
    """Makes a collection of the server's only encoder, with items that have vectors of no meaning."""
    vectors = np.random.default_rng(0).standard_normal((ITEMS, dimension), np.float32)
    with Client(address) as client:
        client.create_collection(NAME)
        for first in range(0, ITEMS, ITEMS_OF_A_REQUEST):
            chosen = range(first, first + ITEMS_OF_A_REQUEST)
            client.upsert(NAME, [Item(f"item-{number}", vector=vectors[number]) for number in chosen])
