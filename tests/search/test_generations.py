"""A generation saves the start from reading all items; one that cannot be trusted is left, and never changes an answer."""

import asyncio
import json
import random
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import apsw
import numpy as np
import pytest
from structlog.testing import capture_logs

from lookwire_server.metrics import Metrics
from lookwire_server.search.collection import Collection
from lookwire_server.search.collections import Collections
from lookwire_server.search.fields import Field, FieldType
from lookwire_server.search.filters import Equals, Exists, Filter, Range
from lookwire_server.search.index import build, builder, hnsw, ivf, live
from lookwire_server.search.index.generation import MANIFEST, ROWS, VECTORS, Doubtful, Generation, digest_of
from lookwire_server.search.items import NewItem
from lookwire_server.search.search_options import SearchOptions
from lookwire_server.search.store.collections import IndexKind, IndexSettings

from .conftest import SHOES

ITEMS = 120
WIDE = 8
KINDS = [IndexKind.EXACT, IndexKind.IVF, IndexKind.HNSW]
GENERATION = Path("indexes/1/00000001")
Answers = list[tuple[list[str], list[float], list[bytes]]]


def vectors(count: int, seed: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    return np.random.default_rng(seed).standard_normal((count, WIDE))


def items(numbers: range, word: str) -> list[NewItem]:
    """Items with a number and a word, every third without the word."""
    return [
        NewItem(f"é{number}", json.dumps({"stock": number} | ({"brand": word} if number % 3 else {})).encode())
        for number in numbers
    ]


def opened(directory: Path) -> Collections:
    return Collections.open(directory, Metrics(), search_threads=1, on_failure=print)


@pytest.fixture(scope="module")
def small_builds() -> Iterator[None]:
    """Builds indexes of few items, in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(builder, "APPROXIMATE_ITEMS", 4)
        patch.setattr(ivf, "MIN_CELL_VECTORS", 4)
        patch.setattr(ivf, "EXACT_MATCHES", 3)
        patch.setattr(hnsw, "EXACT_MATCHES", 3)
        patch.setattr(builder.Builder, "_run_child", lambda _, order: build.build(order))
        yield


def built(collections: Collections, collection: Collection) -> None:
    collections._engine.builder._build(collection)


async def written(directory: Path, kind: IndexKind) -> None:
    """Fills a directory: a generation, and after it new items, new versions and deletions."""
    collections = opened(directory)
    index = IndexSettings(kind, 0.9)
    shoes = await collections.create(replace(SHOES, dimension=WIDE, index=index))
    other = await collections.create(replace(SHOES, name="other", dimension=WIDE, index=index))
    for collection, seed in ((shoes, 1), (other, 2)):
        await collection.upsert(items(range(ITEMS), "old"), vectors(ITEMS, seed))
        await collection.delete_items(["é7"])
        built(collections, collection)
    await shoes.upsert(items(range(ITEMS, ITEMS + 10), "new"), vectors(10, 3))
    await shoes.upsert(items(range(20, 30), "new"), vectors(10, 4))
    await shoes.delete_items(["é50", "é51", "é21", f"é{ITEMS}"])
    collections.close()


@pytest.fixture(scope="module")
def templates(tmp_path_factory: pytest.TempPathFactory, small_builds: None) -> dict[IndexKind, Path]:
    """A closed directory for each kind of index."""
    directories = {kind: tmp_path_factory.mktemp(kind) for kind in KINDS}
    for kind, directory in directories.items():
        asyncio.run(written(directory, kind))
    return directories


@pytest.fixture(params=KINDS)
def template(request: pytest.FixtureRequest, templates: dict[IndexKind, Path]) -> Path:
    return templates[request.param]


@pytest.fixture
def directory(template: Path, tmp_path: Path) -> Path:
    """A copy of a closed directory, to be changed."""
    return Path(shutil.copytree(template, tmp_path / "data"))


async def answered(collection: Collection) -> Answers:
    """What a collection says: searches without approximation, with and without filters, and a list."""
    filters: list[Filter | None] = [None, Equals("brand", "new"), Range("stock", gte=15, lt=60), Exists("brand")]
    results = [
        await collection.search(query, SearchOptions(filter=filter, top_k=20, exact=True))
        for query in vectors(5, 9)
        for filter in filters
    ]
    listed = (await collection.list_items(Range("stock", lt=1_000), page_size=1_000)).items
    counts = [float(await collection.count(filter)) for filter in filters]
    return [
        (result.ids, [round(float(score), 5) for score in result.scores], result.payloads) for result in results
    ] + [([item.id for item in listed], counts, [item.payload for item in listed])]


def started(directory: Path, name: str = "shoes") -> tuple[Answers, int, list[str]]:
    """Opens a directory; returns the answers, the number of the generation that is used, and the doubts that were logged."""
    with capture_logs() as logs:
        collections = opened(directory)
    try:
        collection = collections.get(name)
        generation = collection.index.view.generation
        number = 0 if generation is None else generation.manifest.generation
        doubts = [entry["doubt"] for entry in logs if entry["event"].startswith("index not used")]
        return asyncio.run(answered(collection)), number, doubts
    finally:
        collections.close()


@pytest.fixture(scope="module")
def truth(templates: dict[IndexKind, Path], tmp_path_factory: pytest.TempPathFactory) -> Answers:
    """The answers of a start that has the database and nothing else."""
    directory = tmp_path_factory.mktemp("truth")
    shutil.copy(templates[IndexKind.EXACT] / "lookwire.db", directory)
    answers, generation, doubts = started(directory)
    assert (generation, doubts) == (0, [])
    return answers


def rewrite(directory: Path, **changes: object) -> None:
    """Changes a manifest, and gives it the checksum of what it is now."""
    content = json.loads((directory / MANIFEST).read_text())
    del content["sha256"]
    content |= changes
    (directory / MANIFEST).write_text(json.dumps({**content, "sha256": digest_of(content)}))


def test_sound_generation_is_joined_with_later_writes(directory: Path, truth: Answers) -> None:
    """Items that were added, replaced and deleted after the generation was built are so after the start too."""
    assert started(directory) == (truth, 1, [])
    # And once more, since the start itself may have changed what is on disk.
    assert started(directory) == (truth, 1, [])


@pytest.mark.parametrize("name", [MANIFEST, ROWS, VECTORS])
@pytest.mark.parametrize("damage", ["truncated", "flipped", "emptied", "longer", "removed", "another's"])
def test_damaged_file_changes_no_answer(directory: Path, truth: Answers, name: str, damage: str) -> None:
    """Whatever happens to a file of a generation, the start says so, and answers from the database alone."""
    path = directory / GENERATION / name
    content = path.read_bytes()
    chance = random.Random(f"{name} {damage}")
    match damage:
        case "truncated":
            path.write_bytes(content[: chance.randrange(1, len(content))])
        case "flipped":
            place = chance.randrange(len(content))
            path.write_bytes(
                content[:place] + bytes([content[place] ^ 1 << chance.randrange(8)]) + content[place + 1 :]
            )
        case "emptied":
            path.write_bytes(b"")
        case "longer":
            path.write_bytes(content + b"\0")
        case "removed":
            path.unlink()
        case "another's":
            shutil.copy(directory / "indexes/2/00000001" / name, path)

    answers, generation, doubts = started(directory)

    assert (answers, generation) == (truth, 0)
    assert len(doubts) == 1
    assert str(GENERATION) in doubts[0]
    # It is not looked at again.
    assert started(directory) == (truth, 0, [])


@pytest.mark.parametrize("name", [ROWS, VECTORS])
def test_flipped_bits_of_the_data_are_noticed(directory: Path, name: str) -> None:
    """One bit anywhere, as a disk or a memory may lose it, and the generation is refused, be it the first or the last."""
    path = directory / GENERATION / name
    content = bytearray(path.read_bytes())
    chance = random.Random(name)

    for place in [0, len(content) - 1, *(chance.randrange(len(content)) for _ in range(100))]:
        bit = 1 << chance.randrange(8)
        content[place] ^= bit
        path.write_bytes(content)
        with pytest.raises(Doubtful, match=f"{name} does not have the checksum"):
            Generation.read(directory / GENERATION, SHOES.fields)
        content[place] ^= bit
    path.write_bytes(content)
    Generation.read(directory / GENERATION, SHOES.fields)


def test_flipped_bits_of_the_manifest_are_noticed(templates: dict[IndexKind, Path], tmp_path: Path) -> None:
    """No byte of the manifest can lose a bit without the generation being refused."""
    directory = Path(shutil.copytree(templates[IndexKind.IVF] / GENERATION, tmp_path / "generation"))
    path = directory / MANIFEST
    content = bytearray(path.read_bytes())
    chance = random.Random(0)

    for place in range(len(content)):
        bit = 1 << chance.randrange(8)
        content[place] ^= bit
        path.write_bytes(content)
        with pytest.raises(Doubtful):
            Generation.read(directory, SHOES.fields)
        content[place] ^= bit


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"store": "0" * 32}, "belongs to another collection"),
        ({"collection": 2}, "belongs to another collection"),
        ({"generation": 2}, "belongs to another collection"),
        ({"faiss": "0.0.1"}, "made by another release"),
        ({"format": 99}, "made by another release"),
        ({"sequence": 1_000}, "newer than the database"),
        ({"count": ITEMS}, "119 ids, 119 keys and 119 vectors"),
        ({"unheard": "of"}, "unheard"),
    ],
)
def test_generation_that_does_not_fit_is_left(
    directory: Path, truth: Answers, changes: dict[str, object], said: str
) -> None:
    """A whole generation of another store, collection, release or time is not used."""
    rewrite(directory / GENERATION, **changes)

    answers, generation, doubts = started(directory)

    assert (answers, generation) == (truth, 0)
    assert len(doubts) == 1
    assert said in doubts[0]


def test_exchanged_generations_are_left(directory: Path, truth: Answers) -> None:
    """Two collections whose directories were exchanged by hand answer from the database."""
    others, _, _ = started(directory, "other")
    indexes = directory / "indexes"
    (indexes / "1").rename(indexes / "aside")
    (indexes / "2").rename(indexes / "1")
    (indexes / "aside").rename(indexes / "2")

    answers, generation, doubts = started(directory)

    assert (answers, generation, len(doubts)) == (truth, 0, 2)
    assert started(directory, "other") == (others, 0, [])


def test_generation_of_a_copied_database_is_used(directory: Path, truth: Answers, tmp_path: Path) -> None:
    """A directory that was moved to another place is as good as before."""
    moved = directory.rename(tmp_path / "moved")

    assert started(moved) == (truth, 1, [])


def changed(directory: Path, *statements: str) -> None:
    """Changes a closed database behind the server's back."""
    connection = apsw.Connection(str(directory / "lookwire.db"))
    for statement in statements:
        connection.execute(statement)
    connection.close()


async def test_database_older_than_the_generation(directory: Path, tmp_path: Path, small_builds: None) -> None:
    """A database that was set back to an earlier state answers from that state, not from the newer generation."""
    shutil.copy(directory / "lookwire.db", tmp_path)
    before, _, _ = await asyncio.to_thread(started, directory)
    collections = opened(directory)
    shoes = collections.get("shoes")
    await shoes.upsert(items(range(40), "later"), vectors(40, 5))
    built(collections, shoes)
    collections.close()

    shutil.copy(tmp_path / "lookwire.db", directory)

    answers, generation, doubts = await asyncio.to_thread(started, directory)
    assert (answers, generation) == (before, 0)
    assert [doubt.split(": ")[-1] for doubt in doubts] == ["it is newer than the database"]


def test_item_that_an_index_should_have(directory: Path) -> None:
    """A generation that lacks an item as old as its own is not of this database, and is left."""
    changed(
        directory,
        "INSERT INTO items (key, collection, sequence, id, payload, vector)"
        " SELECT 8, 1, sequence, 'é7', payload, vector FROM items WHERE collection = 1 AND id = 'é8'",
    )

    (*_, (listed, _, _)), generation, doubts = started(directory)

    assert "é7" in listed
    assert generation == 0
    assert "lacks key 8, which is older than it" in doubts[0]


def test_fields_declared_since_are_read_again(directory: Path) -> None:
    """A generation is used with fields that were declared, changed or given up after it was built."""
    changed(
        directory,
        """UPDATE collections SET fields = '[["stock", "double"], ["brand", "string"]]' WHERE number = 1""",
    )
    collections = opened(directory)
    shoes = collections.get("shoes")

    async def found(filter: Filter) -> set[str]:
        return {item.id for item in (await shoes.list_items(filter, page_size=1_000)).items}

    whole, halves = (
        asyncio.run(found(Range("stock", gte=10, lt=13))),
        asyncio.run(found(Range("stock", gt=12.5, lt=14))),
    )
    fresh = asyncio.run(found(Equals("brand", "new")))
    generation = shoes.index.view.generation
    collections.close()

    assert generation is not None
    assert shoes.row.fields == (Field("stock", FieldType.DOUBLE), Field("brand", FieldType.STRING))
    assert (whole, halves) == ({"é10", "é11", "é12"}, {"é13"})
    numbers = [*range(20, 30), *range(ITEMS, ITEMS + 10)]
    assert fresh == {f"é{number}" for number in numbers if number % 3 and number not in (21, ITEMS)}


def test_newest_sound_generation_is_used(directory: Path, truth: Answers, small_builds: None) -> None:
    """Of several the newest sound one is used, and the others, half-built ones too, are removed."""
    indexes = directory / GENERATION.parent
    older = shutil.copytree(indexes / "00000001", directory / "older")
    collections = opened(directory)
    built(collections, collections.get("shoes"))
    collections.close()
    shutil.copytree(older, indexes / "00000001")
    shutil.copytree(older, indexes / "00000003.building")

    first = started(directory)
    left = sorted(path.name for path in indexes.iterdir())
    shutil.copytree(older, indexes / "00000001")
    (indexes / "00000002" / ROWS).write_bytes(b"")
    second = started(directory)

    assert first == (truth, 2, [])
    assert left == ["00000002"]
    assert (second[:2], len(second[2])) == ((truth, 1), 1)
    assert [path.name for path in indexes.iterdir()] == ["00000001"]


def test_indexes_of_collections_that_are_gone_are_removed(directory: Path, truth: Answers) -> None:
    """A start removes what a deletion that was cut short has left."""
    shutil.copytree(directory / "indexes/1", directory / "indexes/77")

    assert started(directory) == (truth, 1, [])
    assert sorted(path.name for path in (directory / "indexes").iterdir()) == ["1", "2"]


async def test_collection_that_grows_is_indexed_by_a_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Enough writes and a child process builds an index, which is put in place under the writes that go on."""
    monkeypatch.setattr(live, "SEALED_ITEMS", 100)
    collections = opened(tmp_path)
    shoes = await collections.create(replace(SHOES, dimension=WIDE))
    rounds = 0
    with capture_logs() as logs:
        while shoes.index.view.generation is None:
            await shoes.upsert(items(range(rounds % 50, rounds % 50 + 100), f"r{rounds}"), vectors(100, rounds))
            await shoes.delete_items([f"é{rounds % 150}"])
            await asyncio.sleep(0.01)
            rounds += 1
    grown = await answered(shoes)
    collections.close()
    without = tmp_path / "without"
    without.mkdir()
    shutil.copy(tmp_path / "lookwire.db", without)

    answers, generation, doubts = await asyncio.to_thread(started, tmp_path)

    assert [entry["event"] for entry in logs if entry["log_level"] == "warning"] == []
    assert grown == answers == (await asyncio.to_thread(started, without))[0]
    assert (generation > 0, doubts) == (True, [])
