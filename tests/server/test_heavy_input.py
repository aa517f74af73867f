"""Input that is heavy: what a server is sent in megabytes or in tens of thousands neither stops it nor starves others."""

import http.client
import json
import socket
import statistics
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc

from lookwire.local import LocalServer
from tests.server.v2_models import raw_request, refused, tensors

MAX_MESSAGE = 64 << 20  # the default
MIB = 1 << 20
NUMBERS = raw_request("numbers", np.ones(2, np.float32))
CONFIG = {
    "backend": "identity",
    "input": [{"name": "INPUT0", "data_type": "TYPE_FP32", "dims": [-1]}],
    "output": [{"name": "OUTPUT0", "data_type": "TYPE_FP32", "dims": [-1]}],
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalServer]:
    """Two models without a batch dimension that give back their tensor, and one to load."""
    root = tmp_path_factory.mktemp("models")
    for name, datatype in (("numbers", "FP32"), ("strings", "STRING"), ("loaded", "FP32")):
        (root / name / "1").mkdir(parents=True)
        (root / name / "config.pbtxt").write_text(f'backend: "identity"\n{tensors(datatype)}\n')
    with LocalServer(root, model_control_mode="explicit", load_model=["numbers", "strings"]) as server:
        yield server


@pytest.fixture(scope="module")
def channel(server: LocalServer) -> Iterator[grpc.Channel]:
    """A channel without limits of its own."""
    options = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
    with grpc.insecure_channel(server.address, options=options) as channel:
        yield channel


@pytest.fixture(scope="module")
def stub(channel: grpc.Channel) -> Any:
    return service_pb2_grpc.GRPCInferenceServiceStub(channel)


@contextmanager
def others_are_served(server: LocalServer) -> Iterator[None]:
    """Asks every 20 ms, on a connection of its own, whether the server lives and for a small inference.

    None may fail or take more than 3 seconds, half of them no more than 0.3.
    """
    seconds: list[float] = []
    failures: list[grpc.RpcError] = []
    done = threading.Event()

    def ask() -> None:
        with grpc.insecure_channel(server.address, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
            stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
            while not done.wait(0.02):
                started = time.monotonic()
                try:
                    stub.ServerLive(pb.ServerLiveRequest(), timeout=60)
                    stub.ModelInfer(NUMBERS, timeout=60)
                except grpc.RpcError as error:
                    failures.append(error)
                seconds.append(time.monotonic() - started)

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        time.sleep(0.05)
        yield
        time.sleep(0.05)
    finally:
        done.set()
        thread.join()
    assert not failures
    assert statistics.median(seconds) < 0.3
    assert max(seconds) < 3


def resident(server: LocalServer, measure: str = "VmRSS") -> int:
    """The bytes of memory that the server's process holds, or with VmHWM the most that it has held."""
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith(measure)) * 1024


def load_request(config: str) -> pb.RepositoryModelLoadRequest:
    return pb.RepositoryModelLoadRequest(
        model_name="loaded", parameters={"config": pb.ModelRepositoryParameter(string_param=config)}
    )


def with_parameters(**parameters: str) -> str:
    """A config that is right but for what the parameters may do to it."""
    return json.dumps(CONFIG | {"parameters": {key: {"string_value": value} for key, value in parameters.items()}})


@pytest.mark.parametrize(
    "parameters",
    [
        pytest.param({f"key-{number:06}": "some value" for number in range(24_000)}, id="many parameters"),
        pytest.param({"key": "v" * MIB}, id="a long value"),
    ],
)
def test_config_of_a_megabyte_is_taken(server: LocalServer, stub: Any, parameters: dict[str, str]) -> None:
    """A model is loaded with a config of 1 MB, all of which can be read back."""
    config = with_parameters(**parameters)
    assert len(config) >= MIB

    with others_are_served(server):
        stub.RepositoryModelLoad(load_request(config), timeout=30)

    read = stub.ModelConfig(pb.ModelConfigRequest(name="loaded"), timeout=30).config.parameters
    assert {key: value.string_value for key, value in read.items()} == parameters


