"""The queue of a batcher: which waiting requests make the next batch, and when. Pure policy: no clock, no threads, no I/O."""

import asyncio
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from itertools import chain
from math import inf

from lookwire_server.errors import LookwireError, QueueFull
from lookwire_server.lanes import Lane
from lookwire_server.models.config import ModelConfig, QueuePolicy
from lookwire_server.models.cost import Cost
from lookwire_server.models.model import Parameter, Request, Response, Tensor

# After this many batches that left waiting bulk work out, the next batch starts with it: bulk cannot starve.
PATIENCE = 8
# A batch is to hold an instance no longer, in seconds: what comes meanwhile waits, and what feeds the instance runs beside it.
# 0.2 s of a ViT-B/32 on 2 cores are 4 images, which run as fast as more do.
TIME_SLICE = 0.2
# A batch may be longer if its beginning would else be more than one part in so many.
WORTH = 10
# Of the time that its caller will wait, an interactive request may spend this share in the queue. The rest is for what is not
# foreseen, and a queue this short is soon worked off. Bulk requests are large: most of what they wait for is their own.
QUEUE_SHARE = 0.5


@dataclass(slots=True, eq=False)
class Pending:
    """A request that waits.

    `length` is the size of its padded axis (1 where nothing is padded). `shape` tells what may share a batch: requests of
    unequal shapes do not. `deadline` is when its caller stops waiting, in seconds of `time.monotonic`, or infinite. Of its
    `rows`, `taken` have left the queue. Where it is executed in pieces, `answered` rows have come back, and `answers` holds
    their outputs by first row. `parameters` is what came with the outputs.
    """

    request: Request
    rows: int
    length: int
    shape: tuple[object, ...]
    enqueued: float
    future: asyncio.Future[Response]
    deadline: float = field(init=False)
    nbytes: int = field(init=False)
    level: int = 0
    taken: int = 0
    began: float = 0.0
    infer_seconds: float = 0.0
    answered: int = 0
    answers: dict[int, Mapping[str, Tensor]] = field(default_factory=dict)
    parameters: dict[str, Parameter] | None = None
    timer: asyncio.TimerHandle | None = None
    outcome: Response | LookwireError | None = None

    @property
    def size(self) -> int:
        """What still waits of it, in rows times length."""
        return (self.rows - self.taken) * self.length

    def __post_init__(self) -> None:
        self.deadline = inf if self.request.deadline is None else self.request.deadline
        self.nbytes = 0
        for tensor in self.request.inputs.values():
            self.nbytes += tensor.nbytes


@dataclass(slots=True)
class Piece:
    """The rows of a request that one batch executes: all of them, but for a request larger than a batch."""

    pending: Pending
    start: int
    stop: int

    @property
    def request(self) -> Request:
        """The request of these rows alone."""
        whole = self.pending.request
        if self.stop - self.start == self.pending.rows:
            return whole
        return replace(whole, inputs={name: tensor[self.start : self.stop] for name, tensor in whole.inputs.items()})


class Level:
    """One priority level, first in first out; those that waited too long under timeout action DELAY come last.

    `size` is that of all that wait in it.
    """

    def __init__(self, policy: QueuePolicy) -> None:
        self.policy = policy
        self.size = 0
        self.waiting: OrderedDict[Pending, None] = OrderedDict()
        self.delayed: OrderedDict[Pending, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self.waiting) + len(self.delayed)


