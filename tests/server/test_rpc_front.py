"""What all RPCs have in common: errors that fit a reply, requests that are none, streams that end at a stop, and their counts."""

import re
import time
import urllib.request
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from threading import Event
from typing import Any

import grpc
import numpy as np
import pytest
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc

from lookwire.local import LocalServer
from lookwire_server.errors import InvalidArgument
from lookwire_server.metrics import Metrics
from lookwire_server.rpc.guard import to_status
from lookwire_server.rpc.reflection import ReflectionServicer
from lookwire_server.rpc.v2.stream import Streams
from tests.server import v2_models
from tests.server.v2_models import raw_request, refused

INFER = "/inference.GRPCInferenceService/ModelInfer"
STREAM = "/inference.GRPCInferenceService/ModelStreamInfer"
GARBAGE = b"\xff\xff\xff"
UNDECODABLE = "the request is no inference.ModelInferRequest: it cannot be decoded"
CLIENT_METADATA = 8192  # bytes of trailers that clients take


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return v2_models.write(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def server(models: Path) -> Iterator[LocalServer]:
    with LocalServer(models) as server:
        yield server


@pytest.fixture
def channel(server: LocalServer) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(server.address) as channel:
        yield channel


def good(id: str = "good") -> pb.ModelInferRequest:
    return raw_request("floats", np.ones((1, 1), np.float32), id=id)


def calls(server: LocalServer, method: str, code: str) -> float:
    """How many calls of a method the server has counted with that code."""
    with urllib.request.urlopen(f"http://{server.metrics_address}/metrics") as page:
        text = page.read().decode()
    found = re.search(
        f'^lookwire_rpc_duration_seconds_count{{code="{code}",method="{re.escape(method)}"}} (.*)$', text, re.M
    )
    return float(found[1]) if found else 0.0


@pytest.mark.parametrize("letter", ["a", "é", "中", "😀"])
def test_long_names_are_quoted_in_part(channel: grpc.Channel, letter: str) -> None:
    """An error about a name of 3000 letters of any script arrives with its own code, unary and as the end of a stream."""
    stub: Any = service_pb2_grpc.GRPCInferenceServiceStub(channel)
    request = pb.ModelInferRequest(model_name=letter * 3000)
    stream = stub.ModelStreamInfer(iter([request]), metadata=[("triton_grpc_error", "true")])

    code, message = refused(stub, request)
    with pytest.raises(grpc.RpcError) as failure:
        list(stream)

    assert code is failure.value.code() is grpc.StatusCode.NOT_FOUND
    assert message == failure.value.details()
    assert letter * 80 in message
    assert message.endswith("is not found")
    assert len(message.encode()) <= 768


def test_every_status_fits_the_trailers() -> None:
    """The longest field, message and metadata together stay below what clients take, in percent encoding and base64."""
    long = "😀" * 3000
    status = to_status(InvalidArgument(long, field=long, first=long, second=long, third=long, fourth=long))

    assert len(status.message.encode()) * 3 + len(status.SerializeToString()) * 4 / 3 < CLIENT_METADATA - 256


def test_a_lone_surrogate_is_no_obstacle() -> None:
    """An error that quotes text which is no UTF-8, as paths can be, is told all the same."""
    assert to_status(InvalidArgument("no file \udc80")).message == "no file ?"


def test_an_undecodable_request_is_refused(server: LocalServer, channel: Any) -> None:
    """Bytes that are no request are INVALID_ARGUMENT without a word of Python, and counted."""
    before = calls(server, INFER, "INVALID_ARGUMENT")

    with pytest.raises(grpc.RpcError) as failure:
        channel.unary_unary(INFER)(GARBAGE)

    assert failure.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert failure.value.details() == UNDECODABLE
    until = time.monotonic() + 5
    while calls(server, INFER, "INVALID_ARGUMENT") == before and time.monotonic() < until:
        time.sleep(0.05)  # a call is counted when its answer has been sent
    assert calls(server, INFER, "INVALID_ARGUMENT") == before + 1


def test_an_undecodable_message_ends_its_stream(server: LocalServer, channel: grpc.Channel) -> None:
    """On a stream the requests before it are answered, then it is the status; each is counted by its code."""
    before = [calls(server, STREAM, code) for code in ("OK", "INVALID_ARGUMENT")]
    messages = [good().SerializeToString(), GARBAGE, good().SerializeToString()]

    call = channel.stream_stream(STREAM, response_deserializer=pb.ModelStreamInferResponse.FromString)(iter(messages))
    first = next(call)
    with pytest.raises(grpc.RpcError) as failure:
        next(call)

    assert first.infer_response.id == "good"
    assert failure.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert failure.value.details() == UNDECODABLE
    assert calls(server, STREAM, "OK") - before[0] in (1, 2)  # the third may have been read
    assert calls(server, STREAM, "INVALID_ARGUMENT") == before[1] + 1


def test_requests_on_streams_are_counted(server: LocalServer, channel: grpc.Channel) -> None:
    """Each request on a stream is counted with the code of its answer, as if it had been a call."""
    before = [calls(server, STREAM, code) for code in ("OK", "NOT_FOUND")]
    unknown = pb.ModelInferRequest(model_name="nobody")

    list(service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelStreamInfer(iter([good(), unknown, good()])))

    assert [calls(server, STREAM, code) for code in ("OK", "NOT_FOUND")] == [before[0] + 2, before[1] + 1]


def test_version_zero_is_a_version(tmp_path: Path) -> None:
    """The statistics of version 0 are those of version 0 alone."""
    for version in "01":
        (tmp_path / "both" / version).mkdir(parents=True)
    (tmp_path / "both/config.pbtxt").write_text(
        f'backend: "identity" version_policy {{ all {{ }} }} {v2_models.tensors("FP32")}'
    )

    with LocalServer(tmp_path) as server, grpc.insecure_channel(server.address) as channel:
        stub: Any = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        of = {
            version: [
                row.version
                for row in stub.ModelStatistics(pb.ModelStatisticsRequest(name="both", version=version)).model_stats
            ]
            for version in ("0", "1", "")
        }

    assert of == {"0": ["0"], "1": ["1"], "": ["0", "1"]}


def test_idle_reflection_does_not_hold_up_a_stop(models: Path) -> None:
    """A client that keeps a reflection stream open is told UNAVAILABLE, and the server stops at once."""
    ended = Event()

    def questions() -> Iterator[reflection_pb2.ServerReflectionRequest]:
        yield reflection_pb2.ServerReflectionRequest(list_services="")
        ended.wait(20)

    with LocalServer(models, exit_timeout_secs=15) as server, grpc.insecure_channel(server.address) as channel:
        call = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(questions())
        next(call)
        started = time.monotonic()
        status = server.stop()
        seconds = time.monotonic() - started
        try:
            with pytest.raises(grpc.RpcError) as failure:
                next(call)
        finally:
            ended.set()

    assert status == 0
    assert seconds < 8
    assert failure.value.code() is grpc.StatusCode.UNAVAILABLE
    assert failure.value.details() == "the server is stopping"


async def test_a_stop_while_a_reflection_is_answered_ends_the_stream_with_a_status() -> None:
    """A stop between an answer and the next question does not cancel the call, which would leave it without a status."""
    servicer, call = ReflectionServicer(["a.Service"]), StreamCall()

    async def questions() -> AsyncIterator[reflection_pb2.ServerReflectionRequest]:
        while True:
            yield reflection_pb2.ServerReflectionRequest(list_services="")

    answers = aiter(servicer.ServerReflectionInfo(questions(), call))  # type: ignore[arg-type]  # it only aborts
    await anext(answers)
    servicer.end_streams()

    with pytest.raises(StopAsyncIteration):
        await anext(answers)
    assert call.code is grpc.StatusCode.UNAVAILABLE


class StreamCall:
    """The context of a stream, which notes how it was ended."""

    code: grpc.StatusCode | None = None

    async def write(self, message: Any) -> None:
        raise AssertionError(f"nothing was asked, {message} is answered")

    async def abort(self, code: grpc.StatusCode, details: str) -> None:
        self.code = code

    def invocation_metadata(self) -> None:
        return None

    def time_remaining(self) -> None:
        return None


async def test_a_stream_that_comes_during_a_stop_is_refused() -> None:
    """A stream that arrives after the streams were told to end is UNAVAILABLE at once, and nothing of it is read."""
    streams = Streams(None, 1 << 20, Metrics())  # type: ignore[arg-type]  # nothing is inferred
    streams.stop()
    call = StreamCall()

    async def requests() -> AsyncIterator[Any]:
        raise AssertionError("a request was read")
        yield

    await streams.serve(requests(), call)

    assert call.code is grpc.StatusCode.UNAVAILABLE


def test_all_bytes_of_requests_on_streams_count(models: Path) -> None:
    """The bound on bytes in flight counts whole messages, not only their tensors."""
    with LocalServer(models, max_inflight_bytes=1 << 20) as server, grpc.insecure_channel(server.address) as channel:
        stub: Any = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        requests = [raw_request("slow", np.ones((1, 1), np.float32), id="x" * 700_000) for _ in range(3)]
        responses = list(stub.ModelStreamInfer(iter(requests)))

    assert [bool(response.error_message) for response in responses] == [False, True, True]
