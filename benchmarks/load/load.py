"""The process that sends requests."""

import asyncio
import gc
import itertools
import multiprocessing
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from types import TracebackType
from typing import Self

import numpy as np
import uvloop

from benchmarks.load.calls import Calls
from benchmarks.load.connection import Connection
from benchmarks.load.result import Result, Seconds

WARM_UP = 1.0


class Load:
    """A process of its own that sends one load after the other; two loads at once are two of these."""

    def __init__(self) -> None:
        self._process = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), keep_imports)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.shutdown(cancel_futures=True)

    def start_closed(self, calls: Calls, in_flight: int, seconds: float) -> "Future[Result]":
        """Keeps so many requests in flight for so many seconds: the next is due when one has ended."""
        return self._process.submit(run_closed, calls, in_flight, seconds)

    def start_open(self, calls: Calls, arrivals: Seconds) -> "Future[Result]":
        """Sends a request at each of these times, whatever became of those before."""
        return self._process.submit(run_open, calls, arrivals)

    def closed(self, calls: Calls, in_flight: int, seconds: float) -> Result:
        """As `start_closed`, and waits for the end."""
        return self.start_closed(calls, in_flight, seconds).result()

    def open(self, calls: Calls, arrivals: Seconds) -> Result:
        """As `start_open`, and waits for the end."""
        return self.start_open(calls, arrivals).result()

    def each_once(self, calls: Calls, in_flight: int) -> Result:
        """Sends each request once, so many at a time, and waits for the end."""
        return self._process.submit(run_each_once, calls, in_flight).result()

    def throughput(self, calls: Calls, in_flight: int, seconds: float) -> float:
        """Requests answered a second with so many in flight, after a warm-up; raises RuntimeError if one was not."""
        result = self.closed(calls, in_flight, WARM_UP + seconds)
        if result.failures:
            raise RuntimeError(f"requests to {calls.method} failed: {result.counts}")
        return result.throughput(WARM_UP, WARM_UP + seconds)


def keep_imports() -> None:
    """Leaves what the imports made to no garbage collection of the load's process, whose pauses would be in the latencies."""
    gc.freeze()


@dataclass(slots=True)
class Sender:
    """Sends requests over one connection and keeps what became of each; its clock starts when it is made."""

    connection: Connection
    began: float = field(default_factory=time.monotonic)
    ends: list[tuple[float, float, float, str, bool]] = field(default_factory=list)
    in_flight: int = 0
    idle: asyncio.Event = field(default_factory=asyncio.Event)

    def now(self) -> float:
        return time.monotonic() - self.began

    def send(self, request: bytes, scheduled: float, following: Iterable[bytes] = ()) -> None:
        """Sends a request that was due at `scheduled`, and when it has ended the next of those that follow, if there is one."""
        self.in_flight += 1
        self.idle.clear()
        self.connection.call(request, partial(self._ended, scheduled, self.now(), following))

    def _ended(self, scheduled: float, sent: float, following: Iterable[bytes], code: str, retry_told: bool) -> None:
        self.ends.append((scheduled, sent, self.now(), code, retry_told))
        self.in_flight -= 1
        for request in itertools.islice(following, 1):
            self.send(request, self.now(), following)
        if not self.in_flight:
            self.idle.set()

    def send_all(self, requests: Iterator[bytes], in_flight: int) -> None:
        """Keeps so many of the requests in flight."""
        for request in itertools.islice(requests, in_flight):
            self.send(request, self.now(), requests)

    async def result(self) -> Result:
        """What became of all, once all have ended."""
        if self.in_flight:
            await self.idle.wait()
        self.connection.close()
        scheduled, sent, finished, codes, retry_told = zip(*self.ends, strict=True) if self.ends else [()] * 5
        return Result(
            np.array(scheduled, float),
            np.array(sent, float),
            np.array(finished, float),
            np.array(codes, str),
            np.array(retry_told, bool),
        )


def run_closed(calls: Calls, in_flight: int, seconds: float) -> Result:
    """In the load's process."""
    return uvloop.run(closed(calls, in_flight, seconds))


def run_open(calls: Calls, arrivals: Seconds) -> Result:
    """In the load's process."""
    return uvloop.run(open_(calls, arrivals))


def run_each_once(calls: Calls, in_flight: int) -> Result:
    """In the load's process."""
    return uvloop.run(each_once(calls, in_flight))


async def each_once(calls: Calls, in_flight: int) -> Result:
    sender = await sender_to(calls)
    sender.send_all(iter(calls.requests), in_flight)
    return await sender.result()


async def closed(calls: Calls, in_flight: int, seconds: float) -> Result:
    sender = await sender_to(calls)
    sender.send_all(itertools.takewhile(lambda _: sender.now() < seconds, itertools.cycle(calls.requests)), in_flight)
    return await sender.result()


async def open_(calls: Calls, arrivals: Seconds) -> Result:
    sender = await sender_to(calls)
    for scheduled, request in zip(arrivals.tolist(), itertools.cycle(calls.requests), strict=False):
        await asyncio.sleep(max(0.0, scheduled - sender.now()))
        sender.send(request, scheduled)
    return await sender.result()


async def sender_to(calls: Calls) -> Sender:
    return Sender(await Connection.connect(calls.address, calls.method, calls.timeout))
