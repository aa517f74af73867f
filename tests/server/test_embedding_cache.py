"""The vectors of texts: which are kept, and who shares the work of making them."""

import asyncio
import random
import re
import time
import urllib.request
from collections.abc import Iterator

import numpy as np
import pytest

from lookwire import AsyncClient, Client
from lookwire.local import LocalServer
from lookwire_server.encoding.encoder import Encoder, TextCache, TextTower
from lookwire_server.encoding.manifest import read
from lookwire_server.encoding.texts import TextTokenizer
from lookwire_server.errors import DeadlineExceeded, QueueFull
from lookwire_server.lanes import Lane
from lookwire_server.metrics import Metrics
from lookwire_server.models import config_file
from lookwire_server.models.model import Request, Response
from tests.conftest import MODEL_REPOSITORY
from tests.server.tower import Tower, until_asked

GARMENTS = MODEL_REPOSITORY / "garments"
SMALL = 50_000
FEW = [
    f"a {colour} {kind}" for colour in ("red", "blue", "green") for kind in ("dress", "hat", "very long winter coat")
]


@pytest.fixture(scope="module")
def keeping() -> Iterator[LocalServer]:
    """A server as it comes."""
    with LocalServer(MODEL_REPOSITORY) as server:
        yield server


@pytest.fixture(scope="module")
def small() -> Iterator[LocalServer]:
    """A server whose cache has room for some tens of vectors."""
    with LocalServer(MODEL_REPOSITORY, embedding_cache_bytes=SMALL) as server:
        yield server


@pytest.fixture(scope="module")
def off() -> Iterator[LocalServer]:
    """A server that keeps no vectors."""
    with LocalServer(MODEL_REPOSITORY, embedding_cache_bytes=0) as server:
        yield server


def cache_metrics(server: LocalServer) -> dict[str, int]:
    """Hits, misses and bytes of the cache of embeddings, and the rows that the text tower has executed."""
    page = urllib.request.urlopen(f"http://{server.metrics_address}/metrics").read().decode()
    series = {
        "hits": "lookwire_embedding_cache_hits_total",
        "misses": "lookwire_embedding_cache_misses_total",
        "bytes": "lookwire_embedding_cache_bytes",
        "rows": 'lookwire_batch_rows_sum{model="garments-text",version="1"}',
    }
    return {
        key: int(float(re.search(rf"^{re.escape(name)} (\S+)", page, re.MULTILINE)[1]))  # type: ignore[index]
        for key, name in series.items()
    }


def change(before: dict[str, int], after: dict[str, int]) -> tuple[int, int, int]:
    """New hits, misses and rows."""
    hits, misses, rows = (after[key] - before[key] for key in ("hits", "misses", "rows"))
    return hits, misses, rows


def test_a_text_that_comes_again_is_not_embedded_again(keeping: LocalServer) -> None:
    """It has the very vector of the first time, in no time of any stage, whatever it comes with."""
    before = cache_metrics(keeping)
    with Client(keeping.address) as client:
        first = client.embed(["kept: a red dress"])
        between = cache_metrics(keeping)
        again = client.embed(["kept: a blue dress", "kept: a red dress"])
        alone = client.embed(["kept: a red dress"])
    after = cache_metrics(keeping)

    assert change(before, between) == (0, 1, 1)
    assert change(between, after) == (2, 1, 1)
    assert between["bytes"] - before["bytes"] > 64 * 4
    np.testing.assert_array_equal(again.vectors[1], first.vectors[0])
    np.testing.assert_array_equal(alone.vectors[0], first.vectors[0])
    assert first.times.infer_us > 0
    assert (alone.times.tokenise_us, alone.times.queue_us, alone.times.infer_us) == (0, 0, 0)


