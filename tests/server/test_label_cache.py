"""The cache of label vectors: what is shared, what is kept, and whose going away ends what."""

import asyncio

import numpy as np
import pytest

from lookwire_server.encoding.encoder import Encoder, TextTower
from lookwire_server.encoding.labels import ENTRY_BYTES, Label, LabelCache, LabelSet
from lookwire_server.encoding.manifest import read
from lookwire_server.encoding.texts import TextTokenizer
from lookwire_server.errors import QueueFull
from lookwire_server.metrics import Metrics
from lookwire_server.models import config_file
from lookwire_server.models.model import Lane, Request, Response
from lookwire_server.models.padding import Padding
from lookwire_server.models.statistics import Statistics
from tests.conftest import MODEL_REPOSITORY

GARMENTS = MODEL_REPOSITORY / "garments"


class Tower:
    """A text tower that answers when its gate is open, with unit vectors, or with `failure`."""

    def __init__(self) -> None:
        self.config = config_file.read(MODEL_REPOSITORY / "garments-text")
        self.version = 1
        self.statistics = Statistics()
        self.lanes: list[Lane] = []
        self.cancelled = 0
        self.failure: Exception | None = None
        self.gate = asyncio.Event()
        self.gate.set()

    async def infer(self, request: Request) -> Response:
        self.lanes.append(request.lane)
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if self.failure:
            raise self.failure
        embedding = np.zeros((len(request.inputs["input_ids"]), 64), np.float32)
        embedding[:, 0] = 1
        return Response({"embedding": embedding}, 0.0, 0.0)

    async def close(self) -> None:
        pass


@pytest.fixture
async def tower() -> Tower:
    return Tower()


@pytest.fixture
def encoder(tower: Tower) -> Encoder:
    manifest = read(GARMENTS / "1")
    assert manifest.text
    text = TextTower(tower, manifest.text, TextTokenizer(GARMENTS / "1", manifest.text), Padding.of(tower.config))
    return Encoder(config_file.read(GARMENTS), 1, manifest, None, text, 65_536, Metrics())


def labels(*names: str) -> LabelSet:
    return LabelSet(tuple(Label(name, ()) for name in names), ("a {}",))


async def until_asked(tower: Tower, times: int) -> None:
    while len(tower.lanes) < times:
        await asyncio.sleep(0)


async def test_a_caller_that_goes_away_leaves_the_work_to_the_others(tower: Tower, encoder: Encoder) -> None:
    """The first caller's end is not that of the others, who share one execution."""
    cache = LabelCache(Metrics())
    tower.gate.clear()
    calls = [asyncio.create_task(cache.vectors(encoder, labels("red"), Lane.BULK)) for _ in range(3)]
    await until_asked(tower, 1)

    calls[0].cancel()
    await asyncio.sleep(0)
    tower.gate.set()

    assert (await calls[1]).vectors is (await calls[2]).vectors
    assert calls[0].cancelled()
    assert tower.lanes == [Lane.BULK]
    assert tower.cancelled == 0


async def test_the_last_caller_that_goes_away_ends_the_work(tower: Tower, encoder: Encoder) -> None:
    """Work that nobody waits for is not run to its end; whoever asks next, even at once, has it begun anew."""
    cache = LabelCache(Metrics())
    tower.gate.clear()
    calls = [asyncio.create_task(cache.vectors(encoder, labels("red"), Lane.INTERACTIVE)) for _ in range(2)]
    await until_asked(tower, 1)

    for call in calls:
        call.cancel()
    await asyncio.sleep(0)
    assert cache.missing_prompts(encoder, [labels("red")]) == 1
    tower.gate.set()
    made = await cache.vectors(encoder, labels("red"), Lane.INTERACTIVE)

    assert made.vectors.shape == (1, 64)
    assert tower.cancelled == 1
    assert len(tower.lanes) == 2


async def test_a_failure_is_everyones_and_is_not_kept(tower: Tower, encoder: Encoder) -> None:
    """A failure reaches all that wait for it; the next caller tries again."""
    cache = LabelCache(Metrics())
    tower.failure = QueueFull("full")
    calls = [cache.vectors(encoder, labels("red"), Lane.INTERACTIVE) for _ in range(2)]

    failed = await asyncio.gather(*calls, return_exceptions=True)
    tower.failure = None
    made = await cache.vectors(encoder, labels("red"), Lane.INTERACTIVE)

    assert [type(failure) for failure in failed] == [QueueFull, QueueFull]
    assert made.vectors.shape == (1, 64)


async def test_least_recently_used_go_first(tower: Tower, encoder: Encoder) -> None:
    """Beyond its bytes the cache drops what was not used for longest, and keeps count of what it holds."""
    sets = [labels(f"red {number}") for number in range(5)]
    cache = LabelCache(Metrics(), max_bytes=3 * (ENTRY_BYTES + sets[0].nbytes + 64 * 4))
    for number in (0, 1, 2, 0, 3):
        await cache.vectors(encoder, sets[number], Lane.INTERACTIVE)

    kept = [number for number in range(5) if not cache.missing_prompts(encoder, sets[number : number + 1])]

    assert kept == [0, 2, 3]
    assert cache.nbytes == cache.max_bytes
    assert len(tower.lanes) == 4
    await cache.vectors(encoder, labels(*(f"blue {number}" for number in range(100))), Lane.INTERACTIVE)
    assert cache.nbytes == 0


def test_prompts_are_counted_without_being_made() -> None:
    """The counts of a set are those of the prompts that it makes."""
    templates = ("a {}", "{} and {{")
    label_set = LabelSet((Label("red", ()), Label("{}", ()), Label("own", ("one", "of three", ""))), templates)

    prompts = [prompt for of_label in label_set.prompts() for prompt in of_label]

    assert prompts == ["a red", "red and {{", "a {}", "{} and {{", "one", "of three", ""]
    assert label_set.prompt_count == len(prompts)
    assert label_set.prompt_characters == sum(map(len, prompts))
