"""Lists come page by page."""

from dataclasses import replace

import numpy as np
import pytest

from lookwire_server.errors import InvalidArgument
from lookwire_server.search.collection import Collection
from lookwire_server.search.collections import Collections
from lookwire_server.search.filters import Filter, Prefix
from lookwire_server.search.items import NewItem

from .conftest import DIMENSION, SHOES

BRANDED = Prefix("brand", "b")
# By UTF-8 bytes; another order than UTF-16 and than any dictionary's.
ORDERED = ["A", "Z", "a", "z", "é", "\uffee", "\U0001f45f"]


async def fill(collection: Collection, ids: list[str]) -> None:
    vectors = np.ones((len(ids), DIMENSION))
    await collection.upsert([NewItem(id, b'{"brand": "b1"}') for id in ids], vectors)


@pytest.mark.parametrize("filter", [None, BRANDED])
@pytest.mark.parametrize(("size", "pages"), [(3, [3, 3, 1]), (7, [7]), (8, [7]), (1, [1] * 7)])
async def test_pages_cover_all_in_order(
    collection: Collection, filter: Filter | None, size: int, pages: list[int]
) -> None:
    """Pages follow the UTF-8 order of the ids, and the last one has no token."""
    await fill(collection, ORDERED[::-1])

    sizes, ids, token = [], [], None
    while token != "":
        page = await collection.list_items(filter, page_size=size, page_token=token or "")
        sizes.append(len(page.items))
        ids += [item.id for item in page.items]
        token = page.next_page_token

    assert ids == ORDERED
    assert sizes == pages


@pytest.mark.parametrize(("size", "first_page"), [(0, 100), (1_000, 1_000), (5_000, 1_000)])
@pytest.mark.parametrize("filter", [None, BRANDED])
async def test_page_size_has_a_default_and_a_limit(
    collection: Collection, filter: Filter | None, size: int, first_page: int
) -> None:
    """No page size means 100, and a larger one than 1,000 means 1,000."""
    await fill(collection, [f"{number:05}" for number in range(1_001)])

    page = await collection.list_items(filter, page_size=size)

    assert len(page.items) == first_page
    assert page.next_page_token


async def test_writes_between_pages_repeat_nothing(collection: Collection) -> None:
    """What is written while a client pages is seen by its place in the order, and nothing is seen twice."""
    await fill(collection, ["b", "d", "f"])
    first = await collection.list_items(page_size=2)

    await collection.delete_items(["d"])
    await fill(collection, ["a", "b", "e"])
    second = await collection.list_items(page_size=2, page_token=first.next_page_token)

    assert [item.id for item in first.items] == ["b", "d"]
    assert [item.id for item in second.items] == ["e", "f"]


async def test_wrong_tokens_are_refused(collections: Collections, collection: Collection) -> None:
    """A token is good only for the collection and the filter that it was given for."""
    other = await collections.create(replace(SHOES, name="hats"))
    await fill(collection, ORDERED)
    await fill(other, ORDERED)
    token = (await collection.list_items(BRANDED, page_size=2)).next_page_token

    for wrong, filter, where in (
        (token, None, collection),
        (token, Prefix("brand", "b1"), collection),
        (token, BRANDED, other),
        ("!", BRANDED, collection),
        ("é", BRANDED, collection),
        ("AAAA", BRANDED, collection),
        (token[:-2] + "_w", BRANDED, collection),
        ("A" + token[1:] if token[0] != "A" else "B" + token[1:], BRANDED, collection),
    ):
        with pytest.raises(InvalidArgument) as caught:
            await where.list_items(filter, page_size=2, page_token=wrong)
        assert caught.value.field == "page_token"


async def test_negative_page_size_is_refused(collection: Collection) -> None:
    """A negative page size is INVALID_ARGUMENT."""
    with pytest.raises(InvalidArgument) as caught:
        await collection.list_items(page_size=-1)

    assert caught.value.field == "page_size"