def test_equal_texts_at_once_are_embedded_once(keeping: LocalServer) -> None:
    """Concurrent calls with one text execute one row."""
    before = cache_metrics(keeping)

    async def together() -> list[bytes]:
        async with AsyncClient(keeping.address) as client:
            answers = await asyncio.gather(*(client.embed(["at once: a red dress"]) for _ in range(32)))
            return [answer.vectors.tobytes() for answer in answers]

    assert len(set(asyncio.run(together()))) == 1
    assert change(before, cache_metrics(keeping)) == (31, 1, 1)


def test_without_a_cache_equal_texts_of_a_call_are_embedded_once(off: LocalServer) -> None:
    """With 0 bytes nothing is kept for the next call; within a call equal texts still share a row."""
    before = cache_metrics(off)
    with Client(off.address) as client:
        many = client.embed(["a red dress", "a blue hat"] * 16).vectors
        client.embed(["a red dress"])
        client.embed(["a red dress"])
    after = cache_metrics(off)

    assert change(before, after) == (30, 4, 4)
    assert after["bytes"] == 0
    np.testing.assert_array_equal(many, np.tile(many[:2], (16, 1)))
    assert abs(many[0] - many[1]).max() > 0.01


def test_the_cache_is_bounded(small: LocalServer) -> None:
    """It never takes more than its bytes; what was used last is kept, what was used first is not."""
    queries = [f"a query of number {number}" for number in range(300)]
    with Client(small.address) as client:
        for query in queries:
            client.embed([query])
        filled = cache_metrics(small)
        client.embed(queries[-10:])
        hit = cache_metrics(small)
        client.embed(queries[:10])
        missed = cache_metrics(small)

    assert SMALL * 0.9 < filled["bytes"] <= SMALL
    assert change(filled, hit) == (10, 0, 0)
    assert change(hit, missed) == (0, 10, 10)
    assert missed["bytes"] <= SMALL


def test_an_import_drives_out_no_query(small: LocalServer) -> None:
    """Vectors of bulk work take free room only."""
    queries = [f"a query before the import {number}" for number in range(10)]
    with Client(small.address) as client:
        client.embed(queries)
        client.embed([f"a description of number {number}" for number in range(512)])
        imported = cache_metrics(small)
        client.embed(queries)

    assert imported["bytes"] <= SMALL
    assert change(imported, cache_metrics(small)) == (10, 0, 0)


def test_everyone_gets_the_vectors_of_their_own_texts(client: Client, small: LocalServer, off: LocalServer) -> None:
    """Concurrent calls with overlapping texts, of which some are cancelled, are answered each with its own vectors."""
    expected = dict(zip(FEW, client.embed(FEW).vectors, strict=True))
    chance = random.Random(5)

    async def call(client: AsyncClient) -> None:
        texts = chance.choices(FEW, k=chance.choice((1, 1, 2, 5, 20)))
        await asyncio.sleep(chance.random() * 0.2)
        asked = asyncio.create_task(client.embed(texts))
        if chance.random() < 0.2:
            await asyncio.sleep(chance.random() * 0.005)
            asked.cancel()
            await asyncio.wait([asked])
        else:
            vectors = (await asked).vectors
            np.testing.assert_allclose(vectors, [expected[text] for text in texts], atol=1e-5)

    async def calls(server: LocalServer) -> None:
        async with AsyncClient(server.address) as client:
            await asyncio.gather(*(call(client) for _ in range(200)))

    for server in (small, off):
        asyncio.run(calls(server))


@pytest.fixture
async def tower() -> Tower:
    return Tower()


@pytest.fixture
def encoder(tower: Tower) -> Encoder:
    manifest = read(GARMENTS / "1")
    assert manifest.text
    text = TextTower(tower, manifest.text, TextTokenizer(GARMENTS / "1", manifest.text))
    cache = TextCache(1 << 20)
    return Encoder(config_file.read(GARMENTS), 1, manifest, None, text, 65_536, cache, Metrics())


