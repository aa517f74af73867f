"""Connections over HTTP that a client holds without use: they are closed."""

import asyncio
import http.client
import json
import socket
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from lookwire_server.rpc.http import connection, server
from tests.server.test_http_server import MAX_BYTES, request, serving, started, write_identity

GET = b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n"
COUNT = MAX_BYTES // 4 - 100


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    write_identity(root, "floats", ("x", "FP32", -1))
    return root


@pytest.fixture(scope="module")
def port(root: Path) -> Iterator[int]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(connection, "CHECK_SECONDS", 0.05)
        with serving(root, max_connections=4) as port:
            yield port


def echo() -> bytes:
    """A request whose answer is more than the system's buffers take."""
    tensor = {"name": "x", "datatype": "FP32", "shape": [1, COUNT], "parameters": {"binary_data_size": 4 * COUNT}}
    header = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}})
    lengths = f"Inference-Header-Content-Length: {len(header)}\r\nContent-Length: {len(header) + 4 * COUNT}"
    return f"POST /v2/models/floats/infer HTTP/1.1\r\nHost: x\r\n{lengths}\r\n\r\n{header}".encode() + bytes(4 * COUNT)


def dial(port: int) -> socket.socket:
    """A connection with a small buffer for what it receives."""
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.settimeout(10)
    client.connect(("127.0.0.1", port))
    return client


def read(client: socket.socket) -> bytes:
    """What the server sends until it ends the connection, in whichever way."""
    received = b""
    try:
        while part := client.recv(1 << 16):
            received += part
    except ConnectionResetError:
        pass
    return received


@pytest.mark.parametrize("start", [b"", b"GET /v2 HT", GET, GET + b"\r\n" + GET, GET + b"\r\n\r\n"])
def test_a_client_that_does_not_complete_headers_is_closed(
    port: int, monkeypatch: pytest.MonkeyPatch, start: bytes
) -> None:
    """Headers must be complete in time, of the first request and of a later one; then there is room for others again."""
    monkeypatch.setattr(connection, "HEADER_SECONDS", 0.2)
    clients = [dial(port) for _ in range(5)]
    try:
        for client in clients:
            client.sendall(start)
        began = time.monotonic()
        for client in clients:
            read(client)
        assert time.monotonic() - began < 3  # uvicorn's own limit, between requests, is 5
    finally:
        for client in clients:
            client.close()
    assert request(port, "GET", "/v2/health/live")[0] == 200


def test_a_request_in_hand_is_not_silence(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A body may take its time, and so may the reading of the answer, as long as either goes on."""
    monkeypatch.setattr(connection, "HEADER_SECONDS", 0.2)
    monkeypatch.setattr(connection, "UNREAD_SECONDS", 0.5)
    body = echo()
    with dial(port) as client:
        client.sendall(body[: len(body) // 2])
        time.sleep(0.5)
        client.sendall(body[len(body) // 2 :])
        response = http.client.HTTPResponse(client)
        response.begin()
        parts = []
        for _ in range(8):
            time.sleep(0.15)
            parts.append(response.read(1 << 20))
        assert len(b"".join(parts) + response.read()) > 4 * COUNT


@pytest.mark.parametrize(
    "headers",
    [
        [b"X: " + b"y" * connection.HEADER_BYTES + b"\r\n\r\n"],
        [b"X: y\r\n" * 1000] * 100,
        [b"X: ", *[b"y" * 10_000] * 100],
        [b"Transfer-Encoding: chunked\r\n\r\n1\r\n{\r\n0\r\n", *[b"X: y\r\n" * 1000] * 100],
    ],
)
def test_large_headers_are_refused(port: int, headers: list[bytes]) -> None:
    """Headers over the limit end the connection: in one or in many, arriving at once or not, or after the body."""
    with dial(port) as client, suppress(ConnectionError):  # a reset may come before the answer
        client.sendall(GET)
        for part in headers:
            client.sendall(part)
            time.sleep(0.001)
        assert read(client)[:12] in (b"", b"HTTP/1.1 400")
    assert request(port, "GET", "/v2/health/live", X="y" * 60_000)[0] == 200


def test_an_answer_that_nobody_reads_is_given_up(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that reads nothing of its answer for long loses it."""
    monkeypatch.setattr(connection, "UNREAD_SECONDS", 0.3)
    with dial(port) as client:
        client.sendall(echo())
        time.sleep(1.5)
        assert 0 < len(read(client)) < 4 * COUNT


async def test_a_client_that_does_not_read_does_not_keep_the_server(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stop ends in time although a request waits behind an answer that its client does not read."""
    monkeypatch.setattr(server, "FAREWELL_SECONDS", 30)
    async with started(root, []) as http_server:
        with dial(http_server.port) as client:
            await asyncio.to_thread(client.sendall, echo())
            await asyncio.sleep(0.5)
            await asyncio.to_thread(client.sendall, GET + b"\r\n")
            await asyncio.sleep(0.2)
            await asyncio.wait_for(http_server.stop(0.2), 3)
