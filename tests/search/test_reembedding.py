"""A collection is copied, embedded by another encoder, while both serve; nothing that was confirmed is left behind."""

import asyncio
import json
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace

import numpy as np
import pytest

from lookwire_server.errors import AlreadyExists, FailedPrecondition, LookwireError, QueueFull, Unavailable
from lookwire_server.search import reembedding
from lookwire_server.search.collection import Collection
from lookwire_server.search.collections import Collections, Reembedded
from lookwire_server.search.items import NewItem
from lookwire_server.search.reembedding import Progress
from lookwire_server.search.vectors import Matrix

from .conftest import DIMENSION, SHOES, Open

KEPT = replace(SHOES, keeps_sources=True)
WIDE = 6
NEW = Reembedded("new", "siglip", "f2", WIDE)


@dataclass(frozen=True)
class Made:
    """What an embedding gives back."""

    vectors: Matrix
    errors: dict[int, LookwireError] = field(default_factory=dict)


def vector(source: str | bytes) -> "np.ndarray[tuple[int], np.dtype[np.float32]]":
    """A vector that only this source has."""
    seed = int.from_bytes((source.encode() if isinstance(source, str) else source).ljust(4, b"-")[-8:], "little")
    return np.random.default_rng(seed).standard_normal(WIDE).astype(np.float32)


async def embed(sources: Sequence[str | bytes]) -> Made:
    await asyncio.sleep(0)
    return Made(np.stack([vector(source) for source in sources]))


def item(number: int, version: int = 0) -> NewItem:
    source: str | bytes = f"text {number} {version}" if number % 2 else b"image %d %d" % (number, version)
    return NewItem(f"i{number}", json.dumps({"stock": number + version}).encode(), source)


async def write(collection: Collection, *items: NewItem) -> None:
    for start in range(0, len(items), 500):
        part = items[start : start + 500]
        await collection.upsert(part, np.ones((len(part), DIMENSION)))


async def copied(collections: Collections, alias: str = "", embed: reembedding.Embed = embed) -> list[Progress]:
    run = (await collections.reembed("shoes", NEW, alias, embed)).run()
    return [progress async for progress in run]


async def check_equal(source: Collection, target: Collection) -> None:
    """The target has the items of the source, byte for byte, each with the vector of its source."""
    store = source._engine.store
    listed: list[list[NewItem]] = []
    for collection in (source, target):
        view = collection.index.view
        keys = view.rows.keys(view.count)[view.alive].tolist()
        payloads, sources = store.items.payloads(keys), store.sources.by_key(keys)
        listed.append(sorted((NewItem(*payloads[key], sources[key]) for key in keys), key=lambda item: item.id))
    assert listed[0] == listed[1]
    for start in range(0, len(listed[1]), 1000):
        part = listed[1][start : start + 1000]
        found = await target.get_items([item.id for item in part], include_vectors=True)
        expected = np.stack([vector(item.source or b"") for item in part])
        assert found.vectors is not None
        np.testing.assert_allclose(found.vectors, expected / np.linalg.norm(expected, axis=1, keepdims=True), atol=1e-6)


@pytest.fixture
async def source(collections: Collections) -> Collection:
    source = await collections.create(KEPT)
    await write(source, *map(item, range(150)))
    return source


async def test_all_items_are_copied(collections: Collections, source: Collection) -> None:
    """The new collection has the fields, payloads and sources of the old one, vectors of the other encoder, and the alias."""
    await collections.set_alias("shop", "shoes")

    steps = await copied(collections, "shop")

    target = collections.get("new")
    await check_equal(source, target)
    assert collections.get("shop") is target
    assert (target.row.fields, target.row.encoder, target.row.fingerprint) == (KEPT.fields, "siglip", "f2")
    assert target.row.keeps_sources
    assert [step.copied_count for step in steps] == [64, 128, 150, 150]
    assert {step.item_count for step in steps} == {150}
    assert [step.done for step in steps] == [False, False, False, True]
    assert len((await source.search(np.ones(DIMENSION))).ids) == 10