WRONG_CONFIGS = {
    "over the limit": (with_parameters(key="v" * (5 << 20)), ["5243", "at most 4194304 are read"]),
    "no JSON": ("{" + "x" * MIB, ["the config is no ModelConfig in JSON", "line 1 column 2"]),
    "a number": ('{"max_batch_size": ' + "9" * MIB + "}", ["the config is no ModelConfig in JSON"]),
    "an unknown field": (json.dumps({"f" * MIB: 1}), ["the config is no ModelConfig in JSON", "has no field named"]),
    "an unknown backend": (json.dumps(CONFIG | {"backend": "x" * MIB}), ["is not one of encoder, ensemble, identity"]),
    "a parameter's value": (with_parameters(execute_delay_ms="9" * MIB), ["must be a number, 0 or more"]),
    "instances": (json.dumps(CONFIG | {"instance_group": [{"count": 2**31 - 1}]}), ["at most 1024 are served"]),
    "deep arrays": ("[" * 100_000, ["the config is no ModelConfig in JSON", "recursion depth"]),
    "deep objects": ('{"a":' * 100_000, ["the config is no ModelConfig in JSON", "recursion depth"]),
    "a deep field": ('{"input": ' + "[" * 100_000 + "]" * 100_000 + "}", ["the config is no ModelConfig in JSON"]),
    "a deep field, within json's limit": (
        '{"input": ' + "[" * 900 + "]" * 900 + "}",
        ["the config is no ModelConfig in JSON"],
    ),
}


@pytest.mark.parametrize("case", WRONG_CONFIGS)
def test_wrong_config_of_a_megabyte_is_explained(server: LocalServer, stub: Any, case: str) -> None:
    """A large config that is wrong is INVALID_ARGUMENT, and the message says what was expected however long what came is."""
    config, words = WRONG_CONFIGS[case]

    with others_are_served(server), pytest.raises(grpc.RpcError) as failure:
        stub.RepositoryModelLoad(load_request(config), timeout=30)

    assert failure.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    for expected in words:
        assert expected in (failure.value.details() or "")


def test_ten_million_strings(server: LocalServer, stub: Any) -> None:
    """A BYTES tensor of 10 million elements comes back while others are served, in 1 GiB of memory that is free again."""
    count = 10_000_000
    data = bytes(4 * count)
    request = pb.ModelInferRequest(model_name="strings", raw_input_contents=[data])
    request.inputs.add(name="INPUT0", datatype="BYTES", shape=[count])
    before = resident(server)

    with others_are_served(server):
        reply = stub.ModelInfer(request, timeout=60)

    assert list(reply.outputs[0].shape) == [count]
    assert reply.raw_output_contents[0] == data
    assert resident(server, "VmHWM") < before + 1024 * MIB
    assert resident(server) < before + 256 * MIB


def test_message_of_a_gibibyte(server: LocalServer, channel: grpc.Channel) -> None:
    """A message of 1 GiB is RESOURCE_EXHAUSTED with its size and the limit, and takes none of the server's memory."""
    infer: Any = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer", request_serializer=None)
    before = resident(server)

    with others_are_served(server), pytest.raises(grpc.RpcError) as failure:
        infer(bytes(1 << 30), timeout=60)

    assert failure.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert f"({1 << 30} vs. {MAX_MESSAGE})" in (failure.value.details() or "")
    assert resident(server) < before + 64 * MIB


def test_refused_messages_are_let_go(server: LocalServer, stub: Any) -> None:
    """Large requests that are refused leave the server's memory with their answers, however many there are."""
    request = pb.ModelInferRequest(model_name="numbers", raw_input_contents=[bytes(48 * MIB)])
    request.inputs.add(name="INPUT0", datatype="FP32", shape=[1])
    before = resident(server)

    with others_are_served(server):
        for _ in range(5):
            code, message = refused(stub, request)
            assert code is grpc.StatusCode.INVALID_ARGUMENT
            assert f"Expected 4, got {48 * MIB}" in message

    assert resident(server) < before + 160 * MIB


