"""The queue of a batcher: which waiting requests make the next batch. Pure policy: no clock, no threads, no I/O."""

import asyncio
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field

from lookwire_server.errors import QueueFull
from lookwire_server.models.model import Lane, Response, Tensor

# After this many batches that left waiting bulk work out, the next batch starts with it: bulk cannot starve.
PATIENCE = 8


@dataclass(slots=True, eq=False)
class Pending:
    """A request that waits. `length` is the size of its padded axis (1 where nothing is padded).

    `shape` tells what may share a batch: requests of unequal shapes do not.
    """

    inputs: Mapping[str, Tensor]
    rows: int
    length: int
    shape: tuple[object, ...]
    lane: Lane
    deadline: float | None
    enqueued: float
    future: asyncio.Future[Response]
    nbytes: int = field(init=False)

    def __post_init__(self) -> None:
        self.nbytes = sum(tensor.nbytes for tensor in self.inputs.values())


class Queue:
    """Two lanes, first in first out each, bounded by rows and bytes."""

    def __init__(self, max_rows: int, max_bytes: int) -> None:
        self.max_rows = max_rows
        self.max_bytes = max_bytes
        self.rows = dict.fromkeys(Lane, 0)
        self.nbytes = 0
        self._lanes: dict[Lane, deque[Pending]] = {lane: deque() for lane in Lane}
        self._passed_over = 0

    def __bool__(self) -> bool:
        return any(self._lanes.values())

    def oldest(self) -> Pending:
        """The request that has waited longest."""
        return min((lane[0] for lane in self._lanes.values() if lane), key=lambda pending: pending.enqueued)

    def add(self, pending: Pending) -> None:
        """Appends a request to its lane; raises QueueFull if a bound would be exceeded."""
        waiting = sum(self.rows.values())
        if waiting + pending.rows > self.max_rows or self.nbytes + pending.nbytes > self.max_bytes:
            raise QueueFull(
                f"Exceeds maximum queue size: {waiting} rows and {self.nbytes} bytes wait, "
                f"at most {self.max_rows} rows and {self.max_bytes} bytes may",
                rows=waiting,
                max_rows=self.max_rows,
            )
        self._lanes[pending.lane].append(pending)
        self.rows[pending.lane] += pending.rows
        self.nbytes += pending.nbytes

    def discard(self, pending: Pending) -> bool:
        """Removes a request that nobody waits for any more; False if it has left the queue already."""
        try:
            self._lanes[pending.lane].remove(pending)
        except ValueError:
            return False
        self._left(pending)
        return True

    def take(self, max_rows: int, max_tokens: int, now: float) -> tuple[list[Pending], list[Pending]]:
        """Removes and returns the next batch, and the requests found expired on the way.

        A batch holds at most `max_rows` rows and, unless that is 0, at most `max_tokens` rows x longest length; a first
        request that exceeds these alone still goes. Interactive requests come before bulk.
        """
        batch: list[Pending] = []
        expired: list[Pending] = []
        rows = length = 0
        bulk_first = self._passed_over >= PATIENCE
        for lane in (Lane.BULK, Lane.INTERACTIVE) if bulk_first else (Lane.INTERACTIVE, Lane.BULK):
            waiting = self._lanes[lane]
            while waiting:
                head = waiting[0]
                if head.deadline is not None and head.deadline <= now:
                    expired.append(head)
                elif batch and (
                    head.shape != batch[0].shape
                    or rows + head.rows > max_rows
                    or (max_tokens and (rows + head.rows) * max(length, head.length) > max_tokens)
                ):
                    break
                else:
                    batch.append(head)
                    rows += head.rows
                    length = max(length, head.length)
                waiting.popleft()
                self._left(head)
        if self._lanes[Lane.BULK] and not any(pending.lane is Lane.BULK for pending in batch):
            self._passed_over += 1
        else:
            self._passed_over = 0
        return batch, expired

    def _left(self, pending: Pending) -> None:
        self.rows[pending.lane] -= pending.rows
        self.nbytes -= pending.nbytes
