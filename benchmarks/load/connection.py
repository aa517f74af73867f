"""Unary gRPC calls over one HTTP/2 connection, at less than half of the processor time that grpc.aio's client takes.

The generator works on the cores that the server has: what it takes, the server lacks. It knows of RFC 9113 and of gRPC over
HTTP/2 what a client needs of them: flow control both ways, settings, pings, resets. Header blocks are hpack's; the server is
told to keep no table of headers, so that equal blocks mean the same and are decoded once.
"""

import asyncio
import base64
import struct
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Self, cast

import grpc
from hpack import Decoder, Encoder

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
MAX_WINDOW = 2**31 - 1
FRAME_BYTES = 16_384
"""The longest frame that every peer takes."""
FRAME_HEAD = 9
TABLE_SIZE, PUSH, STREAMS, WINDOW = 1, 2, 3, 4
"""Numbers of settings."""
CANCEL = 8
"""The error code of a call that its caller left."""
MAX_BLOCKS = 4096
RETRY_INFO = b"google.rpc.RetryInfo"
CODES = {str(code.value[0]): code.name for code in grpc.StatusCode}

Done = Callable[[str, bool], None]


class Frame:
    """The types of frames; plain numbers, for members of an enum take longer to compare than a frame may take."""

    DATA = 0
    HEADERS = 1
    RST_STREAM = 3
    SETTINGS = 4
    PING = 6
    GOAWAY = 7
    WINDOW_UPDATE = 8
    CONTINUATION = 9


class Flag:
    """What a frame's flags say, by its type: the same bit ends a stream and acknowledges."""

    END_STREAM = 1
    ACK = 1
    END_HEADERS = 4
    PADDED = 8


@dataclass(slots=True)
class Call:
    """A call in flight. `window` is how much its peer takes still, and `unsent` what of the request waits for that."""

    done: Done
    window: int
    unsent: memoryview
    timer: asyncio.TimerHandle | None = None
    block: bytearray = field(default_factory=bytearray)
    answered: bool = False


@dataclass(frozen=True, slots=True)
class Status:
    """The end of a call: the name of its code, and whether a RetryInfo came along."""

    code: str
    retry_told: bool


