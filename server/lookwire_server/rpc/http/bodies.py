"""Request and response bodies: bounded, and compressed where the other side asks for it."""

import asyncio
import gzip
import zlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from lookwire_server.errors import DeadlineExceeded, InvalidArgument, Overloaded
from lookwire_server.rpc.http.threads import Threads

SILENCE_SECONDS = 60.0
DROP_SECONDS = 10.0
# zlib's window bits for both encodings: "deflate" is the zlib format.
WINDOW_BITS = {"gzip": 31, "deflate": 15}
# Levels above the first cost several times the time and save little of floats.
LEVEL = 1


class Bodies:
    """Reads request bodies: each up to `max_bytes`, all that are in hand up to `max_inflight_bytes`."""

    def __init__(self, max_bytes: int, max_inflight_bytes: int, threads: Threads) -> None:
        self._max_bytes = max_bytes
        self._max_inflight_bytes = max_inflight_bytes
        self._threads = threads
        self._held = 0

    @asynccontextmanager
    async def read(self, request: Request) -> AsyncIterator[bytes]:
        """The body, decompressed; it counts as in flight until the context ends.

        Raises InvalidArgument for one that is too large or badly compressed, Overloaded where there is no room for it
        beside the others, and DeadlineExceeded if none of it arrives for a minute.
        """
        held = 0

        def hold(size: int) -> None:
            nonlocal held
            held += size
            self._held += size
            if self._held > max(self._max_inflight_bytes, held):
                raise Overloaded(
                    f"request bodies of {self._held - held} bytes are in flight, at most {self._max_inflight_bytes} may be; "
                    "try again later"
                )

        try:
            chunks = []
            stream = arriving(request)
            try:
                # The parser has checked that it fits 64 bits; before these, there may be any number of zeros.
                self._check_size(int(request.headers.get("content-length", "0")[-20:]))
                async for chunk in stream:
                    hold(len(chunk))
                    self._check_size(held)
                    chunks.append(chunk)
            except (InvalidArgument, Overloaded):
                chunks.clear()
                request.state.rest = stream
                raise
            body = chunks[0] if len(chunks) == 1 else b"".join(chunks)
            encoding = request.headers.get("content-encoding", "identity")
            if encoding != "identity":
                body = await self._threads.run(len(body), self._decompressed, body, encoding)
                hold(len(body))
            yield body
        finally:
            self._held -= held

    def _check_size(self, size: int) -> None:
        if size > self._max_bytes:
            raise InvalidArgument(
                f"Request of {size} bytes exceeds the maximum allowed input size of {self._max_bytes} bytes. "
                "Use --http-max-input-size to increase the limit."
            )

    def _decompressed(self, body: bytes, encoding: str) -> bytes:
        if encoding not in WINDOW_BITS:
            raise InvalidArgument(f"Content-Encoding must be gzip, deflate or identity, got '{encoding}'")
        stream = zlib.decompressobj(WINDOW_BITS[encoding])
        try:
            plain = stream.decompress(body, self._max_bytes + 1)
        except zlib.error as error:
            raise InvalidArgument(f"the body is not in {encoding} format: {error}") from None
        if len(plain) > self._max_bytes:
            raise InvalidArgument(
                f"Request exceeds the maximum allowed input size of {self._max_bytes} bytes once decompressed. "
                "Use --http-max-input-size to increase the limit."
            )
        if not stream.eof:
            raise InvalidArgument(f"the body ends before its {encoding} data do")
        if stream.unused_data:
            raise InvalidArgument(f"{len(stream.unused_data)} bytes follow the {encoding} data of the body")
        return plain


async def arriving(request: Request) -> AsyncIterator[bytes]:
    """The body's chunks as they arrive."""
    more = True
    while more:
        try:
            async with asyncio.timeout(SILENCE_SECONDS):
                message = await request.receive()
        except TimeoutError:
            raise DeadlineExceeded(f"nothing of the request's body arrived for {SILENCE_SECONDS:g} seconds") from None
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        more = message.get("more_body", False)
        yield message.get("body", b"")


class Refusal(Response):
    """Answers at once, then takes the rest of the body for a while: a client that is still sending would not read the answer."""

    def __init__(self, answer: Response, rest: AsyncIterator[bytes]) -> None:
        super().__init__(answer.body, answer.status_code, dict(answer.headers) | {"connection": "close"})
        self._rest = rest

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        await send({"type": "http.response.body", "body": self.body, "more_body": True})
        with suppress(TimeoutError, ClientDisconnect, DeadlineExceeded):
            async with asyncio.timeout(DROP_SECONDS):
                async for _ in self._rest:
                    pass
        await send({"type": "http.response.body"})


def accepted(header: str) -> str:
    """The encoding to answer in, gzip, deflate or identity, by an Accept-Encoding header."""
    weights = {}
    for item in header.lower().split(","):
        name, _, parameters = item.partition(";")
        _, _, weight = parameters.partition("q=")
        try:
            weights[name.strip()] = float(weight or 1)
        except ValueError:
            continue
    offered = [name for name in WINDOW_BITS if weights.get(name, 0) > 0]
    return max(offered, key=lambda name: weights[name], default="identity")


def compressed(body: bytes, encoding: str) -> bytes:
    return gzip.compress(body, LEVEL) if encoding == "gzip" else zlib.compress(body, LEVEL)
