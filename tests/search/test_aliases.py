"""Aliases are further names of collections, and share one set of names with them."""

from dataclasses import replace

import pytest

from lookwire_server.errors import AlreadyExists, InvalidArgument, NotFound, Unavailable
from lookwire_server.search.collection import Collection
from lookwire_server.search.collections import Collections

from .conftest import SHOES, Open


async def test_alias_names_a_collection(collections: Collections, collection: Collection) -> None:
    """An alias finds its collection, by the true name or by another alias, and the collection lists its aliases in order."""
    await collections.set_alias("b", "shoes")
    await collections.set_alias("a", "b")

    assert collections.get("a") is collections.get("b") is collection
    assert collection.aliases == ("a", "b")
    assert collections.list() == [collection]


async def test_alias_moves_and_goes(collections: Collections, collection: Collection) -> None:
    """An alias that is set again names the other collection only; one that is removed names nothing, and both stay."""
    hats = await collections.create(replace(SHOES, name="hats"))
    await collections.set_alias("shop", "shoes")

    await collections.set_alias("shop", "hats")

    assert collections.get("shop") is hats
    assert (collection.aliases, hats.aliases) == ((), ("shop",))
    await collections.remove_alias("shop")
    with pytest.raises(NotFound, match="existing: 'hats', 'shoes'"):
        collections.get("shop")
    with pytest.raises(NotFound, match="no alias 'shop'"):
        await collections.remove_alias("shop")
    with pytest.raises(NotFound, match="no alias 'shoes'"):
        await collections.remove_alias("shoes")


async def test_aliases_survive_a_restart(open_collections: Open) -> None:
    """After a restart each alias names the collection that it was set to last."""
    first = open_collections()
    await first.create(SHOES)
    await first.create(replace(SHOES, name="hats"))
    for alias, name in (("shop", "shoes"), ("old", "shoes"), ("shop", "hats"), ("gone", "hats")):
        await first.set_alias(alias, name)
    await first.remove_alias("gone")
    first.close()

    again = open_collections()

    assert (again.get("shop").name, again.get("old").name) == ("hats", "shoes")
    assert (again.get("hats").aliases, again.get("shoes").aliases) == (("shop",), ("old",))


async def test_names_are_taken_once(collections: Collections, collection: Collection) -> None:
    """A collection's name is refused as an alias, and an alias as the name of a new collection."""
    await collections.set_alias("shop", "shoes")

    with pytest.raises(AlreadyExists, match="'shoes'") as own:
        await collections.set_alias("shoes", "shop")
    with pytest.raises(AlreadyExists, match="alias 'shop'"):
        await collections.create(replace(SHOES, name="shop"))
    assert own.value.field == "alias"
    assert collections.get("shop") is collection


@pytest.mark.parametrize(("alias", "name", "kind", "field"), [
    ("", "shoes", InvalidArgument, "alias"),
    ("a/b", "shoes", InvalidArgument, "alias"),
    ("shop", "hats", NotFound, "collection"),
])  # fmt: skip
async def test_wrong_alias_is_explained(
    collections: Collections, collection: Collection, alias: str, name: str, kind: type[InvalidArgument], field: str
) -> None:
    """A name of the wrong form and an unknown collection are errors that name the field, and nothing is set."""
    with pytest.raises(kind) as failure:
        await collections.set_alias(alias, name)

    assert failure.value.field == field
    assert failure.value.message.startswith("an alias has 1 to 128" if field == "alias" else "no collection")
    assert collection.aliases == ()


async def test_deletion_takes_the_aliases_along(open_collections: Open) -> None:
    """A collection deleted by its alias is gone with all aliases, also after a restart, and their names are free."""
    collections = open_collections()
    await collections.create(SHOES)
    await collections.set_alias("shop", "shoes")
    await collections.set_alias("old", "shoes")

    await collections.delete("shop")

    assert collections.list() == []
    with pytest.raises(NotFound, match="there are none"):
        collections.get("old")
    collections.close()
    again = open_collections()
    await again.create(replace(SHOES, name="old"))
    assert again.get("old").aliases == ()


async def test_metrics_use_the_true_name(collections: Collections, collection: Collection) -> None:
    """The gauges of a collection carry its own name, whatever aliases it has, and go with it."""
    await collections.set_alias("shop", "shoes")
    sample = collections._engine.metrics.registry.get_sample_value
    gauges = [
        ("lookwire_collection_items", {}),
        ("lookwire_collection_generation", {}),
        ("lookwire_collection_recall", {"direction": "far"}),
        ("lookwire_collection_bytes", {"part": "rows"}),
    ]
    before = [sample(name, {"collection": "shoes", **labels}) for name, labels in gauges]

    assert None not in before
    assert before[:3] == [0, 0, 1]
    assert sample("lookwire_collection_items", {"collection": "shop"}) is None
    await collections.delete("shop")
    assert [sample(name, {"collection": "shoes", **labels}) for name, labels in gauges] == [None] * 4


async def test_write_by_a_moved_alias_is_not_confirmed(collections: Collections, collection: Collection) -> None:
    """A caller whose alias came to mean another collection is told to try again; one whose name still means it is not."""
    await collections.create(replace(SHOES, name="hats"))
    await collections.set_alias("shop", "shoes")
    collections.check_means("shop", collection)

    await collections.set_alias("shop", "hats")

    with pytest.raises(Unavailable, match="'shop' was pointed to another collection"):
        collections.check_means("shop", collection)
    collections.check_means("shoes", collection)