def numbered(kind: str, count: int) -> pb.ModelInferRequest:
    """A good request to which `count` more inputs or outputs are added."""
    request = pb.ModelInferRequest()
    request.CopyFrom(NUMBERS)
    for number in range(count):
        if kind == "outputs":
            request.outputs.add(name=f"OUTPUT{number}")
        else:
            name = f"INPUT{number + 1}" if kind == "inputs" else "INPUT0"
            request.inputs.add(name=name, datatype="FP32", shape=[2])
    return request


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("inputs", "unexpected inference input 'INPUT1' for model 'numbers'; it takes INPUT0"),
        ("one input again", "input 'INPUT0' already exists in request for model 'numbers'"),
        ("outputs", "unexpected inference output 'OUTPUT1' for model 'numbers'; it has OUTPUT0"),
    ],
)
def test_a_hundred_thousand_tensors(server: LocalServer, stub: Any, kind: str, words: str) -> None:
    """Of a request of 100,000 inputs or outputs the first wrong one is named, at once."""
    request = numbered(kind, 100_000)

    with others_are_served(server):
        started = time.monotonic()
        code, message = refused(stub, request)
        seconds = time.monotonic() - started

    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert words in message
    assert seconds < 3


def post(server: LocalServer, path: str, body: str) -> tuple[int, str]:
    """The status of a request over HTTP, and the error in its answer."""
    connection = http.client.HTTPConnection(server.http_address, timeout=30)
    try:
        connection.request("POST", path, body)
        response = connection.getresponse()
        return response.status, json.loads(response.read())["error"]
    finally:
        connection.close()


DEEP = "[" * 100_000 + "]" * 100_000
ENTRY = '{"name": "INPUT1", "datatype": "FP32", "shape": [1], "data": [1]}'
INFER = "/v2/models/numbers/infer"
LOAD = "/v2/repository/models/loaded/load"
WRONG_BODIES = {
    "deep": (INFER, DEEP, "nested too deep"),
    "deep data": (INFER, ENTRY.replace("[1]}", DEEP + "}").join(('{"inputs": [', "]}")), "nested too deep"),
    "deep config": (LOAD, json.dumps({"parameters": {"config": DEEP}}), "the config is no ModelConfig in JSON"),
    "100,000 inputs": (
        INFER,
        '{"inputs": [' + ", ".join([ENTRY] * 100_000) + "]}",
        "unexpected inference input 'INPUT1' for model 'numbers'; it takes INPUT0",
    ),
}


@pytest.mark.parametrize("case", WRONG_BODIES)
def test_heavy_bodies(server: LocalServer, case: str) -> None:
    """JSON of 100,000 levels or entries is 400 over HTTP, and says why."""
    path, body, words = WRONG_BODIES[case]

    with others_are_served(server):
        status, message = post(server, path, body)

    assert status == 400
    assert words in message


@pytest.mark.parametrize("header", ["", "Expect: 100-continue\r\n"], ids=["plain", "expecting 100"])
def test_body_announced_as_a_gibibyte(server: LocalServer, header: str) -> None:
    """A body that is announced as too large is 400 with both sizes before any of it has come, and is not asked for."""
    host, port = server.http_address.split(":")
    with others_are_served(server), socket.create_connection((host, int(port)), 3) as connection:
        connection.sendall(f"POST {INFER} HTTP/1.1\r\nHost: x\r\n{header}Content-Length: {1 << 30}\r\n\r\n".encode())
        answer = b""
        while b"\r\n\r\n{" not in answer:
            got = connection.recv(MIB)
            assert got, f"the connection was closed after {answer!r}"
            answer += got

    assert answer.startswith(b"HTTP/1.1 400 ")
    assert f"Request of {1 << 30} bytes exceeds the maximum allowed input size of {64 * MIB} bytes".encode() in answer


def test_body_of_a_gibibyte(server: LocalServer) -> None:
    """A client that sends all of a body of 1 GiB reads a 400 with the limit's option, and none of the body is kept."""
    before = resident(server)
    block = bytes(MIB)
    connection = http.client.HTTPConnection(server.http_address, timeout=30)

    with others_are_served(server):
        connection.request("POST", INFER, (block for _ in range(1024)), {"Content-Length": str(1 << 30)})
        response = connection.getresponse()
        message = response.read().decode()
        connection.close()

    assert response.status == 400
    assert "--http-max-input-size" in message
    assert resident(server) < before + 64 * MIB