class Queue:
    """The priority levels of a model, 1 the highest, and the bulk lane below them all; bounded by rows and bytes.

    `costs` is what executions of each lane cost, for whoever executes them to teach.
    """

    def __init__(self, config: ModelConfig, max_rows: int, max_bytes: int, max_tokens: int = 0) -> None:
        self.costs = {lane: Cost() for lane in Lane}
        self.max_rows = max_rows
        self.max_bytes = max_bytes
        self.rows = dict.fromkeys(Lane, 0)
        self.nbytes = 0
        self._config = config
        self._dynamic = config.dynamic_batching
        self._batch_rows = max(1, config.max_batch_size)
        self._instances = max(1, config.instances)
        self._max_tokens = max_tokens
        self._preferred = frozenset(config.preferred_batch_sizes)
        self._max_preferred = max(config.preferred_batch_sizes, default=self._batch_rows)
        self._delay = config.max_queue_delay
        # Whether the config says when batches go.
        self._sized = bool(self._delay or self._preferred - {self._batch_rows})
        priorities = range(1, max(1, config.priority_levels) + 1)
        self._levels = [
            *(Level(config.queue_policies.get(priority, config.default_queue_policy)) for priority in priorities),
            Level(config.default_queue_policy),
        ]
        self._bulk = self._levels[-1]
        # All that wait, in the order in which they go, and in that where bulk work has its turn.
        parts = [part for level in self._levels for part in (level.waiting, level.delayed)]
        self._in_order = parts
        self._bulk_first = parts[-2:] + parts[:-2]
        self._parts = {Lane.INTERACTIVE: parts[:-2], Lane.BULK: parts[-2:]}
        self._passed_over = 0
        self._requests = 0

    def __len__(self) -> int:
        return self._requests

    def add(self, pending: Pending) -> float:
        """Appends a request to its level and returns its longest wait in seconds, infinite if it has none.

        Raises QueueFull if a bound would be exceeded, or if what goes before an interactive request will take too much of the
        time that its caller waits; a request that exceeds the bounds alone is taken into an empty queue.
        """
        request = pending.request
        pending.level = self._level(request)
        level = self._levels[pending.level]
        policy = level.policy
        if policy.max_requests and len(level) >= policy.max_requests:
            raise QueueFull(
                f"Exceeds maximum queue size: {len(level)} requests wait for model '{self._config.name}', at most "
                f"{policy.max_requests} may",
                requests=len(level),
                max_requests=policy.max_requests,
            )
        rows = sum(self.rows.values())
        if rows and (rows + pending.rows > self.max_rows or self.nbytes + pending.nbytes > self.max_bytes):
            raise QueueFull(
                f"Exceeds maximum queue size: {rows} rows and {self.nbytes} bytes wait for model '{self._config.name}', at "
                f"most {self.max_rows} rows and {self.max_bytes} bytes may",
                rows=rows,
                max_rows=self.max_rows,
            )
        if pending.deadline < inf and request.lane is Lane.INTERACTIVE:
            self.check_wait(pending.deadline - pending.enqueued, pending.level)
        level.waiting[pending] = None
        level.size += pending.size
        self._requests += 1
        self.rows[request.lane] += pending.rows
        self.nbytes += pending.nbytes
        wait = policy.timeout or inf
        if request.timeout > 0 and policy.allow_override:
            wait = min(wait, request.timeout)
        return wait

    def check_wait(self, left: float, level: int | None = None) -> None:
        """Raises QueueFull if an interactive request of the level, or the default one, would wait too long.

        `left` is the number of seconds that its caller waits.
        """
        if level is None:
            level = max(0, self._config.default_priority - 1)
        size = sum(each.size for each in self._levels[: level + 1])
        wait = self.costs[Lane.INTERACTIVE].seconds(size) / self._instances if size else 0.0
        if wait > QUEUE_SHARE * left:
            refusal = QueueFull(
                f"what waits for model '{self._config.name}' will take {wait:.1f} s, too long for a request that has "
                f"{max(0.0, left):.1f} s left; try again later, or wait longer"
            )
            refusal.retry_after = round(wait, 2)
            raise refusal

    def _level(self, request: Request) -> int:
        if request.lane is Lane.BULK:
            return len(self._levels) - 1
        priority = request.priority
        if not 0 < priority <= self._config.priority_levels:
            priority = self._config.default_priority
        return max(0, priority - 1)

    def expire(self, pending: Pending) -> bool:
        """A request has waited its longest: True if it is to be rejected, and is out; else it goes behind its level."""
        level = self._levels[pending.level]
        if not level.policy.delay:
            return self.discard(pending)
        if pending in level.waiting:
            del level.waiting[pending]
            level.delayed[pending] = None
        return False

    def discard(self, pending: Pending) -> bool:
        """Removes a request that nobody waits for any more; False if it has left the queue already."""
        level = self._levels[pending.level]
        for part in (level.waiting, level.delayed):
            if pending in part:
                del part[pending]
                level.size -= pending.size
                self._requests -= 1
                self.rows[pending.request.lane] -= pending.rows - pending.taken
                self.nbytes -= pending.nbytes
                return True
        return False

    def waits(self, lane: Lane | None) -> bool:
        """Whether there is something to take."""
        return self._requests > 0 if lane is None else self.rows[lane] > 0

    def bypass(self, pending: Pending, now: float) -> bool:
        """Whether a request that was not added makes the next batch: nothing waits, and it need not wait for others."""
        if self._requests or self._delay or pending.deadline <= now or pending.rows > self._most(pending):
            return False
        pending.taken = pending.rows
        self._passed_over = 0
        return True

    def take(
        self, now: float, lane: Lane | None = None, *, at_once: bool = False
    ) -> tuple[list[Piece], list[Pending], float]:
        """The next batch, the requests found past their deadline on the way, and the seconds to wait if no batch is due.

        What is returned has left the queue. A batch is a prefix of the queue of equal shapes, or, with a lane, of what waits
        in that. It goes at once unless `max_queue_delay_microseconds` is set; then it goes when its rows make a preferred
        size, when it cannot grow (the next request has another shape or does not fit), or when its oldest request has waited
        that long (Triton's rule). Without a delay, or `at_once`, the largest preferred size that the prefix makes goes, or
        all of it if it makes none. A request of more rows than a batch is taken in pieces. A batch is no larger than its time
        slice, unless the config says when batches go.
        """
        chosen: list[tuple[Pending, int]] = []
        late: list[Pending] = []
        rows = length = preferred = most = 0
        blocked = False
        for pending in self._candidates(lane):
            if pending.deadline <= now:
                late.append(pending)
                continue
            if not chosen:
                most = self._most(pending)
            size = min(pending.rows - pending.taken, most)
            if chosen:
                if not preferred and rows + size > self._max_preferred:
                    preferred = len(chosen)
                if rows + size > most or not self._fits(pending, chosen[0][0], rows + size, length):
                    blocked = True
                    break
            chosen.append((pending, size))
            rows += size
            length = max(length, pending.length)
            if rows in self._preferred:
                preferred = len(chosen)
            if rows >= most:
                break
        for pending in late:
            self.discard(pending)
        if not chosen:
            return [], late, inf
        if self._dynamic:
            delay = 0.0 if at_once else self._delay
            left = delay + min(pending.enqueued for pending, _ in chosen) - now if delay else 0.0
            if preferred and not (delay and left <= 0):
                del chosen[preferred:]
            elif left > 0 and not (blocked or rows >= self._max_preferred):
                return [], late, left
        return self._leave(chosen), late, 0.0

    def _candidates(self, lane: Lane | None) -> Iterable[Pending]:
        """What may go next, in order."""
        if lane is not None:
            return chain(*self._parts[lane])
        return chain(*(self._bulk_first if self._passed_over >= PATIENCE else self._in_order))

    def _most(self, first: Pending) -> int:
        """The rows that a batch may have which begins with this request."""
        if self._sized:
            return self._batch_rows
        lane = first.request.lane
        cost = self.costs[lane]
        if not cost.known and lane is Lane.INTERACTIVE:
            return self._batch_rows
        size = cost.size(TIME_SLICE)
        if cost.known:
            size = max(size, WORTH * cost.overhead)
        return int(min(self._batch_rows, max(1, size / first.length)))

    def _fits(self, pending: Pending, first: Pending, rows: int, length: int) -> bool:
        """Whether a batch that starts with `first` may grow by `pending`, to `rows` rows."""
        return (
            self._dynamic
            and pending.shape == first.shape
            and not (self._max_tokens and rows * max(length, pending.length) > self._max_tokens)
        )

    def _leave(self, chosen: list[tuple[Pending, int]]) -> list[Piece]:
        pieces = []
        for pending, size in chosen:
            piece = Piece(pending, pending.taken, pending.taken + size)
            if piece.stop == pending.rows:
                self.discard(pending)
                pending.taken = pending.rows
            else:
                self.rows[pending.request.lane] -= size
                self._levels[pending.level].size -= size * pending.length
                pending.taken = piece.stop
            pieces.append(piece)
        if len(self._bulk) and not any(pending.request.lane is Lane.BULK for pending, _ in chosen):
            self._passed_over += 1
        else:
            self._passed_over = 0
        return pieces

    def drain(self) -> list[Pending]:
        """Removes and returns everything that waits."""
        everything = list(chain(*self._in_order))
        for pending in everything:
            self.discard(pending)
        return everything
