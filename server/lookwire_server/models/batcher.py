"""The dynamic batcher: it makes one execution of what waits while the model is busy."""

import asyncio
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import Protocol

import numpy as np
import structlog

from lookwire_server.errors import DeadlineExceeded, ModelFailure, QueueFull, Unavailable
from lookwire_server.metrics import Metrics
from lookwire_server.models.config import ModelConfig
from lookwire_server.models.model import Request, Response, Tensor, check
from lookwire_server.models.padding import Padding
from lookwire_server.models.queue import Pending, Queue
from lookwire_server.models.statistics import Statistics
from lookwire_server.models.together import together

log = structlog.get_logger()

# Bounds of a queue whose config sets none: enough for seconds of work, little against a server's memory.
MAX_QUEUE_ROWS = 8192
MAX_QUEUE_BYTES = 512 << 20


# Where cores are short, the loop takes requests in before another small batch runs. Measured at 32 calls in flight on
# 2 cores with the client beside (bundled text tower): 5.5 rows an execution instead of 2.1, a quarter more calls a second.
NICENESS = 10


def yield_to_the_loop() -> None:
    """Lowers the priority of the calling thread; Linux has one for each thread, elsewhere it stays as it is."""
    if sys.platform == "linux":
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), os.getpriority(os.PRIO_PROCESS, 0) + NICENESS)


