"""The HTTP server as a part of a program: where it listens, how it stops, what it says when it dies."""

import asyncio
import http.client
import json
import signal
import socket
import threading
from collections.abc import AsyncIterator, Iterator, Mapping
from concurrent.futures import Future
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest

from lookwire_server.log import Levels
from lookwire_server.metrics import Metrics
from lookwire_server.models.backends.identity import IdentityBackend
from lookwire_server.models.repository import ControlMode, Repository
from lookwire_server.rpc.http.server import HttpServer
from lookwire_server.rpc.v2.servicer import InferenceServicer
from lookwire_server.rpc.v2.shared_memory import SharedMemory

MAX_BYTES = 16 << 20

SLOW = {"execute_delay_ms": "400"}


def write_identity(
    root: Path, name: str, *inputs: tuple[str, str, int], parameters: Mapping[str, str] | None = None
) -> None:
    """Writes a model that answers each input ("x", datatype, dim) with an output of that name after "y"."""

    def tensors(prefix: str) -> str:
        return ",".join(
            f'{{ name: "{prefix}{name}" data_type: TYPE_{datatype} dims: [{dim}] }}' for name, datatype, dim in inputs
        )

    settings = "".join(
        f'parameters {{ key: "{key}" value {{ string_value: "{value}" }} }}\n'
        for key, value in (parameters or {}).items()
    )
    (root / name / "1").mkdir(parents=True)
    (root / name / "config.pbtxt").write_text(
        f'backend: "identity" max_batch_size: 8\ninput [{tensors("")}]\noutput [{tensors("y")}]\n{settings}'
    )


@asynccontextmanager
async def started(root: Path, failures: list[str], **limits: Any) -> AsyncIterator[HttpServer]:
    """A server of the models in `root`, on the running loop."""
    metrics = Metrics()
    repository = Repository(
        [root],
        {"identity": IdentityBackend()},
        metrics,
        failures.append,
        mode=ControlMode.EXPLICIT,
        startup_models=["*"],
    )
    await repository.start()
    server = HttpServer(
        InferenceServicer(repository, shared_memory=SharedMemory(), levels=Levels()),
        metrics,
        failures.append,
        **{
            "address": "127.0.0.1",
            "port": 0,
            "max_bytes": MAX_BYTES,
            "max_inflight_bytes": 4 * MAX_BYTES,
            "max_connections": 256,
            **limits,
        },
    )
    try:
        await server.start()
        yield server
    finally:
        await server.stop(5)
        await repository.close()


@contextmanager
def serving(root: Path, **limits: Any) -> Iterator[int]:
    """The port of a server of the models in `root`, in a thread with an event loop of its own."""
    port: Future[int] = Future()
    failures: list[str] = []
    ending: list[Any] = []

    async def serve() -> None:
        async with started(root, failures, **limits) as server:
            end = asyncio.Event()
            ending.append((asyncio.get_running_loop(), end))
            port.set_result(server.port)
            await end.wait()

    def run() -> None:
        try:
            asyncio.run(serve())
        except BaseException as error:
            if port.done():
                raise
            port.set_exception(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield port.result(30)
    finally:
        for loop, end in ending:
            loop.call_soon_threadsafe(end.set)
        thread.join(30)
    assert not thread.is_alive()
    assert not failures


def infer_body(values: list[float]) -> str:
    tensor = {"name": "x", "datatype": "FP32", "shape": [1, len(values)], "data": values}
    return json.dumps({"inputs": [tensor]})


def request(port: int, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request(method, path, body, {name.replace("_", "-"): text for name, text in headers.items()})
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


async def test_requests_in_flight_are_answered_before_the_server_stops(tmp_path: Path) -> None:
    """A request that is being executed when the server is told to stop gets its answer, and new ones get none."""
    write_identity(tmp_path, "slow", ("x", "FP32", 2), parameters=SLOW)
    failures: list[str] = []
    async with started(tmp_path, failures) as server:
        call = asyncio.create_task(
            asyncio.to_thread(request, server.port, "POST", "/v2/models/slow/infer", infer_body([1.0, 2.0]))
        )
        await asyncio.sleep(0.2)
        await server.stop(5)
        status, body = await call
        assert (status, json.loads(body)["outputs"][0]["data"]) == (200, [1.0, 2.0])
        with pytest.raises(ConnectionRefusedError):
            await asyncio.to_thread(request, server.port, "GET", "/v2/health/live")
    assert not failures


async def test_a_stop_ends_requests_that_take_longer_than_its_timeout(tmp_path: Path) -> None:
    """Stopping takes no longer than its timeout and a moment, whatever is in flight."""
    write_identity(tmp_path, "slow", ("x", "FP32", 2), parameters={"execute_delay_ms": "2000"})
    async with started(tmp_path, []) as server:
        call = asyncio.create_task(
            asyncio.to_thread(request, server.port, "POST", "/v2/models/slow/infer", infer_body([1.0, 2.0]))
        )
        await asyncio.sleep(0.2)
        await asyncio.wait_for(server.stop(0.2), 1.5)
        status, body = await call
        assert (status, json.loads(body)) == (503, {"error": "the server stopped before the request was answered"})


async def test_a_taken_port_is_an_error(tmp_path: Path) -> None:
    """A port that another program listens on is an OSError at the start."""
    write_identity(tmp_path, "floats", ("x", "FP32", -1))
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(OSError, match="in use"):
        async with started(tmp_path, [], port=taken.getsockname()[1]):
            pass


async def test_a_death_of_the_server_is_told(tmp_path: Path) -> None:
    """A server that ends without having been stopped tells its owner."""
    write_identity(tmp_path, "floats", ("x", "FP32", -1))
    failures: list[str] = []
    async with started(tmp_path, failures) as server:
        assert (await asyncio.to_thread(request, server.port, "GET", "/v2/health/live"))[0] == 200
        (task,) = (task for task in asyncio.all_tasks() if task.get_name() == "http")
        task.cancel()
        await asyncio.wait([task])
        await asyncio.sleep(0)
    assert failures == ["HTTP: cancelled"]


async def test_the_programs_signal_handlers_stay(tmp_path: Path) -> None:
    """The server leaves the handling of signals to the program that it is a part of."""
    write_identity(tmp_path, "floats", ("x", "FP32", -1))
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    async with started(tmp_path, []) as server:
        assert (await asyncio.to_thread(request, server.port, "GET", "/v2/health/live"))[0] == 200
        assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_a_server_full_of_connections_answers_503(tmp_path: Path) -> None:
    """Beyond the limit of connections a request is refused at once."""
    write_identity(tmp_path, "floats", ("x", "FP32", -1))
    with serving(tmp_path, max_connections=2) as port:
        idle = [http.client.HTTPConnection("127.0.0.1", port) for _ in range(2)]
        for connection in idle:
            connection.connect()
        try:
            assert request(port, "GET", "/v2/health/live")[0] == 503
        finally:
            for connection in idle:
                connection.close()
