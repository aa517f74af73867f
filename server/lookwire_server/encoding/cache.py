"""What spares work: values that are kept, and the work in hand that equal requests share."""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Collection, Hashable
from types import TracebackType
from typing import Generic, Self, TypeVar

from lookwire_server.errors import DeadlineExceeded
from lookwire_server.models.batcher import late

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")
Result = TypeVar("Result")


class LruCache(Generic[Key, Value]):
    """Keeps values up to `max_bytes`, 0 for none; the least recently used are dropped first. Used on the event loop only."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.nbytes = 0
        self._entries: OrderedDict[Key, tuple[Value, int]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, key: Key) -> bool:
        return key in self._entries

    def get(self, key: Key) -> Value | None:
        """The value that is kept, which is then the last one used."""
        entry = self._entries.get(key)
        if entry is None:
            return None
        self._entries.move_to_end(key)
        return entry[0]

    def put(self, key: Key, value: Value, nbytes: int, *, first_to_go: bool = False) -> None:
        """Keeps a value that takes `nbytes` with its key, unless one is kept already.

        One that is `first_to_go` takes free room only: it is dropped before all that are kept now.
        """
        if key in self._entries:
            return
        self._entries[key] = value, nbytes
        self.nbytes += nbytes
        if first_to_go:
            self._entries.move_to_end(key, last=False)
        while self.nbytes > self.max_bytes:
            _, (_, dropped) = self._entries.popitem(last=False)
            self.nbytes -= dropped


class Flight(Generic[Key, Result]):
    """Work that one caller does, `with flight`, while others that want the same wait for it; it stands in `table` under its keys.

    The work is that caller's own: it ends with that caller's deadline or cancellation. If others wait, it is then for one of
    them to begin anew, so that nothing is done that nobody waits for. Any other error reaches all. On the event loop only.
    """

    def __init__(self, table: "dict[Key, Flight[Key, Result]]", keys: Collection[Key]) -> None:
        self._table = table
        self._keys = keys
        self._ended = asyncio.Event()
        self._result: Result | None = None
        self._error: Exception | None = None

    def __enter__(self) -> Self:
        for key in self._keys:
            self._table[key] = self
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for key in self._keys:
            del self._table[key]
        if isinstance(error, Exception) and not isinstance(error, DeadlineExceeded):
            self._error = error
        self._ended.set()

    def land(self, result: Result) -> None:
        """Says what the work has made; the others have it when the flight ends."""
        self._result = result

    async def wait(self, deadline: float | None) -> Result | None:
        """What the work has made, or None if the caller that did it has left it.

        Raises what the work raised, and DeadlineExceeded at the waiting caller's own deadline, in seconds of `time.monotonic`.
        """
        left = None if deadline is None else late(max(0.0, deadline - time.monotonic()))
        try:
            async with asyncio.timeout(left):
                await self._ended.wait()
        except TimeoutError:
            raise DeadlineExceeded("the deadline passed before the vectors were made") from None
        if self._error is not None:
            raise self._error
        return self._result
