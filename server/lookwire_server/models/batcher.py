"""The dynamic batcher: it makes one execution of what waits while the model is busy."""

import asyncio
import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import structlog

from lookwire_server.errors import DeadlineExceeded, LookwireError, ModelFailure, QueueFull, QueueTimeout, Unavailable
from lookwire_server.lanes import Lane
from lookwire_server.metrics import Metrics
from lookwire_server.models.config import ModelConfig
from lookwire_server.models.instance import Instance
from lookwire_server.models.model import Request, Response, check
from lookwire_server.models.padding import Padding
from lookwire_server.models.queue import Pending, Piece, Queue
from lookwire_server.models.session import Execution, Session
from lookwire_server.models.statistics import Statistics

log = structlog.get_logger()

# Bounds of a queue whose config sets none: enough for seconds of work, little against a server's memory.
MAX_QUEUE_ROWS = 8192
MAX_QUEUE_BYTES = 512 << 20


class Batcher:
    """Serves a model: requests wait in one queue, and each instance takes its next batch from it when it is free.

    There is no timer unless the config sets `max_queue_delay_microseconds` or a queue timeout: a lone request goes at once,
    and a batch forms while the instances are busy. Every request gets an answer: outputs, or the error that ended it.
    `hold` is for tests: the first batch is held back until so many requests wait.
    """

    def __init__(
        self,
        config: ModelConfig,
        version: int,
        sessions: Sequence[Session],
        metrics: Metrics,
        on_failure: Callable[[str], None],
        hold: int = 0,
    ) -> None:
        self.config = config
        self.version = version
        self.statistics = Statistics()
        self._padding = Padding.of(config)
        self._queue = Queue(config, MAX_QUEUE_ROWS, MAX_QUEUE_BYTES, next(iter(config.integers("max_batch_tokens")), 0))
        self._in_order: deque[Pending] | None = deque() if config.preserve_ordering else None
        self._hold = hold
        self._timer: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()
        self._closing = False
        self._drained = asyncio.Event()
        self._on_failure = on_failure
        labels = (config.name, str(version))
        self._batch_rows = metrics.batch_rows.labels(*labels)
        self._batch_padding = metrics.batch_padding.labels(*labels)
        self._queue_seconds = metrics.stage_seconds.labels("queue")
        self._infer_seconds = metrics.stage_seconds.labels("infer")
        self._rejected = {
            reason: metrics.rejected.labels(*labels, reason)
            for reason in ("queue_full", "queue_timeout", "deadline", "cancelled", "shutdown")
        }
        for lane in self._queue.rows:
            gauge = metrics.queue_rows.labels(*labels, lane)
            gauge.set_function(partial(self._queue.rows.__getitem__, lane))
        self._instances = [
            Instance(
                "-".join(filter(None, (config.name, str(number), lane))), session, lane, self._executed, self._died
            )
            for number, session in enumerate(sessions)
            for lane in (tuple(Lane) if session.concurrent else (None,))
        ]
        # The free instances of each lane, or of both where they share one.
        self._idle: dict[Lane | None, list[Instance]] = {}
        for instance in reversed(self._instances):
            self._idle.setdefault(instance.lane, []).append(instance)
        self._running: dict[Instance, list[Piece]] = {}

    async def infer(self, request: Request) -> Response:
        """Queues a request and waits for its outputs; one larger than a batch is executed in pieces and answered as one."""
        started = time.monotonic()
        try:
            pending = self._admit(request, started)
            if not self._start(pending, started):
                self._enqueue(pending)
                self._dispatch()
            try:
                response = await pending.future
            except asyncio.CancelledError:
                self._abandoned(pending)
                raise
        except BaseException as error:
            self.statistics.failed(error, time.monotonic() - started)
            raise
        self.statistics.success.add(time.monotonic() - started)
        return response

    def check_wait(self, deadline: float | None) -> None:
        if deadline is not None:
            try:
                self._queue.check_wait(deadline - time.monotonic())
            except QueueFull:
                self._rejected["queue_full"].inc()
                raise

    def _admit(self, request: Request, now: float) -> Pending:
        rows = check(self.config, request.inputs)
        if self._closing:
            self._rejected["shutdown"].inc()
            raise Unavailable(f"model '{self.config.name}' is stopping")
        return Pending(
            request,
            rows,
            self._padding.length(request.inputs),
            self._padding.shape(request.inputs),
            now,
            self._loop.create_future(),
        )

    def _start(self, pending: Pending, now: float) -> bool:
        """Executes a request that need not wait, as the queue would have it; False if it must."""
        idle = self._idle.get(None) or self._idle.get(pending.request.lane)
        if not idle or self._hold or not self._queue.bypass(pending, now):
            return False
        self._taken_in(pending)
        self._execute(idle.pop(), [Piece(pending, 0, pending.rows)], now)
        return True

    def _enqueue(self, pending: Pending) -> None:
        try:
            wait = self._queue.add(pending)
        except QueueFull:
            self._rejected["queue_full"].inc()
            raise
        if wait < math.inf:
            pending.timer = self._loop.call_later(late(wait), self._expired, pending)
        self._taken_in(pending)

    def _taken_in(self, pending: Pending) -> None:
        """A request waits, or is executed at once."""
        self.statistics.pending += 1
        if self._in_order is not None:
            self._in_order.append(pending)

    def _dispatch(self) -> None:
        """Gives each free instance its next batch, if one is due; called whenever that may have changed."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._hold > len(self._queue) and not self._closing:
            return
        self._hold = 0
        soonest = math.inf
        for lane, idle in self._idle.items():
            while idle and self._queue.waits(lane):
                now = time.monotonic()
                pieces, expired, wait = self._queue.take(now, lane, at_once=self._closing)
                for pending in expired:
                    self._left(pending)
                    self._rejected["deadline"].inc()
                    self._answer(pending, DeadlineExceeded("the deadline passed while the request waited in the queue"))
                if pieces:
                    self._execute(idle.pop(), pieces, now)
                elif wait < math.inf:
                    soonest = min(soonest, wait)
                    break
        if soonest < math.inf:
            self._timer = self._loop.call_later(late(soonest), self._dispatch)
        if self._closing and sum(map(len, self._idle.values())) == len(self._instances):
            self._drained.set()

    def _execute(self, instance: Instance, pieces: list[Piece], now: float) -> None:
        for piece in pieces:
            pending = piece.pending
            if piece.start == 0:
                pending.began = now
                self._disarm(pending)
            if piece.stop == pending.rows:
                self._left(pending)
        self._running[instance] = pieces
        batch = [piece.request for piece in pieces]
        if instance.immediate:
            self._finish(instance, instance.execute_now(batch))
        else:
            instance.execute(batch)

    def _executed(self, instance: Instance, outcome: Execution | Exception) -> None:
        """Called when an instance's thread has executed its batch."""
        self._finish(instance, outcome)
        self._dispatch()

    def _finish(self, instance: Instance, outcome: Execution | Exception) -> None:
        """Answers the requests of a batch; its instance is free."""
        pieces = self._running.pop(instance)
        self._idle[instance.lane].append(instance)
        try:
            if isinstance(outcome, Exception):
                raise outcome
            if len(outcome.answers) != len(pieces):
                raise RuntimeError(f"{len(outcome.answers)} answers to {len(pieces)} requests")
            self._count(pieces, outcome)
            if not instance.immediate:
                self._learn(pieces, outcome.infer_seconds)
        except Exception:
            log.exception("model execution failed", model=self.config.name, version=self.version, requests=len(pieces))
            for piece in pieces:
                self._fail(piece.pending, self._failure())
            return
        for number, piece in enumerate(pieces):
            try:
                self._collect(piece, outcome, number)
            except Exception:
                log.exception("a model answers wrongly", model=self.config.name, version=self.version)
                self._fail(piece.pending, self._failure())

    def _failure(self) -> ModelFailure:
        return ModelFailure(f"model '{self.config.name}' failed; the cause is in the server's log")

    def _count(self, pieces: list[Piece], execution: Execution) -> None:
        rows = begun = 0
        for piece in pieces:
            rows += piece.stop - piece.start
            if piece.start == 0:
                begun += 1
                waited = piece.pending.began - piece.pending.enqueued
                self.statistics.queue.add(waited)
                self._queue_seconds.observe(waited)
        self.statistics.executed(
            rows, begun, execution.input_seconds, execution.infer_seconds, execution.output_seconds
        )
        self._batch_rows.observe(rows)
        if execution.padding is not None:
            self._batch_padding.observe(execution.padding)
        self._infer_seconds.observe(execution.seconds)

    def _learn(self, pieces: list[Piece], seconds: float) -> None:
        size = sum((piece.stop - piece.start) * piece.pending.length for piece in pieces)
        self._queue.costs[pieces[0].pending.request.lane].learn(size, seconds)

    def _collect(self, piece: Piece, execution: Execution, number: int) -> None:
        """Keeps the answer of one piece; the request is answered when all its rows are, or when a piece failed."""
        pending, answer = piece.pending, execution.answers[number]
        if isinstance(answer, LookwireError):
            self._fail(pending, answer)
            return
        if execution.parameters and (parameters := execution.parameters[number]):
            pending.parameters = {**(pending.parameters or {}), **parameters}
        pending.infer_seconds = max(pending.infer_seconds, execution.seconds)
        outputs = answer
        if piece.stop - piece.start < pending.rows:
            pending.answers[piece.start] = answer
            pending.answered += piece.stop - piece.start
            if pending.answered < pending.rows:
                return
            parts = [part for _, part in sorted(pending.answers.items())]
            outputs = {name: np.concatenate([part[name] for part in parts]) for name in answer}
        waited = pending.began - pending.enqueued
        self._answer(pending, Response(outputs, waited, pending.infer_seconds, pending.parameters))

    def _fail(self, pending: Pending, error: LookwireError) -> None:
        """Ends a request with an error; rows of it that still wait are not executed."""
        if self._queue.discard(pending):
            self._left(pending)
        self._answer(pending, error)

    def _answer(self, pending: Pending, outcome: Response | LookwireError) -> None:
        """Ends a request; with preserve_ordering one that was executed not before all that came earlier have ended."""
        pending.outcome = outcome
        if self._in_order is None:
            settle(pending)
            return
        if not pending.began:
            settle(pending)
        while self._in_order and self._in_order[0].outcome is not None:
            settle(self._in_order.popleft())

    def _left(self, pending: Pending) -> None:
        """A request has left the queue."""
        self.statistics.pending -= 1
        self._disarm(pending)

    def _disarm(self, pending: Pending) -> None:
        """Its wait can no longer be too long."""
        if pending.timer is not None:
            pending.timer.cancel()
            pending.timer = None

    def _expired(self, pending: Pending) -> None:
        """A request has waited in the queue for as long as its policy allows."""
        pending.timer = None
        if self._queue.expire(pending):
            self._left(pending)
            self._rejected["queue_timeout"].inc()
            self._answer(pending, QueueTimeout("Request timeout expired"))
        self._dispatch()

    def _abandoned(self, pending: Pending) -> None:
        """Nobody waits for a request any more: what has not begun is not begun."""
        if self._queue.discard(pending):
            self._left(pending)
            self._rejected["deadline" if pending.deadline <= time.monotonic() else "cancelled"].inc()
        if pending.outcome is None:
            self._answer(pending, Unavailable("the request was cancelled"))
        self._dispatch()

    def _died(self, instance: Instance, error: BaseException) -> None:
        """An instance's thread has ended by a fault: all that wait are told, and so is the owner."""
        log.error("an instance ended", model=self.config.name, instance=instance.name, exc_info=error)
        self._closing = True
        stopping = Unavailable(f"model '{self.config.name}' is stopping")
        for piece in self._running.pop(instance, []):
            self._answer(piece.pending, stopping)
        self._instances.remove(instance)
        if instance in (idle := self._idle[instance.lane]):
            idle.remove(instance)
        for pending in self._queue.drain():
            self._left(pending)
            self._rejected["shutdown"].inc()
            self._answer(pending, stopping)
        self._dispatch()
        self._on_failure(f"instance {instance.name} of model '{self.config.name}' ended")

    async def close(self) -> None:
        """Takes no more requests, executes what waits, and ends the instances."""
        self._closing = True
        self._dispatch()
        await self._drained.wait()
        await asyncio.gather(*(instance.close() for instance in self._instances))


def late(seconds: float) -> float:
    """Whole milliseconds, rounded up: the clock of uvloop counts in these and rounds to the nearest, which may be too early."""
    return math.ceil(seconds * 1e3) / 1e3


def settle(pending: Pending) -> None:
    """Completes the future of a request that has its outcome."""
    if pending.future.done():
        return
    if isinstance(pending.outcome, Response):
        pending.future.set_result(pending.outcome)
    elif pending.outcome is not None:
        pending.future.set_exception(pending.outcome)