async def test_a_caller_that_leaves_costs_the_others_nothing_but_time(tower: Tower, encoder: Encoder) -> None:
    """When the caller whose work it is goes away, one of those who wait begins it anew for all."""
    tower.gate.clear()
    calls = [asyncio.create_task(encoder.embed(["red"])) for _ in range(4)]
    await until_asked(tower, 1)

    calls[1].cancel()
    calls[0].cancel()
    await until_asked(tower, 2)
    tower.gate.set()

    assert (await calls[2]).vectors[0, 0] == (await calls[3]).vectors[0, 0] == 1
    assert (tower.cancelled, len(tower.lanes)) == (1, 2)


async def test_the_last_caller_that_leaves_ends_the_work(tower: Tower, encoder: Encoder) -> None:
    """Work that nobody waits for is cancelled, and a later call begins it anew."""
    tower.gate.clear()
    calls = [asyncio.create_task(encoder.embed(["red"])) for _ in range(3)]
    await until_asked(tower, 1)

    for call in reversed(calls):
        call.cancel()
    await asyncio.wait(calls)

    assert (tower.cancelled, len(tower.lanes)) == (1, 1)
    tower.gate.set()
    assert (await encoder.embed(["red"])).vectors[0, 0] == 1
    assert len(tower.lanes) == 2


async def test_a_failure_is_everyones_and_is_not_kept(tower: Tower, encoder: Encoder) -> None:
    """A failure reaches all that wait for the work; the next call tries again."""
    tower.failure = QueueFull("full")
    tower.gate.clear()
    calls = [asyncio.create_task(encoder.embed(["red"])) for _ in range(3)]
    await until_asked(tower, 1)
    tower.gate.set()
    failed = await asyncio.gather(*calls, return_exceptions=True)
    tower.failure = None

    assert [type(failure) for failure in failed] == [QueueFull] * 3
    assert len(tower.lanes) == 1
    assert (await encoder.embed(["red"])).vectors[0, 0] == 1


async def test_nobody_waits_longer_than_its_deadline(tower: Tower, encoder: Encoder) -> None:
    """A caller that waits for another's work leaves at its own deadline, and the work goes on."""
    tower.gate.clear()
    patient = asyncio.create_task(encoder.embed(["red"], deadline=time.monotonic() + 60))
    await until_asked(tower, 1)

    with pytest.raises(DeadlineExceeded):
        await encoder.embed(["red"], deadline=time.monotonic() + 0.02)
    tower.gate.set()

    assert (await patient).vectors[0, 0] == 1
    assert len(tower.lanes) == 1


async def test_nobody_fails_by_the_deadline_of_another(
    tower: Tower, encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When work is dropped at the deadline of the caller that began it, another who waits begins it anew."""
    infer = tower.infer

    async def dropped(request: Request) -> Response:
        response = await infer(request)
        if request.deadline is not None:
            raise DeadlineExceeded("dropped")
        return response

    monkeypatch.setattr(tower, "infer", dropped)
    tower.gate.clear()
    hurried = asyncio.create_task(encoder.embed(["red"], deadline=time.monotonic() + 60))
    waiting = asyncio.create_task(encoder.embed(["red"]))
    await until_asked(tower, 1)
    tower.gate.set()

    with pytest.raises(DeadlineExceeded, match="dropped"):
        await hurried
    assert (await waiting).vectors[0, 0] == 1
    assert len(tower.lanes) == 2


async def test_a_query_does_not_wait_for_bulk_work(tower: Tower, encoder: Encoder) -> None:
    """A query whose text is in an import is embedded beside it; an import waits for a query that is under way."""
    tower.gate.clear()
    imports = [asyncio.create_task(encoder.embed(["red", "blue"], lane=Lane.BULK)) for _ in range(2)]
    await until_asked(tower, 1)
    query = asyncio.create_task(encoder.embed(["red"]))
    await until_asked(tower, 2)
    imports.append(asyncio.create_task(encoder.embed(["red"], lane=Lane.BULK)))
    await asyncio.sleep(0)
    tower.gate.set()

    for call in (*imports, query):
        assert (await call).vectors[0, 0] == 1
    assert tower.lanes == [Lane.BULK, Lane.INTERACTIVE]
