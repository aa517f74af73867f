"""The policy of a batcher's queue."""

import asyncio
from collections.abc import Iterator
from math import inf
from typing import Any

import numpy as np
import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from lookwire_server.errors import QueueFull
from lookwire_server.lanes import Lane
from lookwire_server.models.config import from_message
from lookwire_server.models.model import Request
from lookwire_server.models.queue import PATIENCE, QUEUE_SHARE, TIME_SLICE, WORTH, Pending, Queue

CONFIG = """
name: "any" backend: "test" max_batch_size: %d
input [{ name: "x" data_type: TYPE_UINT8 dims: [4] }]
output [{ name: "y" data_type: TYPE_UINT8 dims: [4] }]
dynamic_batching { %s }
"""


def pending(
    rows: int = 1,
    lane: Lane = Lane.INTERACTIVE,
    *,
    length: int = 1,
    deadline: float | None = None,
    shape: Any = (),
    priority: int = 0,
    timeout: float = 0.0,
    enqueued: float = 0.0,
) -> Pending:
    future: asyncio.Future[Any] = asyncio.Future(loop=LOOP)
    inputs = {"x": np.zeros((rows, 4), np.uint8)}
    request = Request(inputs, lane, deadline, priority=priority, timeout=timeout)
    return Pending(request, rows, length, shape, enqueued, future)


def make(
    batching: str = "", rows: int = 8, *, max_rows: int = 1000, max_bytes: int = 1 << 20, tokens: int = 0
) -> Queue:
    message = text_format.Parse(CONFIG % (rows, batching), model_config_pb2.ModelConfig())
    return Queue(from_message(message), max_rows, max_bytes, tokens)


def filled(queue: Queue, *requests: Pending) -> Queue:
    for request in requests:
        queue.add(request)
    return queue


def taken(queue: Queue, now: float = 0.0) -> list[Pending]:
    return [piece.pending for piece in queue.take(now)[0]]


LOOP = asyncio.new_event_loop()


@pytest.fixture(scope="module", autouse=True)
def close_the_loop() -> Iterator[None]:
    yield
    LOOP.close()


def test_batch_is_filled_in_order_up_to_its_rows() -> None:
    """A batch takes whole requests in order, and stops at the first that does not fit."""
    requests = [pending(3), pending(3), pending(3), pending(1)]
    queue = filled(make(), *requests)

    pieces, late, _ = queue.take(0.0)

    assert [piece.pending for piece in pieces] == requests[:2]
    assert late == []
    assert queue.rows[Lane.INTERACTIVE] == 4


def test_interactive_goes_first_and_bulk_fills_what_is_left() -> None:
    """Bulk rows ride along in a batch that interactive work does not fill."""
    bulk, interactive = pending(2, Lane.BULK), pending(3)

    assert taken(filled(make(), bulk, interactive)) == [interactive, bulk]


def test_bulk_does_not_starve() -> None:
    """Under endless interactive load, bulk work starts a batch after a bounded number of them."""
    bulk = pending(4, Lane.BULK)
    queue = filled(make(rows=4), bulk)

    led = []
    for _ in range(PATIENCE + 1):
        queue.add(pending(4))
        led.append(bulk in taken(queue))

    assert led == [False] * PATIENCE + [True]


def test_tokens_count_padding() -> None:
    """The token limit counts rows x longest length, padding included."""
    short, long = pending(4, length=8), pending(4, length=16)

    assert taken(filled(make(rows=64, tokens=64), short, long)) == [short]


def test_request_over_the_token_limit_goes_alone() -> None:
    """A request that exceeds the token limit by itself is executed, not stuck."""
    huge = pending(4, length=77)

    assert taken(filled(make(rows=64, tokens=64), huge)) == [huge]


def knowing(queue: Queue, fixed: float, slope: float) -> Queue:
    """The queue, which knows what executions cost."""
    for cost in queue.costs.values():
        for size in (1, 100):
            cost.learn(size, fixed + slope * size)
    return queue


@pytest.mark.parametrize("lane", Lane)
def test_batch_keeps_to_its_time_slice(lane: Lane) -> None:
    """A batch has as many rows as the time slice has time for; more only where its beginning costs more than they do."""
    queue = filled(knowing(make(rows=64), fixed=0.0, slope=TIME_SLICE / 4), pending(9, lane))
    slow = filled(knowing(make(rows=64), fixed=TIME_SLICE, slope=TIME_SLICE / 2), pending(50, lane))

    assert [queue.take(0.0)[0][0].stop for _ in range(3)] == [4, 8, 9]
    assert slow.take(0.0)[0][0].stop == 2 * WORTH


