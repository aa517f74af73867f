"""The connection by which the benchmarks' generator sends its requests."""

import asyncio
import hashlib
from collections import Counter
from collections.abc import AsyncIterator
from functools import partial

import grpc
import pytest
from google.protobuf import any_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status

from benchmarks.load.connection import Connection

METHOD = "/test.Test/Answer"
SEEN: Counter[bytes] = Counter()


async def answer(request: bytes, context: grpc.aio.ServicerContext[bytes, bytes]) -> bytes:
    SEEN[hashlib.sha256(request).digest()] += 1
    if request.startswith(b"refuse"):
        detail = any_pb2.Any()
        detail.Pack(error_details_pb2.RetryInfo() if request.endswith(b"retry") else error_details_pb2.ErrorInfo())
        status = status_pb2.Status(code=code_pb2.RESOURCE_EXHAUSTED, message="no", details=[detail])
        await context.abort_with_status(rpc_status.to_status(status))
    if request.startswith(b"sleep"):
        await asyncio.sleep(60)
    return request * 2


@pytest.fixture
async def address() -> AsyncIterator[str]:
    """Where a server of grpc.aio listens that answers with twice the request."""
    server = grpc.aio.server(options=[("grpc.max_receive_message_length", -1)])
    handler: grpc.RpcMethodHandler[bytes, bytes] = grpc.unary_unary_rpc_method_handler(answer)
    service, _, method = METHOD[1:].partition("/")
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {method: handler}),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    yield f"127.0.0.1:{port}"
    await server.stop(None)


async def ends(connection: Connection, requests: list[bytes]) -> list[tuple[str, bool]]:
    """What became of requests that were all sent at once, in their order."""
    ended: dict[int, tuple[str, bool]] = {}
    all_ended = asyncio.Event()

    def end(number: int, code: str, retry_told: bool) -> None:
        ended[number] = code, retry_told
        if len(ended) == len(requests):
            all_ended.set()

    for number, request in enumerate(requests):
        connection.call(request, partial(end, number))
    await all_ended.wait()
    return [ended[number] for number in range(len(requests))]


async def test_requests_of_all_sizes_arrive_whole(address: str) -> None:
    """Requests larger than a frame and than a window arrive whole beside small ones, and all are answered."""
    sizes = [0, 1, 16_379, 16_380, 65_530, 65_531, 300_000, 5_000_000, *range(100, 5_000, 100)]
    requests = [bytes([size % 251]) * size for size in sizes]
    connection = await Connection.connect(address, METHOD, 30)
    for _ in range(3):
        SEEN.clear()
        assert await ends(connection, requests) == [("OK", False)] * len(requests)
        assert Counter(hashlib.sha256(request).digest() for request in requests) == SEEN
    connection.close()


async def test_a_refusal_is_told_with_its_retry_info(address: str) -> None:
    """The status of each call is its own, and a RetryInfo is found where there is one."""
    connection = await Connection.connect(address, METHOD, 30)
    got = await ends(connection, [b"refuse", b"fine", b"refuse, retry", b"refuse"])
    exhausted = "RESOURCE_EXHAUSTED"
    assert got == [(exhausted, False), ("OK", False), (exhausted, True), (exhausted, False)]
    connection.close()


async def test_a_call_ends_at_its_deadline(address: str) -> None:
    """A call that gets no answer ends at its deadline, and the others are answered."""
    connection = await Connection.connect(address, METHOD, 0.3)
    assert await ends(connection, [b"sleep", b"fine"]) == [("DEADLINE_EXCEEDED", False), ("OK", False)]
    connection.close()


async def test_calls_end_with_their_connection(address: str) -> None:
    """Calls in flight on a connection that ends are UNAVAILABLE."""
    connection = await Connection.connect(address, METHOD, 30)
    waiting = asyncio.create_task(ends(connection, [b"sleep", b"sleep"]))
    await asyncio.sleep(0.1)
    connection.close()
    assert await waiting == [("UNAVAILABLE", False)] * 2


async def test_nobody_listening_is_an_error() -> None:
    """Where nobody listens there is no connection."""
    with pytest.raises(OSError, match="Connect call failed"):
        await Connection.connect("127.0.0.1:1", METHOD, 1)
