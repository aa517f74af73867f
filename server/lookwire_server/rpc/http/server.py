"""The HTTP server, on the event loop of the process."""

import asyncio
import logging
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import uvicorn

from lookwire_server.metrics import Metrics
from lookwire_server.rpc.http.app import Api
from lookwire_server.rpc.http.bodies import Bodies
from lookwire_server.rpc.http.connection import Connection
from lookwire_server.rpc.http.threads import Threads

FAREWELL_SECONDS = 1.0


class HttpServer:
    """Answers HTTP on `address`:`port`, 0 for a free port, by the methods of a V2 servicer.

    Bodies may have up to `max_bytes`, all that are in hand up to `max_inflight_bytes`; beyond `max_connections`, requests
    are answered with 503. `on_failure` is called on the loop, with the reason, if the server ends without being stopped.
    """

    port: int

    def __init__(
        self,
        servicer: Any,
        metrics: Metrics,
        on_failure: Callable[[str], None],
        *,
        address: str,
        port: int,
        max_bytes: int,
        max_inflight_bytes: int,
        max_connections: int,
    ) -> None:
        self._threads = Threads()
        bodies = Bodies(max_bytes, max_inflight_bytes, self._threads)
        self._config = uvicorn.Config(
            Api(servicer, bodies, self._threads, metrics).app,
            http=Connection,
            lifespan="off",
            log_config=None,
            log_level=logging.ERROR,  # a malformed request is its sender's affair, and not worth a line
            access_log=False,
            server_header=False,
            ws="none",
            limit_concurrency=max_connections,
        )
        self._server = OnThisLoop(self._config)
        self._on_failure = on_failure
        self._address = address
        self._wanted_port = port
        self._listening: socket.socket | None = None
        self._serving: asyncio.Task[None] | None = None
        self._stopping = False

    async def start(self) -> None:
        """Takes requests; raises OSError if the address and port cannot be had."""
        self._listening = listen(self._address, self._wanted_port)
        self.port = self._listening.getsockname()[1]
        self._serving = asyncio.create_task(self._server.serve(sockets=[self._listening]), name="http")
        self._serving.add_done_callback(self._ended)

    def _ended(self, serving: asyncio.Task[None]) -> None:
        if not self._stopping:
            self._on_failure(f"HTTP: {'cancelled' if serving.cancelled() else repr(serving.exception())}")

    async def stop(self, timeout: float) -> None:
        """Refuses new connections, and waits for the requests in flight, at most `timeout` seconds; the rest get a 503."""
        failed = self._serving is not None and self._serving.done() and not self._stopping
        self._stopping = True
        self._config.timeout_graceful_shutdown = timeout  # type: ignore[assignment]  # seconds; fractions do as well
        self._server.should_exit = True
        if self._serving is not None:
            await asyncio.wait((self._serving,))
        if failed and self._server.started:
            await self._server.shutdown()
        connections = cast("set[Connection]", self._server.server_state.connections)
        for connection in list(connections):
            if connection.flow.write_paused:  # by a client that does not read, or too slowly
                connection.transport.abort()
        if answering := self._server.server_state.tasks:
            # They were cancelled, and say so to their clients.
            await asyncio.wait(answering, timeout=FAREWELL_SECONDS)
        for connection in list(connections):
            connection.transport.abort()
        if self._listening is not None:
            self._listening.close()
        self._threads.close()


class OnThisLoop(uvicorn.Server):
    """A uvicorn server that is a part of a program: the program's signals are not its business."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def listen(address: str, port: int) -> socket.socket:
    """A listening socket of an address, IPv4 or IPv6, or a host's name."""
    family, _, _, _, place = socket.getaddrinfo(address, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    return socket.create_server(place[:2], family=family, backlog=1024)