def test_time_slice_yields_to_the_config() -> None:
    """A config that says when batches go is obeyed, however long they take."""
    queue = knowing(make("preferred_batch_size: [8]", rows=16), fixed=0.0, slope=TIME_SLICE)

    assert filled(queue, pending(8)).take(0.0)[0][0].stop == 8


def test_first_bulk_batch_is_a_row() -> None:
    """As long as nothing is known of its cost, bulk work goes row by row, and interactive work all at once."""
    queue = filled(make(rows=64), pending(5, Lane.BULK), pending(5))

    assert queue.take(0.0, Lane.BULK)[0][0].stop == 1
    assert queue.take(0.0, Lane.INTERACTIVE)[0][0].stop == 5


def test_lanes_are_taken_apart() -> None:
    """An instance of one lane gets nothing of the other."""
    bulk, interactive = pending(1, Lane.BULK), pending(3)
    queue = filled(make(), bulk, interactive)

    assert [piece.pending for piece in queue.take(0.0, Lane.BULK)[0]] == [bulk]
    assert not queue.waits(Lane.BULK)
    assert [piece.pending for piece in queue.take(0.0, Lane.INTERACTIVE)[0]] == [interactive]


def test_request_that_cannot_be_served_in_time_is_refused() -> None:
    """An interactive request is refused if the work before it takes too much of the time its caller waits, and told how long."""
    queue = knowing(make(rows=64), fixed=0.0, slope=0.01)
    filled(queue, pending(50), pending(1, Lane.BULK, deadline=10.0))

    with pytest.raises(QueueFull, match=r"will take 0\.5 s.* has 0\.9 s left") as refused:
        queue.add(pending(1, deadline=0.9))
    queue.add(pending(1, Lane.BULK, deadline=0.9))
    queue.add(pending(1, deadline=0.5 / QUEUE_SHARE + 0.1))
    queue.add(pending(1))

    assert refused.value.retry_after == pytest.approx(0.5)
    assert len(queue) == 5


def test_higher_priority_does_not_wait_for_lower() -> None:
    """Only what goes before a request makes it late."""
    queue = knowing(make("priority_levels: 2 default_priority_level: 2", rows=64), fixed=0.0, slope=0.01)
    filled(queue, pending(50, priority=2))

    queue.add(pending(1, priority=1, deadline=0.1))
    with pytest.raises(QueueFull):
        queue.add(pending(1, priority=2, deadline=0.1))


def test_unequal_shapes_do_not_share_a_batch() -> None:
    """Requests whose unpadded shapes differ run one after the other."""
    small, large = pending(shape=(4,)), pending(shape=(8,))
    queue = filled(make(), small, large)

    assert taken(queue) == [small]
    assert taken(queue) == [large]


def test_expired_requests_are_set_aside() -> None:
    """A request whose deadline has passed takes no room in a batch."""
    late, live = pending(deadline=1.0), pending(deadline=3.0)
    queue = filled(make(), late, live)

    pieces, expired, _ = queue.take(2.0)

    assert ([piece.pending for piece in pieces], expired) == ([live], [late])
    assert len(queue) == 0


@pytest.mark.parametrize(("rows", "nbytes"), [(5, 1000), (1000, 20)])
def test_queue_is_bounded_by_rows_and_bytes(rows: int, nbytes: int) -> None:
    """The request that would exceed a bound is refused, and the queue is as it was."""
    queue = filled(make(max_rows=rows, max_bytes=nbytes), pending(5))

    with pytest.raises(QueueFull):
        queue.add(pending(1))

    assert len(taken(queue)) == 1
    assert queue.nbytes == 0


def test_request_over_the_bounds_is_taken_alone() -> None:
    """A request larger than the queue is taken into an empty one, and leaves in pieces."""
    queue = make(max_rows=5)
    huge = pending(21)
    queue.add(huge)

    pieces = [queue.take(0.0)[0][0] for _ in range(3)]

    assert [(piece.start, piece.stop) for piece in pieces] == [(0, 8), (8, 16), (16, 21)]
    assert len(pieces[2].request.inputs["x"]) == 5
    assert (len(queue), queue.nbytes, queue.rows[Lane.INTERACTIVE]) == (0, 0, 0)


def test_discarded_request_gives_its_room_back() -> None:
    """A caller that left no longer counts; one that is being executed cannot be taken back."""
    first, second = pending(2), pending(2)
    queue = filled(make(), first, second)

    assert queue.discard(first)
    assert taken(queue) == [second]
    assert not queue.discard(second)
    assert len(queue) == 0


