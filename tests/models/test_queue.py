"""The policy of a batcher's queue."""

import asyncio
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from lookwire_server.errors import QueueFull
from lookwire_server.models.model import Lane
from lookwire_server.models.queue import PATIENCE, Pending, Queue


def pending(
    rows: int = 1, lane: Lane = Lane.INTERACTIVE, *, length: int = 1, deadline: float | None = None, shape: Any = ()
) -> Pending:
    future: asyncio.Future[Any] = asyncio.Future(loop=LOOP)
    return Pending({"x": np.zeros((rows, 4), np.uint8)}, rows, length, shape, lane, deadline, 0.0, future)


LOOP = asyncio.new_event_loop()


@pytest.fixture(scope="module", autouse=True)
def close_the_loop() -> Iterator[None]:
    yield
    LOOP.close()


@pytest.fixture
def queue() -> Queue:
    return Queue(max_rows=1000, max_bytes=1 << 20)


def test_batch_is_filled_in_order_up_to_its_rows(queue: Queue) -> None:
    """A batch takes whole requests in order, and stops at the first that does not fit."""
    requests = [pending(3), pending(3), pending(3), pending(1)]
    for request in requests:
        queue.add(request)

    batch, expired = queue.take(8, 0, now=0.0)

    assert batch == requests[:2]
    assert expired == []
    assert queue.rows[Lane.INTERACTIVE] == 4


def test_interactive_goes_first_and_bulk_fills_what_is_left(queue: Queue) -> None:
    """Bulk rows ride along in a batch that interactive work does not fill."""
    bulk, interactive = pending(2, Lane.BULK), pending(3)
    queue.add(bulk)
    queue.add(interactive)

    batch, _ = queue.take(8, 0, now=0.0)

    assert batch == [interactive, bulk]


def test_bulk_does_not_starve(queue: Queue) -> None:
    """Under endless interactive load, bulk work starts a batch after a bounded number of them."""
    bulk = pending(4, Lane.BULK)
    queue.add(bulk)

    taken = []
    for _ in range(PATIENCE + 1):
        queue.add(pending(4))
        taken.append(bulk in queue.take(4, 0, now=0.0)[0])

    assert taken == [False] * PATIENCE + [True]


def test_tokens_count_padding(queue: Queue) -> None:
    """The token limit counts rows x longest length, padding included."""
    short, long = pending(4, length=8), pending(4, length=16)
    queue.add(short)
    queue.add(long)

    batch, _ = queue.take(64, 64, now=0.0)

    assert batch == [short]


def test_request_over_the_token_limit_goes_alone(queue: Queue) -> None:
    """A request that exceeds the token limit by itself is executed, not stuck."""
    huge = pending(4, length=77)
    queue.add(huge)

    assert queue.take(64, 64, now=0.0)[0] == [huge]


def test_unequal_shapes_do_not_share_a_batch(queue: Queue) -> None:
    """Requests whose unpadded shapes differ run one after the other."""
    small, large = pending(shape=(4,)), pending(shape=(8,))
    queue.add(small)
    queue.add(large)

    assert queue.take(8, 0, now=0.0)[0] == [small]
    assert queue.take(8, 0, now=0.0)[0] == [large]


def test_expired_requests_are_set_aside(queue: Queue) -> None:
    """A request whose deadline has passed takes no room in a batch."""
    late, live = pending(deadline=1.0), pending(deadline=3.0)
    queue.add(late)
    queue.add(live)

    batch, expired = queue.take(8, 0, now=2.0)

    assert (batch, expired) == ([live], [late])


@pytest.mark.parametrize(("rows", "nbytes"), [(5, 1000), (1000, 20)])
def test_queue_is_bounded_by_rows_and_bytes(rows: int, nbytes: int) -> None:
    """The request that would exceed a bound is refused, and the queue is as it was."""
    queue = Queue(rows, nbytes)
    queue.add(pending(5))

    with pytest.raises(QueueFull):
        queue.add(pending(1))

    assert len(queue.take(100, 0, now=0.0)[0]) == 1
    assert queue.nbytes == 0


def test_discarded_request_gives_its_room_back(queue: Queue) -> None:
    """A caller that left no longer counts; one that is being executed cannot be taken back."""
    first, second = pending(2), pending(2)
    queue.add(first)
    queue.add(second)

    assert queue.discard(first)
    assert queue.take(8, 0, now=0.0)[0] == [second]
    assert not queue.discard(second)
    assert not queue
