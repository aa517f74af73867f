"""The response cache: what is a hit, what is kept, and what is counted."""

import asyncio
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lookwire_server.errors import InvalidArgument, Unavailable
from lookwire_server.lanes import Lane
from lookwire_server.models import config_file
from lookwire_server.models.cache import ENTRY_BYTES, CachedModel, ResponseCache
from lookwire_server.models.model import Request, Response
from lookwire_server.models.statistics import Statistics
from tests.models.repositories import write

CONFIG = """
backend: "identity" max_batch_size: 8 response_cache { enable: true }
input [{ name: "x" data_type: TYPE_FP32 dims: [-1] }]
output [{ name: "y" data_type: TYPE_FP32 dims: [-1] }]
"""


class Counting:
    """A model that answers with its inputs and a number that rises by one each time."""

    def __init__(self, root: Path) -> None:
        self.config = config_file.read(write(root, "m", CONFIG))
        self.version = 1
        self.statistics = Statistics()
        self.asked = 0
        self.closed = False
        self.gate = asyncio.Event()
        self.gate.set()

    def check_wait(self, deadline: float | None) -> None:
        """Never refuses."""

    async def infer(self, request: Request) -> Response:
        self.asked += 1
        await self.gate.wait()
        if "bad" in request.inputs:
            raise InvalidArgument("bad")
        batch = np.full((1000, 1), self.asked, np.float32)
        return Response({"y": batch[:1], **request.inputs}, 0.25, 0.5, {"asked": self.asked})

    async def close(self) -> None:
        self.closed = True


def floats(*values: float) -> Request:
    return Request({"x": np.array([values], np.float32)})


async def test_equal_requests_are_hits(tmp_path: Path) -> None:
    """An equal request is answered from the cache, whatever its id, priority, timeout, lane and deadline."""
    model = Counting(tmp_path)
    cached = CachedModel(model, ResponseCache(1 << 20))
    first = await cached.infer(floats(1, 2))
    second = await cached.infer(
        replace(floats(1, 2), id="other", priority=3, timeout=1.0, lane=Lane.BULK, deadline=1e9, parameters={})
    )

    assert model.asked == 1
    assert {name: tensor.tolist() for name, tensor in second.outputs.items()} == {"y": [[1]], "x": [[1, 2]]}
    assert second.parameters == first.parameters == {"asked": 1}
    assert (second.queue_seconds, second.infer_seconds) == (0, 0)
    with pytest.raises(ValueError, match="read-only"):
        second.outputs["y"][:] = 0
    counts = cached.statistics
    assert (counts.cache_hit.count, counts.cache_miss.count, counts.success.count, counts.queue.count) == (1, 1, 1, 1)
    assert counts.cache_miss.ns > 0
    assert (counts.inference_count, counts.execution_count) == (0, 0)
    assert counts.last_inference_ms > 0


@pytest.mark.parametrize(
    "other",
    [
        floats(1, 3),
        Request({"x": np.array([[1], [2]], np.float32)}),
        Request({"x": np.array([[1, 2]], np.float32).view(np.int32)}),
        Request({"z": np.array([[1, 2]], np.float32)}),
        Request({"x": np.array([[1, 2]], np.float32), "z": np.zeros(0, np.float32)}),
        replace(floats(1, 2), outputs=("y",)),
        replace(floats(1, 2), parameters={"k": 1}),
    ],
)
async def test_all_that_decides_is_compared(tmp_path: Path, other: Request) -> None:
    """Another value, shape, datatype, name, input, wanted output or parameter is another request."""
    model = Counting(tmp_path)
    cached = CachedModel(model, ResponseCache(1 << 20))

    await cached.infer(floats(1, 2))
    await cached.infer(other)

    assert model.asked == 2


@pytest.mark.parametrize(("one", "other"), [(True, 1), (1, 1.0), ("1", 1)])
async def test_parameters_of_other_types(tmp_path: Path, one: object, other: object) -> None:
    """Parameters that Python holds for equal but are of different types are different."""
    model = Counting(tmp_path)
    cached = CachedModel(model, ResponseCache(1 << 20))
    for value in (one, other, one):
        await cached.infer(replace(floats(1), parameters={"k": value}))  # type: ignore[dict-item]

    assert model.asked == 2


async def test_strings_and_layouts(tmp_path: Path) -> None:
    """Strings are compared as wholes, and arrays by their elements, however they lie in memory."""
    model = Counting(tmp_path)
    cached = CachedModel(model, ResponseCache(1 << 20))
    texts = [[b"ab", b"c"], [b"a", b"bc"], [b"ab", b"c"]]
    for text in texts:
        await cached.infer(Request({"x": np.array([text], np.object_)}))
    assert model.asked == 2

    square = np.arange(4, dtype=np.float32).reshape(2, 2)
    for array in (square, np.asfortranarray(square), square.T):
        await cached.infer(Request({"x": array}))
    assert model.asked == 4


async def test_errors_are_not_kept(tmp_path: Path) -> None:
    """A request that failed is executed again."""
    model = Counting(tmp_path)
    cached = CachedModel(model, ResponseCache(1 << 20))
    for _ in range(2):
        with pytest.raises(InvalidArgument):
            await cached.infer(Request({"bad": np.zeros(1, np.float32)}))

    assert model.asked == 2
    assert cached.statistics.cache_miss.count == 0


async def test_least_recently_used_goes(tmp_path: Path) -> None:
    """The bytes of keys and answers are bounded, over all models; what was used last stays, what is too large is not kept."""
    model = Counting(tmp_path)
    entry = ENTRY_BYTES + 4 + (4 + 4) + len("asked1")
    cache = ResponseCache(2 * entry + 1)
    cached, twin = CachedModel(model, cache), CachedModel(model, cache)

    for value in (1, 2, 1):
        await cached.infer(floats(value))
    assert (model.asked, len(cache), cache.nbytes) == (2, 2, 2 * entry)
    await twin.infer(floats(1))
    assert (model.asked, len(cache), cache.nbytes) == (3, 2, 2 * entry)
    await cached.infer(floats(1))
    assert model.asked == 3
    await cached.infer(floats(2))
    assert model.asked == 4

    await cached.infer(floats(*range(1000)))
    assert (len(cache), cache.nbytes) == (2, 2 * entry)
    await cached.infer(Request({"x": np.array([[b"long" * 1000]], np.object_)}))
    await cached.infer(replace(floats(1), parameters={"k": "long" * 1000}))
    assert (len(cache), cache.nbytes) == (2, 2 * entry)


async def test_closed_model_leaves_nothing(tmp_path: Path) -> None:
    """The answers of a model go when it is closed, those that come in while it closes included; others' stay."""
    model = Counting(tmp_path)
    cache = ResponseCache(1 << 20)
    cached, other = CachedModel(model, cache), CachedModel(model, cache)
    await other.infer(floats(1))
    await cached.infer(floats(1))
    kept = cache.nbytes

    model.gate.clear()
    late = asyncio.create_task(cached.infer(floats(2)))
    await asyncio.sleep(0)
    await cached.close()
    model.gate.set()
    await late

    assert model.closed
    assert (len(cache), cache.nbytes) == (1, kept // 2)
    with pytest.raises(Unavailable):
        await cached.infer(floats(1))