class Session(Protocol):
    """One serial execution lane of a model."""

    def run(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """Executes the model once on whole batches; called from one thread at a time."""


class Batcher:
    """Serves a model: requests wait in one queue, and each instance takes its next batch from it when it is free.

    There is no timer unless the config sets `max_queue_delay_microseconds`: a lone request goes at once, and a batch forms
    while the instances are busy. Every request gets an answer: outputs, or the error that ended it.
    """

    def __init__(
        self,
        config: ModelConfig,
        version: int,
        sessions: Sequence[Session],
        metrics: Metrics,
        on_failure: Callable[[str], None],
    ) -> None:
        self.config = config
        self.version = version
        self.statistics = Statistics()
        self._padding = Padding.of(config)
        self._max_rows = config.max_batch_size if config.dynamic_batching else 1
        self._max_tokens = next(iter(config.integers("max_batch_tokens")), 0)
        self._queue = Queue(MAX_QUEUE_ROWS, MAX_QUEUE_BYTES)
        self._arrived = asyncio.Event()
        self._closing = False
        self._on_failure = on_failure
        labels = (config.name, str(version))
        self._batch_rows = metrics.batch_rows.labels(*labels)
        self._batch_padding = metrics.batch_padding.labels(*labels)
        self._queue_seconds = metrics.stage_seconds.labels("queue")
        self._infer_seconds = metrics.stage_seconds.labels("infer")
        self._queue_rows = {lane: metrics.queue_rows.labels(*labels, lane) for lane in self._queue.rows}
        self._rejected = {
            reason: metrics.rejected.labels(*labels, reason)
            for reason in ("queue_full", "deadline", "cancelled", "shutdown")
        }
        for lane, gauge in self._queue_rows.items():
            gauge.set_function(partial(self._queue.rows.__getitem__, lane))
        self._threads = [
            ThreadPoolExecutor(1, f"{config.name}-{index}", yield_to_the_loop) for index in range(len(sessions))
        ]
        self._instances = [
            asyncio.create_task(self._serve(session, thread), name=f"{config.name}-{index}")
            for index, (session, thread) in enumerate(zip(sessions, self._threads, strict=True))
        ]
        for instance in self._instances:
            instance.add_done_callback(self._instance_ended)

    async def infer(self, request: Request) -> Response:
        """Queues a request and waits for its outputs; one larger than a batch is split and put together again."""
        rows = check(self.config, request.inputs)
        limit = self.config.max_batch_size
        if not limit or rows <= limit:
            return await self._enqueue(request, rows)
        parts = [
            replace(request, inputs={name: tensor[start : start + limit] for name, tensor in request.inputs.items()})
            for start in range(0, rows, limit)
        ]
        answers = await together([self._enqueue(part, len(next(iter(part.inputs.values())))) for part in parts])
        return Response(
            {name: np.concatenate([answer.outputs[name] for answer in answers]) for name in answers[0].outputs},
            max(answer.queue_seconds for answer in answers),
            max(answer.infer_seconds for answer in answers),
        )

    async def _enqueue(self, request: Request, rows: int) -> Response:
        if self._closing:
            self._rejected["shutdown"].inc()
            raise Unavailable(f"model '{self.config.name}' is stopping")
        started = time.monotonic()
        pending = Pending(
            request.inputs,
            rows,
            self._padding.length(request.inputs),
            self._padding.shape(request.inputs),
            request.lane,
            request.deadline,
            started,
            asyncio.get_running_loop().create_future(),
        )
        try:
            self._queue.add(pending)
        except QueueFull:
            self._rejected["queue_full"].inc()
            raise
        self._arrived.set()
        try:
            response = await pending.future
        except asyncio.CancelledError:
            # Nobody waits for it any more: work that has not begun is not begun.
            if self._queue.discard(pending):
                late = request.deadline is not None and request.deadline <= time.monotonic()
                self._rejected["deadline" if late else "cancelled"].inc()
            raise
        finally:
            elapsed = time.monotonic() - started
            answered = pending.future.done() and not pending.future.cancelled()
            error = asyncio.CancelledError() if not answered else pending.future.exception()
            if error is None:
                self.statistics.success.add(elapsed)
            else:
                self.statistics.failed(error, elapsed)
        return response

    async def _serve(self, session: Session, thread: ThreadPoolExecutor) -> None:
        """The life of one instance: wait for work, take a batch, execute it, until closed and empty."""
        while await self._work_waits():
            batch, expired = self._queue.take(self._max_rows, self._max_tokens, time.monotonic())
            for pending in expired:
                self._rejected["deadline"].inc()
                self._fail(pending, DeadlineExceeded("the deadline passed while the request waited in the queue"))
            if batch:
                await self._execute(session, thread, batch)

    async def _work_waits(self) -> bool:
        """Returns True once there is something to take, False once closed and empty."""
        while not self._queue:
            if self._closing:
                return False
            self._arrived.clear()
            await self._arrived.wait()
        # Counted from the first row, so that a lone request waits at most the delay.
        while self.config.max_queue_delay and not self._closing and self._queue:
            left = self._queue.oldest().enqueued + self.config.max_queue_delay - time.monotonic()
            if left <= 0 or sum(self._queue.rows.values()) >= self._max_rows:
                break
            self._arrived.clear()
            try:
                await asyncio.wait_for(self._arrived.wait(), left)
            except TimeoutError:
                break
        return True

    async def _execute(self, session: Session, thread: ThreadPoolExecutor, batch: list[Pending]) -> None:
        """Runs one batch in the instance's thread and answers each of its requests."""
        began = time.monotonic()
        try:
            outputs, times, waste = await asyncio.get_running_loop().run_in_executor(thread, self._run, session, batch)
        except Exception:
            log.exception("model execution failed", model=self.config.name, version=self.version, requests=len(batch))
            for pending in batch:
                self._fail(
                    pending, ModelFailure(f"model '{self.config.name}' failed; the cause is in the server's log")
                )
            return
        except BaseException:  # the instance itself is ended: its requests are told before it goes
            for pending in batch:
                self._fail(pending, Unavailable(f"model '{self.config.name}' is stopping"))
            raise
        rows = sum(pending.rows for pending in batch)
        self.statistics.executed(rows, len(batch), *times)
        self._batch_rows.observe(rows)
        if waste is not None:
            self._batch_padding.observe(waste)
        infer = sum(times)
        self._infer_seconds.observe(infer)
        row = 0
        for pending in batch:
            waited = began - pending.enqueued
            self.statistics.queue.add(waited)
            self._queue_seconds.observe(waited)
            if not pending.future.done():
                mine = {name: tensor[row : row + pending.rows] for name, tensor in outputs.items()}
                pending.future.set_result(Response(mine if self.config.max_batch_size else outputs, waited, infer))
            row += pending.rows

    def _run(
        self, session: Session, batch: list[Pending]
    ) -> tuple[dict[str, Tensor], tuple[float, float, float], float | None]:
        """In the instance's thread: outputs, the seconds of input, inference and output, and the share of padding."""
        start = time.perf_counter()
        inputs, waste = self._padding.join([pending.inputs for pending in batch])
        joined = time.perf_counter()
        outputs = session.run(inputs)
        ran = time.perf_counter()
        rows = sum(pending.rows for pending in batch)
        if self.config.max_batch_size:
            for name, tensor in outputs.items():
                if len(tensor) != rows:
                    raise RuntimeError(f"output '{name}' has {len(tensor)} rows for a batch of {rows}")
        return outputs, (joined - start, ran - joined, time.perf_counter() - ran), waste

    def _fail(self, pending: Pending, error: Exception) -> None:
        if not pending.future.done():
            pending.future.set_exception(error)

    def _instance_ended(self, instance: asyncio.Task[None]) -> None:
        """An instance that ends before the batcher is closed is a fault: all that wait are told, and so is the owner."""
        if self._closing and not instance.cancelled() and instance.exception() is None:
            return
        error = None if instance.cancelled() else instance.exception()
        log.error("an instance ended", model=self.config.name, instance=instance.get_name(), exc_info=error)
        self._closing = True
        self._abandon()
        self._on_failure(f"instance {instance.get_name()} of model '{self.config.name}' ended")

    def _abandon(self) -> None:
        """Answers everything that still waits with Unavailable."""
        while self._queue:
            batch, expired = self._queue.take(self._max_rows, 0, float("-inf"))
            for pending in batch + expired:
                self._rejected["shutdown"].inc()
                self._fail(pending, Unavailable(f"model '{self.config.name}' is stopping"))

    async def close(self) -> None:
        """Takes no more requests, executes what waits, and ends the instances."""
        self._closing = True
        self._arrived.set()
        await asyncio.gather(*self._instances, return_exceptions=True)
        self._abandon()
        for thread in self._threads:
            thread.shutdown()
