"""The decoder of images: each lane has its own line and its own threads, and nothing is decoded that nobody waits for."""

import asyncio
import os
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lookwire import Client
from lookwire.errors import DeadlineExceeded
from lookwire.local import LocalServer
from lookwire_server.encoding import images
from lookwire_server.encoding.images import ImageDecoder, ImageLimits
from lookwire_server.errors import QueueFull
from lookwire_server.lanes import Lane
from tests.conftest import MODEL_REPOSITORY
from tests.server.images import noise
from tests.server.test_images import RULES


class Decoding:
    """Stands in for decoding: says what was begun, and ends when it is told to."""

    def __init__(self) -> None:
        self.begun: list[bytes] = []
        self.go_on = threading.Event()

    def __call__(self, data: bytes, *_: object) -> Any:
        self.begun.append(bytes(data))
        assert self.go_on.wait(10)
        return np.array(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))


@pytest.fixture
def decoding(monkeypatch: pytest.MonkeyPatch) -> Decoding:
    decoding = Decoding()
    monkeypatch.setattr(images, "decode", decoding)
    return decoding


@pytest.fixture
def decoder(decoding: Decoding) -> Iterator[ImageDecoder]:
    """A decoder of one thread a lane."""
    decoder = ImageDecoder(1, ImageLimits(1 << 20, 1 << 20))
    yield decoder
    decoding.go_on.set()
    decoder.close()


async def begin(decoder: ImageDecoder, decoding: Decoding, lane: Lane, data: bytes) -> asyncio.Task[Any]:
    """Asks for an image, and returns once a thread has begun with it."""
    task = asyncio.create_task(decoder.pixels(data, RULES, lane))
    async with asyncio.timeout(5):
        while data not in decoding.begun:
            await asyncio.sleep(0.001)
    return task


async def test_query_does_not_wait_behind_an_import(decoder: ImageDecoder, decoding: Decoding) -> None:
    """With every bulk thread at work and more bulk images waiting, an interactive image begins at once."""
    bulk = [await begin(decoder, decoding, Lane.BULK, b"first")]
    bulk += [asyncio.create_task(decoder.pixels(b"waits", RULES, Lane.BULK)) for _ in range(9)]

    query = await begin(decoder, decoding, Lane.INTERACTIVE, b"query")

    assert decoding.begun == [b"first", b"query"]
    decoding.go_on.set()
    await asyncio.gather(query, *bulk)


@pytest.mark.skipif(sys.platform != "linux", reason="threads have priorities of their own on Linux only")
async def test_threads_have_the_priority_of_their_lane(decoder: ImageDecoder, decoding: Decoding) -> None:
    """Threads that decode give way to the event loop, those of the bulk lane most."""
    decoding.go_on.set()

    nice = {lane: int(await decoder.pixels(b"image", RULES, lane)) for lane in Lane}

    own = os.getpriority(os.PRIO_PROCESS, 0)
    assert own < nice[Lane.INTERACTIVE] < nice[Lane.BULK]


async def test_each_lane_has_a_bound_of_its_own(
    decoder: ImageDecoder, decoding: Decoding, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A lane that is full refuses with the limit, and the other takes images until it is full, too."""
    monkeypatch.setattr(images, "MAX_WAITING", 2)
    waiting = [asyncio.create_task(decoder.pixels(b"image", RULES, Lane.BULK)) for _ in range(2)]
    await asyncio.sleep(0)

    with pytest.raises(QueueFull, match="2 bulk images wait to be decoded, at most 2 may"):
        await decoder.pixels(b"image", RULES, Lane.BULK)
    waiting.append(asyncio.create_task(decoder.pixels(b"image", RULES, Lane.INTERACTIVE)))
    decoding.go_on.set()
    await asyncio.gather(*waiting)
    await decoder.pixels(b"image", RULES, Lane.BULK)


async def test_image_of_a_caller_who_left_is_not_decoded(decoder: ImageDecoder, decoding: Decoding) -> None:
    """A cancelled image whose turn had not come is let go at once, and skipped when it comes; the next is decoded."""
    first = await begin(decoder, decoding, Lane.INTERACTIVE, b"first")
    image = bytes(100)
    references = sys.getrefcount(image)
    left = asyncio.create_task(decoder.pixels(image, RULES, Lane.INTERACTIVE))
    last = asyncio.create_task(decoder.pixels(b"last", RULES, Lane.INTERACTIVE))
    await asyncio.sleep(0)
    left.cancel()
    await asyncio.wait([left])
    assert left.cancelled()
    del left

    assert sys.getrefcount(image) == references
    decoding.go_on.set()
    await asyncio.gather(first, last)
    assert decoding.begun == [b"first", b"last"]


def cpu_seconds(server: LocalServer) -> float:
    """What the server's process has used of the processors."""
    fields = Path(f"/proc/{server.process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_images_past_the_deadline_are_not_decoded() -> None:
    """Of a call with 60 large images whose deadline passes early, the server decodes a few and drops the others."""
    image = noise(1000, 1000, "JPEG")
    with LocalServer(MODEL_REPOSITORY) as server, Client(server.address) as client:
        client.embed(images=[image])
        before = cpu_seconds(server)
        client.embed(images=[image] * 10)
        ten = cpu_seconds(server) - before

        with pytest.raises(DeadlineExceeded):
            client.embed(images=[image] * 60, timeout=0.2)
        after = cpu_seconds(server)
        time.sleep(1)

        assert cpu_seconds(server) - after < ten
