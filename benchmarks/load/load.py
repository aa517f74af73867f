"""The process that sends requests."""

import asyncio
import gc
import itertools
import multiprocessing
import time
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

import grpc
import numpy as np
import uvloop

from benchmarks.load.calls import Calls
from benchmarks.load.result import Result, Seconds

STATUS_DETAILS = "grpc-status-details-bin"
RETRY_INFO = b"google.rpc.RetryInfo"
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
    """Sends requests over one channel and keeps what became of each; its clock starts when it is made."""

    method: "grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]"
    timeout: float
    began: float = field(default_factory=time.monotonic)
    ends: list[tuple[float, float, float, str, bool]] = field(default_factory=list)

    def now(self) -> float:
        return time.monotonic() - self.began

    async def send(self, request: bytes, scheduled: float) -> None:
        """Sends a request that was due at `scheduled`."""
        sent = self.now()
        code, retry_told = "OK", False
        try:
            await self.method(request, timeout=self.timeout)
        except grpc.aio.AioRpcError as error:
            code, retry_told = error.code().name, tells_retry(error)
        self.ends.append((scheduled, sent, self.now(), code, retry_told))

    def result(self) -> Result:
        scheduled, sent, finished, codes, retry_told = zip(*self.ends, strict=True) if self.ends else [()] * 5
        return Result(
            np.array(scheduled, float),
            np.array(sent, float),
            np.array(finished, float),
            np.array(codes, str),
            np.array(retry_told, bool),
        )


def tells_retry(error: grpc.aio.AioRpcError) -> bool:
    """Whether a refusal says when to try again."""
    return any(
        key == STATUS_DETAILS and isinstance(value, bytes) and RETRY_INFO in value
        for key, value in error.trailing_metadata()
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
    requests = iter(calls.requests)
    async with channel_to(calls.address) as channel:
        sender = Sender(channel.unary_unary(calls.method), calls.timeout)

        async def caller() -> None:
            for request in requests:
                await sender.send(request, sender.now())

        async with asyncio.TaskGroup() as group:
            for _ in range(in_flight):
                group.create_task(caller())
    return sender.result()


async def closed(calls: Calls, in_flight: int, seconds: float) -> Result:
    requests = itertools.cycle(calls.requests)
    async with channel_to(calls.address) as channel:
        sender = Sender(channel.unary_unary(calls.method), calls.timeout)

        async def caller(requests: Iterator[bytes]) -> None:
            while (now := sender.now()) < seconds:
                await sender.send(next(requests), now)

        async with asyncio.TaskGroup() as group:
            for _ in range(in_flight):
                group.create_task(caller(requests))
    return sender.result()


async def open_(calls: Calls, arrivals: Seconds) -> Result:
    async with channel_to(calls.address) as channel:
        await channel.channel_ready()
        sender = Sender(channel.unary_unary(calls.method), calls.timeout)
        async with asyncio.TaskGroup() as group:
            for scheduled, request in zip(arrivals.tolist(), itertools.cycle(calls.requests), strict=False):
                await asyncio.sleep(max(0.0, scheduled - sender.now()))
                group.create_task(sender.send(request, scheduled))
    return sender.result()


def channel_to(address: str) -> grpc.aio.Channel:
    """A channel without limits on messages, and without retries: a refusal is a result."""
    return grpc.aio.insecure_channel(
        address,
        [
            ("grpc.enable_retries", 0),
            ("grpc.max_send_message_length", -1),
            ("grpc.max_receive_message_length", -1),
            ("grpc.use_local_subchannel_pool", 1),
        ],
    )