async def test_writes_meanwhile_are_copied(collections: Collections, source: Collection) -> None:
    """Items that are added, replaced and removed during the copy are so in the new collection too."""
    run = (await collections.reembed("shoes", NEW, "", embed)).run()
    async with aclosing(run):
        await anext(run)
        await write(source, item(0, 1), item(140, 1), item(1000))
        await source.delete_items(["i1", "i149"])
        steps = [step async for step in run]

    await check_equal(source, collections.get("new"))
    assert (steps[-1].copied_count, steps[-1].item_count, steps[-1].done) == (149, 149, True)


async def test_copy_goes_on_where_it_was_given_up(open_collections: Open) -> None:
    """A call that was cancelled leaves what it copied; the same call embeds only the rest, even after a restart."""
    collections = open_collections()
    source = await collections.create(KEPT)
    await write(source, *map(item, range(150)))
    async with aclosing((await collections.reembed("shoes", NEW, "shop", embed)).run()) as run:
        await anext(run)
    assert collections.get("new").item_count == 64
    collections.close()
    collections = open_collections()
    source = collections.get("shoes")
    await source.delete_items(["i0"])
    embedded: list[str | bytes] = []

    async def counted(sources: Sequence[str | bytes]) -> Made:
        embedded.extend(sources)
        return await embed(sources)

    steps = await copied(collections, "shop", counted)

    assert len(embedded) == 150 - 64
    assert steps[0].copied_count == 63 + 64
    await check_equal(source, collections.get("new"))
    assert collections.get("shop").name == "new"


async def test_no_confirmed_write_falls_between(collections: Collections, source: Collection) -> None:
    """Every write by an alias that was confirmed is in the collection that the alias names in the end, under constant writes."""
    await collections.set_alias("shop", "shoes")
    confirmed: dict[str, int] = {}
    retried = 0
    ended = asyncio.Event()

    async def writer(number: int) -> None:
        nonlocal retried
        version = 0
        while not ended.is_set() or version < 3:
            version += 1
            while True:
                named = collections.get("shop")
                await asyncio.sleep(0.001 * number)  # as embedding takes time
                await named.upsert([item(number, version)], np.ones((1, named.row.dimension)))
                try:
                    collections.check_means("shop", named)
                except Unavailable:
                    retried += 1
                    continue
                break
            confirmed[f"i{number}"] = number + version

    writers = [asyncio.create_task(writer(number)) for number in range(8)]
    await asyncio.sleep(0.05)
    steps = await copied(collections, "shop")
    ended.set()
    await asyncio.gather(*writers)

    target = collections.get("shop")
    assert target.name == "new"
    assert steps[-1].done
    found = await target.get_items(list(confirmed))
    assert {stored.id: json.loads(stored.payload)["stock"] for stored in found.items} == confirmed
    assert retried > 0


