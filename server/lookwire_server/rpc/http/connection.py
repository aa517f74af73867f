"""A connection over HTTP, which is closed where its client holds it for nothing."""

from asyncio import BaseTransport, TimerHandle
from typing import Any, cast

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEADER_BYTES = 1 << 16
HEADER_SECONDS = 30.0
UNREAD_SECONDS = 60.0
CHECK_SECONDS = 5.0


class Connection(HttpToolsProtocol):
    """uvicorn's connection with limits: on the size of a request's line and headers, on the time in which they must be
    complete once there is nothing else to do, and on the time in which a client reads nothing of its answer.
    """

    _timer: TimerHandle

    def connection_made(self, transport: BaseTransport) -> None:
        super().connection_made(cast(Any, transport))
        self._pending = 0  # bytes that have come since the last headers or part of a body were complete
        self._unsent = 0
        self._unsent_since = self.loop.time()
        self._idle_since: float | None = self.loop.time()  # None while a request is in hand
        self._timer = self.loop.call_later(CHECK_SECONDS, self._check)

    def connection_lost(self, exc: Exception | None) -> None:
        self._timer.cancel()
        super().connection_lost(exc)

    def _check(self) -> None:
        now = self.loop.time()
        unsent = self.transport.get_write_buffer_size()
        if not unsent or unsent < self._unsent:
            self._unsent_since = now
        self._unsent = unsent
        if unsent and self._idle_since is not None:
            self._idle_since = now  # it is still reading the last answer
        silent = self._idle_since is not None and now - self._idle_since > HEADER_SECONDS
        if silent or now - self._unsent_since > UNREAD_SECONDS:
            self.transport.abort()
        else:
            self._timer = self.loop.call_later(CHECK_SECONDS, self._check)

    def data_received(self, data: bytes) -> None:
        self._pending += len(data)
        super().data_received(data)
        if self._pending > HEADER_BYTES and not self.transport.is_closing():
            self.send_400_response(f"The headers exceed {HEADER_BYTES} bytes.")

    def on_headers_complete(self) -> None:
        self._pending = 0
        if len(self.url) + sum(len(name) + len(value) for name, value in self.headers) > HEADER_BYTES:
            raise ValueError("headers too large")  # which the parser makes an invalid request
        self._idle_since = None
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._pending = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._pending = 0
        super().on_message_complete()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.cycle.response_complete:  # else the next request has come already
            self._idle_since = self.loop.time()
