"""How an import is carried out: over one stream, and if that breaks off over another, from the last acknowledged chunk."""

import asyncio
import queue
import random
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import grpc
from google.rpc.status_pb2 import Status

from lookwire import errors, retry
from lookwire.calls.imports import Import, broken
from lookwire.types import Imported
from lookwire.v1 import item_service_pb2 as pb

# The least seconds before a stream that found no server is opened again, and a share of them on top, at random, so that
# callers who lost their server together do not come back together.
_RESUME = 0.25
_JITTER = 0.5
# The seconds that the server has to end a stream when everything is acknowledged.
_GRACE = 1.0
# What grpc.aio says in the place of the server's own status if it was sending when the stream ended. The next stream, which
# begins with one chunk only, has that status.
_SEND_FAILED = "Internal error from Core"

Progress = Callable[[int], None]


class Patience:
    """The seconds that an import may still wait for its next acknowledgement; reading the items does not count."""

    def __init__(self, timeout: float) -> None:
        self._timeout = timeout
        self.left = timeout
        self.interrupted_by: errors.LookwireError | None = None

    @contextmanager
    def used(self) -> Iterator[None]:
        """Counts the time that the block takes."""
        started = time.monotonic()
        try:
            yield
        finally:
            self.left -= time.monotonic() - started

    def renew(self) -> None:
        self.left = self._timeout
        self.interrupted_by = None

    def exhausted(self) -> errors.LookwireError:
        """Returns the error for a wait that was too long: what broke off the stream before, if anything did."""
        if self.interrupted_by is not None:
            return self.interrupted_by
        message = f"no chunk of the import was acknowledged within {self._timeout:g} s"
        return _failure(grpc.StatusCode.DEADLINE_EXCEEDED, message)


def run(method: Any, state: Import, progress: Progress | None, timeout: float, closed: threading.Event) -> Imported:
    """Sends all chunks, and returns what was written; `method` is of a channel for threads."""
    patience = Patience(timeout)
    while True:
        stream = Stream(method)
        try:
            _exchange(stream, state, progress, patience)
            return state.result
        except errors.LookwireError as failure:
            pause = _pause(failure, patience.left)
            if pause is None:
                failure.acknowledged = state.result.count
                raise
            patience.interrupted_by = failure
            with patience.used():
                if closed.wait(pause):
                    raise
        finally:
            stream.close()


def _exchange(stream: "Stream", state: Import, progress: Progress | None, patience: Patience) -> None:
    """Carries an import out on one stream; one that goes on begins with one chunk, and sends more when that is acknowledged."""
    again = state.unacknowledged
    for request in again[:1]:
        stream.send(request)
    while True:
        while not again and not state.full and (chunk := state.next()) is not None:
            stream.send(chunk)
        if state.finished:
            stream.finish()
            return
        with patience.used():
            response = stream.answer(patience)
        _acknowledge(state, response, progress, patience)
        for request in again[1:]:
            stream.send(request)
        again = ()


def _acknowledge(
    state: Import, response: pb.ImportItemsResponse, progress: Progress | None, patience: Patience
) -> None:
    state.acknowledge(response)
    patience.renew()
    if progress:
        progress(state.result.count + state.result.failed)


class Stream:
    """A stream for threads that is written without waiting, and read with a limit."""

    def __init__(self, method: Any) -> None:
        self._requests: queue.SimpleQueue[pb.ImportItemsRequest | None] = queue.SimpleQueue()
        self._answers: queue.SimpleQueue[pb.ImportItemsResponse | errors.LookwireError] = queue.SimpleQueue()
        self._call = method(iter(self._requests.get, None))
        self._receiver = threading.Thread(target=self._receive, name="lookwire-import", daemon=True)
        self._receiver.start()

    def send(self, request: pb.ImportItemsRequest) -> None:
        self._requests.put(request)

    def answer(self, patience: Patience) -> pb.ImportItemsResponse:
        """Returns the next response; raises the error that ended the stream, or DeadlineExceeded."""
        try:
            answer = self._answers.get(timeout=max(0.0, patience.left))
        except queue.Empty:
            raise patience.exhausted() from None
        if isinstance(answer, errors.LookwireError):
            raise answer
        return answer

    def finish(self) -> None:
        """Tells the server that there is no more, and gives it time to end the stream."""
        self._requests.put(None)
        self._receiver.join(_GRACE)

    def close(self) -> None:
        self._requests.put(None)
        self._call.cancel()
        self._receiver.join()

    def _receive(self) -> None:
        try:
            for response in self._call:
                self._answers.put(response)
            self._answers.put(broken("the server ended the import before everything was acknowledged"))
        except grpc.RpcError as error:
            self._answers.put(errors.from_rpc(error))