@pytest.mark.parametrize(
    ("preferred", "rows", "batches"),
    [
        ("preferred_batch_size: [4, 6]", [1] * 4, [4]),
        ("preferred_batch_size: [4, 6]", [1] * 5, [4, 1]),
        ("preferred_batch_size: [4, 6]", [1] * 7, [6, 1]),
        ("preferred_batch_size: [4, 6]", [1] * 3, [3]),
        ("preferred_batch_size: [2, 6]", [3, 4], [3, 4]),
        ("preferred_batch_size: [2, 6]", [7], [7]),
        ("", [1] * 9, [8, 1]),
    ],
)
def test_preferred_sizes_without_delay(preferred: str, rows: list[int], batches: list[int]) -> None:
    """Without a delay the largest preferred size that the queue makes goes, or all of it if it makes none."""
    queue = filled(make(preferred), *map(pending, rows))

    sizes = []
    while len(queue):
        sizes.append(sum(piece.stop - piece.start for piece in queue.take(0.0)[0]))

    assert sizes == batches


DELAY = "preferred_batch_size: [2, 6] max_queue_delay_microseconds: 1000000"


@pytest.mark.parametrize(
    ("rows", "first"),
    [([2], 2), ([6], 6), ([7], 7), ([1, 1], 2), ([1, 5], 6), ([3, 4], 3), ([1, 3], None), ([1], None), ([3, 6], 3)],
)
def test_delay_waits_for_a_preferred_size(rows: list[int], first: int | None) -> None:
    """With a delay a batch goes at once only if it is of a preferred size, above the largest, or cannot grow to one."""
    queue = filled(make(DELAY), *map(pending, rows))

    pieces, _, wait = queue.take(0.25)

    assert sum(piece.stop - piece.start for piece in pieces) == (first or 0)
    assert wait == (0.0 if first else 0.75)


def test_delay_counts_from_the_oldest() -> None:
    """When the oldest request has waited for the delay, all that fits goes, preferred or not."""
    queue = filled(make(DELAY), pending(3), pending(4, enqueued=0.9), pending(1, enqueued=0.99))

    assert sum(piece.stop - piece.start for piece in queue.take(1.0)[0]) == 8


def test_another_shape_ends_the_delay() -> None:
    """A batch whose next request has another shape cannot grow: it goes, and the other waits for its own delay."""
    queue = filled(make(DELAY), pending(1, shape=(16,)), pending(3, shape=(16,)), pending(1, shape=(8,)))

    assert sum(piece.stop - piece.start for piece in queue.take(0.0)[0]) == 4
    assert queue.take(0.0)[0] == []


def test_priorities_are_strict() -> None:
    """Level 1 goes first whatever came before; 0 and unknown levels mean the default; first in first out inside."""
    requests = [pending(priority=level) for level in (3, 0, 1, 9, 2, 1)]
    queue = filled(make("priority_levels: 3 default_priority_level: 2"), *requests)

    assert taken(queue) == [requests[index] for index in (2, 5, 1, 3, 4, 0)]


def test_queue_size_is_counted_by_level() -> None:
    """max_queue_size counts the requests of its level, exactly; other levels have their own."""
    queue = make(
        "priority_levels: 2 default_priority_level: 2 default_queue_policy { max_queue_size: 1 } "
        "priority_queue_policy { key: 1 value { max_queue_size: 2 } }"
    )
    for priority in (1, 1, 2):
        queue.add(pending(5, priority=priority))

    for priority in (1, 2):
        with pytest.raises(QueueFull, match="Exceeds maximum queue size"):
            queue.add(pending(priority=priority))


@pytest.mark.parametrize(
    ("policy", "asked", "wait"),
    [
        ("", 0.0, inf),
        ("default_timeout_microseconds: 500000", 0.0, 0.5),
        ("default_timeout_microseconds: 500000", 0.2, 0.5),
        ("default_timeout_microseconds: 500000 allow_timeout_override: true", 0.2, 0.2),
        ("default_timeout_microseconds: 500000 allow_timeout_override: true", 0.9, 0.5),
        ("allow_timeout_override: true", 0.2, 0.2),
        ("", 0.2, inf),
    ],
)
def test_timeout_of_a_request(policy: str, asked: float, wait: float) -> None:
    """A request may shorten the wait where the policy allows it, also where the policy has no timeout of its own."""
    queue = make(f"default_queue_policy {{ {policy} }}")

    assert queue.add(pending(timeout=asked)) == wait


def test_delayed_requests_go_last() -> None:
    """Under timeout action DELAY a request that waited too long goes behind its level; under REJECT it is out."""
    slow, other = pending(), pending()
    queue = filled(make("default_queue_policy { timeout_action: DELAY }"), slow, other)

    assert not queue.expire(slow)
    assert taken(queue) == [other, slow]

    queue = filled(make(), slow)
    assert queue.expire(slow)
    assert len(queue) == 0