class Connection(asyncio.Protocol):
    """Calls of one method. Made by `connect`, used on its loop; `close` ends it."""

    def __init__(self, address: str, method: str, timeout: float) -> None:
        headers = [
            (":method", "POST"),
            (":scheme", "http"),
            (":path", method),
            (":authority", address),
            ("te", "trailers"),
            ("content-type", "application/grpc"),
            ("grpc-timeout", f"{round(timeout * 1e3)}m"),
        ]
        encoder = Encoder()
        self._first_block = encoder.encode(headers)
        self._block = encoder.encode(headers)  # refers to what the first has put into the server's table
        self._timeout = timeout
        self._decoder = Decoder()
        self._statuses: dict[bytes, Status | None] = {}
        self._loop = asyncio.get_running_loop()
        self._calls: dict[int, Call] = {}
        self._stalled: deque[int] = deque()
        self._next = 1
        self._window = 65_535
        self._call_window = 65_535
        self._max_calls = MAX_WINDOW
        self._received = 0
        self._buffer = bytearray()
        self._ready = self._loop.create_future()

    @classmethod
    async def connect(cls, address: str, method: str, timeout: float) -> Self:
        """A connection to "host:port"; each call has `timeout` seconds. Raises OSError if nobody listens there."""
        host, _, port = address.rpartition(":")
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(lambda: cls(address, method, timeout), host, int(port))
        await connection._ready
        return connection

    def call(self, request: bytes, done: Done) -> None:
        """Sends a request; `done` is called once, with the name of its status and whether it says when to try again."""
        if len(self._calls) >= self._max_calls:
            raise RuntimeError(f"the server takes {self._max_calls} calls at once on a connection")
        number, self._next = self._next, self._next + 2
        body = b"\0" + len(request).to_bytes(4, "big") + request
        block = self._first_block if number == 1 else self._block
        head = frame(Frame.HEADERS, Flag.END_HEADERS, number, block)
        call = self._calls[number] = Call(done, self._call_window, memoryview(body))
        call.timer = self._loop.call_later(self._timeout, self._expired, number)
        if len(body) <= min(FRAME_BYTES, self._window, call.window) and not self._stalled:
            self._spend(call, len(body))
            self._transport.write(head + frame(Frame.DATA, Flag.END_STREAM, number, body))
            return
        self._transport.write(head)
        self._stalled.append(number)
        self._send_stalled()

    def close(self) -> None:
        """Ends the connection; calls in flight end as UNAVAILABLE."""
        self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # that of uvloop has another base
        settings = b"".join(struct.pack("!HI", *each) for each in ((TABLE_SIZE, 0), (PUSH, 0), (WINDOW, MAX_WINDOW)))
        more = struct.pack("!I", MAX_WINDOW - 65_535)
        self._transport.write(PREFACE + frame(Frame.SETTINGS, 0, 0, settings) + frame(Frame.WINDOW_UPDATE, 0, 0, more))

    def connection_lost(self, error: Exception | None) -> None:
        if not self._ready.done():
            self._ready.set_exception(error or ConnectionResetError("the server closed the connection"))
        for number in list(self._calls):
            self._end(number, Status("UNAVAILABLE", retry_told=False))

    def data_received(self, data: bytes) -> None:
        buffer = self._buffer
        buffer += data
        start, end = 0, len(buffer)
        while end - start >= FRAME_HEAD:
            stop = start + FRAME_HEAD + int.from_bytes(buffer[start : start + 3], "big")
            if stop > end:
                break
            number = int.from_bytes(buffer[start + 5 : start + 9], "big") & MAX_WINDOW
            self._take(buffer[start + 3], buffer[start + 4], number, bytes(buffer[start + FRAME_HEAD : stop]))
            start = stop
        del buffer[:start]

    def _take(self, kind: int, flags: int, number: int, payload: bytes) -> None:
        match kind:
            case Frame.DATA:
                self._take_data(number, len(payload))
            case Frame.HEADERS | Frame.CONTINUATION:
                if flags & Flag.PADDED:
                    raise NotImplementedError("padded headers")
                self._take_headers(number, flags, payload)
            case Frame.SETTINGS if not flags & Flag.ACK:
                self._take_settings(payload)
            case Frame.PING if not flags & Flag.ACK:
                self._transport.write(frame(Frame.PING, Flag.ACK, 0, payload))
            case Frame.WINDOW_UPDATE:
                self._widen(number, int.from_bytes(payload, "big"))
            case Frame.RST_STREAM:
                code = "CANCELLED" if int.from_bytes(payload, "big") == CANCEL else "UNAVAILABLE"
                self._end(number, Status(code, retry_told=False))
            case Frame.GOAWAY:
                self._transport.close()

    def _take_data(self, number: int, size: int) -> None:
        if call := self._calls.get(number):
            call.answered = True
        self._received += size
        if self._received > MAX_WINDOW // 4:
            self._transport.write(frame(Frame.WINDOW_UPDATE, 0, 0, struct.pack("!I", self._received)))
            self._received = 0

    def _take_headers(self, number: int, flags: int, payload: bytes) -> None:
        call = self._calls.get(number)
        block = payload
        if call and (call.block or not flags & Flag.END_HEADERS):
            call.block += payload
            block = bytes(call.block)
        if not flags & Flag.END_HEADERS:
            return
        if call:
            call.block.clear()
        status = self._status(block)
        if status is None or call is None:
            return
        if status.code == "OK" and not call.answered:
            status = Status("INTERNAL", retry_told=False)
        self._end(number, status)

    def _status(self, block: bytes) -> Status | None:
        """What the headers of an answer say of its end; None for those before its message."""
        if block in self._statuses:
            return self._statuses[block]
        headers = {str(name): str(value) for name, value in self._decoder.decode(block)}
        status = None
        if "grpc-status" in headers:
            details = headers.get("grpc-status-details-bin", "")
            told = RETRY_INFO in base64.b64decode(details + "=" * (-len(details) % 4))
            status = Status(CODES[headers["grpc-status"]], told)
        if len(self._statuses) < MAX_BLOCKS:
            self._statuses[block] = status
        return status

    def _take_settings(self, payload: bytes) -> None:
        for setting, value in struct.iter_unpack("!HI", payload):
            if setting == WINDOW:
                for call in self._calls.values():
                    call.window += value - self._call_window
                self._call_window = value
            elif setting == STREAMS:
                self._max_calls = value
        self._transport.write(frame(Frame.SETTINGS, Flag.ACK, 0, b""))
        if not self._ready.done():
            self._ready.set_result(None)
        self._send_stalled()

    def _widen(self, number: int, size: int) -> None:
        if number == 0:
            self._window += size
        elif call := self._calls.get(number):
            call.window += size
        self._send_stalled()

    def _send_stalled(self) -> None:
        """Sends of requests that wait for the server to take more what it takes now, those first that came first."""
        for _ in range(len(self._stalled)):
            number = self._stalled.popleft()
            if call := self._calls.get(number):
                self._send(number, call)
                if call.unsent:
                    self._stalled.append(number)

    def _send(self, number: int, call: Call) -> None:
        while call.unsent and (size := min(len(call.unsent), FRAME_BYTES, self._window, call.window)) > 0:
            part = bytes(call.unsent[:size])
            self._spend(call, size)
            self._transport.write(frame(Frame.DATA, 0 if call.unsent else Flag.END_STREAM, number, part))

    def _spend(self, call: Call, size: int) -> None:
        call.unsent = call.unsent[size:]
        call.window -= size
        self._window -= size

    def _expired(self, number: int) -> None:
        self._transport.write(frame(Frame.RST_STREAM, 0, number, struct.pack("!I", CANCEL)))
        self._end(number, Status("DEADLINE_EXCEEDED", retry_told=False))

    def _end(self, number: int, status: Status) -> None:
        call = self._calls.pop(number, None)
        if call is not None:
            if call.timer:
                call.timer.cancel()
            # Not in the middle of what was received: the caller may send the next request.
            self._loop.call_soon(partial(call.done, status.code, status.retry_told))


def frame(kind: int, flags: int, number: int, payload: bytes) -> bytes:
    """A frame of a stream; 0 is the connection."""
    return len(payload).to_bytes(3, "big") + bytes((kind, flags)) + number.to_bytes(4, "big") + payload