async def run_async(
    method: Any, state: Import, progress: Progress | None, timeout: float, closed: Callable[[], bool]
) -> Imported:
    """Is `run` for a channel of asyncio."""
    patience = Patience(timeout)
    while True:
        stream = AsyncStream(method)
        try:
            await _exchange_async(stream, state, progress, patience)
            return state.result
        except errors.LookwireError as failure:
            pause = _pause(failure, patience.left)
            if pause is None:
                failure.acknowledged = state.result.count
                raise
            patience.interrupted_by = failure
            with patience.used():
                await asyncio.sleep(pause)
            if closed():
                raise
        finally:
            stream.close()


async def _exchange_async(stream: "AsyncStream", state: Import, progress: Progress | None, patience: Patience) -> None:
    """Is `_exchange` for asyncio."""
    again = state.unacknowledged
    for request in again[:1]:
        stream.send(request)
    while True:
        while not again and not state.full and (chunk := state.next()) is not None:
            stream.send(chunk)
        if state.finished:
            await stream.finish()
            return
        with patience.used():
            response = await stream.answer(patience)
        _acknowledge(state, response, progress, patience)
        for request in again[1:]:
            stream.send(request)
        again = ()


class AsyncStream:
    """A stream of asyncio that is written without waiting, and read with a limit."""

    def __init__(self, method: Any) -> None:
        self._requests: asyncio.Queue[pb.ImportItemsRequest | None] = asyncio.Queue()  # bounded by the window
        self._call = method(self._feed())

    def send(self, request: pb.ImportItemsRequest) -> None:
        self._requests.put_nowait(request)

    async def answer(self, patience: Patience) -> pb.ImportItemsResponse:
        """See `Stream.answer`."""
        try:
            async with asyncio.timeout(max(0.0, patience.left)):
                response = await self._call.read()
        except TimeoutError:
            raise patience.exhausted() from None
        except grpc.aio.AioRpcError as error:
            if error.details() == _SEND_FAILED:
                raise _failure(grpc.StatusCode.UNAVAILABLE, "the stream ended while a chunk was sent") from error
            raise errors.from_rpc(error) from error
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            raise _failure(grpc.StatusCode.CANCELLED, "the client was closed during the import") from None
        if response is grpc.aio.EOF:
            raise broken("the server ended the import before everything was acknowledged")
        return response  # type: ignore[no-any-return]  # the stubs know no messages

    async def finish(self) -> None:
        """See `Stream.finish`."""
        self._requests.put_nowait(None)
        with suppress(TimeoutError, grpc.RpcError):
            async with asyncio.timeout(_GRACE):
                await self._call.read()

    def close(self) -> None:
        self._requests.put_nowait(None)
        self._call.cancel()

    async def _feed(self) -> AsyncIterator[pb.ImportItemsRequest]:
        while (request := await self._requests.get()) is not None:
            yield request


def _pause(error: errors.LookwireError, seconds_left: float) -> float | None:
    """Returns how many seconds to wait before the import goes on; None if the error ends it."""
    if not isinstance(error, errors.Unavailable):
        return retry.pause(error, seconds_left)
    seconds = _RESUME * random.uniform(1, 1 + _JITTER)  # noqa: S311 - nothing secret
    return seconds if seconds < seconds_left else None


def _failure(code: grpc.StatusCode, message: str) -> errors.LookwireError:
    return errors.from_status(Status(code=code.value[0], message=message))