async def test_writes_wait_no_longer_than_allowed(
    collections: Collections, source: Collection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When the last items take too long to embed, writes to the source go on, and the copy is ended at a later attempt."""
    monkeypatch.setattr(reembedding, "HELD_SECONDS", 0.05)
    slow = asyncio.Event()
    attempts = 0

    async def slow_at_the_end(sources: Sequence[str | bytes]) -> Made:
        nonlocal attempts
        if len(sources) == 1 and attempts == 0:
            attempts += 1
            await slow.wait()
        if len(sources) == 22 and attempts == 0:
            await write(source, item(0, 1))
        return await embed(sources)

    run = (await collections.reembed("shoes", NEW, "", slow_at_the_end)).run()
    async with aclosing(run):
        for _ in range(3):
            await anext(run)
        ending = asyncio.ensure_future(anext(run))
        await asyncio.sleep(0.01)
        await asyncio.wait_for(write(source, item(1, 1)), 5)
        ended = asyncio.create_task(_rest(run, ending))
        slow.set()
        assert (await asyncio.wait_for(ended, 10))[-1].done

    await check_equal(source, collections.get("new"))


async def _rest(run: AsyncGenerator[Progress, None], first: "asyncio.Future[Progress]") -> list[Progress]:
    return [await first, *[step async for step in run]]


async def test_refusal_for_now_is_waited_for(
    collections: Collections, source: Collection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full queue of the encoder only delays the copy."""
    monkeypatch.setattr(QueueFull, "retry_after", 0.001)
    refusals = iter([QueueFull("full"), QueueFull("full")])

    async def busy(sources: Sequence[str | bytes]) -> Made:
        for refusal in refusals:
            raise refusal
        return await embed(sources)

    assert (await copied(collections, "", busy))[-1].done


async def test_source_without_sources_is_refused(collections: Collections, collection: Collection) -> None:
    """A collection that keeps no sources, and one with an item given as a vector, are FAILED_PRECONDITION; none is made."""
    with pytest.raises(FailedPrecondition, match="keeps no sources"):
        await copied(collections)
    await collections.delete("shoes")
    source = await collections.create(KEPT)
    await write(source, item(0), NewItem("bare", b""))

    with pytest.raises(FailedPrecondition, match="item 'bare'"):
        await copied(collections)

    assert [each.name for each in collections.list()] == ["shoes"]


async def test_item_that_cannot_be_copied_is_named(collections: Collections, source: Collection) -> None:
    """An item that the encoder refuses, and one that came as a vector during the copy, end it with an error that names them."""

    async def no_images(sources: Sequence[str | bytes]) -> Made:
        made = await embed(sources)
        return Made(made.vectors, {1: FailedPrecondition("no text tower")})

    with pytest.raises(FailedPrecondition, match="item 'i1' of collection 'shoes' cannot be embedded: no text tower"):
        await copied(collections, "", no_images)
    run = (await collections.reembed("shoes", NEW, "", embed)).run()
    async with aclosing(run):
        await anext(run)
        await write(source, NewItem("bare", b""))
        with pytest.raises(FailedPrecondition, match="item 'bare' of collection 'shoes' was given as a vector"):
            async for _ in run:
                pass


async def test_taken_target_is_refused(collections: Collections, source: Collection) -> None:
    """Items that no copy made, another encoder, the copy of another, an alias and a finished copy are ALREADY_EXISTS."""
    other = await collections.create(replace(KEPT, name="other"))
    await write(other, item(0))
    mine = await collections.create(replace(KEPT, name="mine", encoder="siglip", fingerprint="f2"))
    await write(mine, item(0))
    await collections.set_alias("shop", "mine")
    async with aclosing((await collections.reembed("other", replace(NEW, target="half"), "", embed)).run()):
        pass

    for target in ("shoes", "other", "mine", "shop", "half"):
        with pytest.raises(AlreadyExists):
            await collections.reembed("shoes", replace(NEW, target=target), "", embed)
    with pytest.raises(AlreadyExists) as alias:
        await collections.reembed("shoes", NEW, "mine", embed)
    await copied(collections)
    with pytest.raises(AlreadyExists):
        await copied(collections)

    assert alias.value.field == "alias"
    assert (await mine.get_items(["i0"])).missing == []


async def test_empty_collection_of_the_encoder_is_filled(collections: Collections, source: Collection) -> None:
    """An empty collection that was made for the encoder, with fields of its own, is taken as the target."""
    await collections.create(replace(KEPT, name="new", encoder="siglip", fingerprint="f2", dimension=WIDE, fields=()))

    assert (await copied(collections))[-1].done

    await check_equal(source, collections.get("new"))


async def test_second_call_into_one_target_ends(collections: Collections, source: Collection) -> None:
    """Of two calls that fill one collection only one goes on; what it made is whole."""
    first = (await collections.reembed("shoes", NEW, "", embed)).run()
    second = (await collections.reembed("shoes", NEW, "", embed)).run()
    async with aclosing(first), aclosing(second):
        await anext(first)
        with pytest.raises(FailedPrecondition, match="'new' is no longer filled by this call alone"):
            await anext(second)
        assert [step async for step in first][-1].done

    await check_equal(source, collections.get("new"))
