"""The HTTP endpoint that Prometheus scrapes: `GET /metrics`."""

import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from socket import socket
from socketserver import ThreadingTCPServer
from typing import Any

import structlog
from prometheus_client import CollectorRegistry, generate_latest

from lookwire_server.errors import Unavailable

log = structlog.get_logger()

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
PATH = "/metrics"
# A scraper is one or two programs; whoever holds a connection without asking loses it.
MAX_CONNECTIONS = 16
PATIENCE_SECONDS = 10.0


class MetricsServer:
    """Answers scrapes from threads of its own with the registry's metrics, followed by the lines of `more`.

    It serves from the start; raises Unavailable if it cannot listen. `address` is where it listens, "host:port".
    """

    def __init__(self, address: str, port: int, registry: CollectorRegistry, more: Callable[[], str]) -> None:
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            timeout = PATIENCE_SECONDS

            def do_GET(self) -> None:
                if self.path.partition("?")[0] != PATH:
                    self.send_error(404, explain=f"metrics are at {PATH}")
                    return
                try:
                    body = generate_latest(registry) + more().encode()
                except Exception:
                    log.exception("a scrape failed")
                    self.send_error(500)
                    return
                self.send_response(200)
                self.send_header("Content-Type", CONTENT_TYPE)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:
                """No line a scrape."""

        try:
            self._server = Listener((address, port), Handler)
        except OSError as error:
            raise Unavailable(
                f"cannot listen on {address}:{port} for metrics: {error}; give a free port with --metrics-port, or none "
                "with --allow-metrics false"
            ) from error
        self.address = f"{address}:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.1,), name="metrics", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Takes no more scrapes; returns when the port is free."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


class Listener(ThreadingTCPServer):
    """A thread a connection, and a bounded number of them."""

    allow_reuse_address = True  # connections of a server that has just ended do not hold its port
    daemon_threads = True
    block_on_close = False

    def __init__(self, address: tuple[str, int], handler: type[BaseHTTPRequestHandler]) -> None:
        self._free = threading.BoundedSemaphore(MAX_CONNECTIONS)
        super().__init__(address, handler)

    def process_request(self, request: "socket | tuple[bytes, socket]", client_address: Any) -> None:
        if not self._free.acquire(blocking=False):
            self.shutdown_request(request)
            return
        super().process_request(request, client_address)

    def process_request_thread(self, request: "socket | tuple[bytes, socket]", client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def handle_error(self, request: "socket | tuple[bytes, socket]", client_address: Any) -> None:
        """A scraper that went away is no error of the server's; what fails in a scrape is logged where it fails."""
