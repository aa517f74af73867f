"""Bodies over HTTP that are wrong, too large, compressed, cut off, or given up by their sender."""

import gzip
import http.client
import json
import socket
import time
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from lookwire_server.rpc.http import bodies
from tests.server.test_http_server import MAX_BYTES, SLOW, infer_body, request, serving, write_identity

INFER = "/v2/models/floats/infer"


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    root = tmp_path_factory.mktemp("models")
    write_identity(root, "floats", ("x", "FP32", -1))
    write_identity(root, "bytes", ("x", "STRING", -1))
    write_identity(root, "slow", ("x", "FP32", 2), parameters=SLOW)
    with serving(root) as port:
        yield port


def infer(port: int, body: Any, path: str = INFER, **headers: str) -> tuple[int, Any]:
    status, answer = request(port, "POST", path, body, **headers)
    return status, json.loads(answer)


def one_input(**changes: Any) -> str:
    """A request of one input that is right but for the changes; None leaves a member out."""
    tensor = {"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [1, 2]} | changes
    return json.dumps({"inputs": [{name: value for name, value in tensor.items() if value is not None}]})


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("", "line 1, column 1"),
        ("{", "line 1, column 2"),
        (b'{"inputs": "\xff"}', "not UTF-8 at byte 12"),
        ("[" * 100_000, "nested too deep"),
        ("[]", "must be a JSON object, got an array"),
        ("{}", "'inputs' is missing"),
        ('{"inputs": {}}', "'inputs' must be an array, got an object"),
        ('{"inputs": [7]}', "'inputs[0]' must be an object, got an integer"),
        (one_input(name=None), "'inputs[0].name' is missing"),
        (one_input(shape=[1, 2.0]), "'inputs[0].shape[1]' must be an integer"),
        (one_input(shape=[1, 1 << 63]), "'inputs[0].shape[1]' must be an integer"),
        (one_input(shape=[1, True]), "'inputs[0].shape[1]' must be an integer"),
        (one_input(datatype="FLOAT"), "no FLOAT elements in JSON"),
        (one_input(datatype="BF16"), "no BF16 elements in JSON"),
        (one_input(data=None), "must have one of 'data'"),
        (one_input(parameters={"binary_data_size": 8}), "must have one of 'data'"),
        (one_input(data="12"), "inputs[0]: data must be an array, got a string"),
        (one_input(data=[1, "2"]), "inputs[0].data[1] must be a number or an integer for FP32, got a string"),
        (one_input(data=[1, None]), "inputs[0].data[1] must be a number or an integer for FP32, got null"),
        (one_input(data=[1, True]), "inputs[0].data[1] must be a number or an integer for FP32, got true or false"),
        (one_input(data=[[1], 2]), "nests arrays unevenly"),
        (one_input(data=[1, [2]]), "inputs[0].data[1] must be a number or an integer for FP32, got an array"),
        (one_input(data=[1, 1e39]), "inputs[0].data[1] does not fit FP32"),
        (one_input(data=[1, 10**400]), "inputs[0].data[1] does not fit FP32"),
        (one_input().replace("2]}", "1e999]}"), "inputs[0].data[1] does not fit FP32"),
        (one_input().replace("2]}", "NaN]}"), "NaN is no JSON number"),
        (one_input().replace("2]}", "9" * 5000 + "]}"), "failed to parse the request JSON buffer"),
        (one_input(datatype="INT8", data=[1, 128]), "inputs[0].data[1] does not fit INT8, which holds -128 to 127"),
        (one_input(datatype="UINT64", data=[1, -1]), "inputs[0].data[1] does not fit UINT64"),
        (one_input(datatype="INT32", data=[1, 2.0]), "must be an integer for INT32, got a number"),
        (one_input(datatype="BOOL", data=[1, 0]), "inputs[0].data[0] must be true or false for BOOL, got an integer"),
        (one_input(datatype="BYTES", data=["a", 1]), "inputs[0].data[1] must be a string for BYTES, got an integer"),
        (one_input(datatype="BYTES", data=["a", "\ud800"]), "inputs[0].data[1] has half of a surrogate pair"),
        (one_input(name="\ud800"), "surrogate"),
        (one_input(parameters={"p": [1]}), "'inputs[0].parameters.p' must be a string, a number"),
        (one_input(parameters={"p": 1 << 64}), "'inputs[0].parameters.p' must be a string, a number"),
        (one_input(data=[1, 2, 3]), "Expected 8, got 12"),
        ('{"id": 7, "inputs": []}', "'id' must be a string, got an integer"),
        ('{"inputs": [], "outputs": ["y"]}', "'outputs[0]' must be an object, got a string"),
        ('{"inputs": [], "parameters": {"binary_data_output": 1}}', "'parameters.binary_data_output' must be"),
    ],
)
def test_a_wrong_body_is_400_and_says_where(port: int, body: Any, words: str) -> None:
    """Whatever is wrong with a body, the answer is 400 and names the place."""
    status, answer = infer(port, body)
    assert status == 400
    assert words in answer["error"]


@pytest.mark.parametrize(
    ("size", "length", "words"),
    [
        (8, "9999", "must be 0 to"),
        (8, "-1", "must be 0 to"),
        (8, "1" * 50, "must be 0 to"),
        (8, "0" * 20 + "9" * 5000, "must be 0 to"),
        (8, "10", "failed to parse"),
        (12, None, "'inputs[0].parameters.binary_data_size' is 12, but 8 bytes"),
        (-1, None, "'inputs[0].parameters.binary_data_size' is -1"),
        (4, None, "4 bytes follow the binary data"),
        ("8", None, "must be an integer, got a string"),
    ],
)
def test_wrong_lengths_of_binary_data_are_400(port: int, size: Any, length: str | None, words: str) -> None:
    """A header or a tensor that claims another length than the body has is refused."""
    header = one_input(data=None, parameters={"binary_data_size": size}).encode()
    length = length or str(len(header))
    status, answer = infer(port, header + bytes(8), Inference_Header_Content_Length=length)
    assert status == 400
    assert words in answer["error"]


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_over_the_limit_is_refused(port: int, chunked: bool) -> None:
    """A body over the limit is 400 and names the option, whether its length is announced or not."""
    block = bytes(1 << 20)
    blocks = (block for _ in range(MAX_BYTES // len(block) + 4)) if chunked else bytes(MAX_BYTES + 1)
    status, answer = infer(port, blocks)
    assert status == 400
    assert f"exceeds the maximum allowed input size of {MAX_BYTES} bytes" in answer["error"]
    assert "--http-max-input-size" in answer["error"]


def test_a_refused_body_is_not_taken_for_long(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that does not end a body that is refused finds its connection closed."""
    monkeypatch.setattr(bodies, "DROP_SECONDS", 0.2)
    with socket.create_connection(("127.0.0.1", port), 30) as connection:
        connection.sendall(f"POST {INFER} HTTP/1.1\r\nHost: x\r\nContent-Length: {1 << 40}\r\n\r\n".encode())
        answer = b"".join(iter(lambda: connection.recv(1 << 16), b""))
    assert b"connection: close" in answer.lower()


def test_a_body_that_stops_arriving_is_504(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that falls silent in the middle of a body is told so, and holds nothing any more."""
    monkeypatch.setattr(bodies, "SILENCE_SECONDS", 0.2)
    with socket.create_connection(("127.0.0.1", port), 30) as connection:
        connection.sendall(f"POST {INFER} HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n".encode() + bytes(50))
        answer = b"".join(iter(lambda: connection.recv(1 << 16), b""))
    assert answer.startswith(b"HTTP/1.1 504")
    assert b"nothing of the request's body arrived" in answer


def test_a_content_length_of_many_zeros_is_its_value(port: int) -> None:
    """Leading zeros of a Content-Length change nothing, however many they are."""
    length = f"{len(one_input()):05000}"
    assert infer(port, one_input(), Content_Length=length)[0] == 200


@pytest.mark.parametrize(
    ("encoding", "body", "words"),
    [
        ("gzip", gzip.compress(bytes(MAX_BYTES + 1), mtime=0), "once decompressed"),
        ("deflate", zlib.compress(bytes(MAX_BYTES + 1)), "once decompressed"),
        ("gzip", b"no gzip", "not in gzip format"),
        ("gzip", gzip.compress(one_input().encode(), mtime=0)[:-9], "ends before"),
        ("deflate", zlib.compress(one_input().encode()) + b"more", "4 bytes follow"),
        ("br", b"", "must be gzip, deflate or identity, got 'br'"),
    ],
)
def test_badly_compressed_bodies_are_400(port: int, encoding: str, body: bytes, words: str) -> None:
    """A compressed body must be whole, and within the limit once decompressed."""
    status, answer = infer(port, body, Content_Encoding=encoding)
    assert status == 400
    assert words in answer["error"]


@pytest.mark.parametrize(
    ("accept", "encoding"),
    [
        ("gzip", "gzip"),
        ("deflate, gzip;q=0.5", "deflate"),
        ("gzip;q=0, br", None),
        ("identity", None),
        ("*", None),
        ("gzip;q=x", None),
    ],
)
def test_answers_are_compressed_as_asked(port: int, accept: str, encoding: str | None) -> None:
    """The encoding of an answer is the one that the client weighs highest among gzip and deflate."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request("POST", INFER, one_input(), {"Accept-Encoding": accept})
    response = connection.getresponse()
    body = response.read()
    connection.close()
    assert response.getheader("Content-Encoding") == encoding
    if encoding:
        body = gzip.decompress(body) if encoding == "gzip" else zlib.decompress(body)
    assert json.loads(body)["outputs"][0]["data"] == [1.0, 2.0]


def test_what_json_cannot_say_must_be_asked_for_as_binary_data(port: int) -> None:
    """An output with a NaN, or with bytes that are no text, is 400 as JSON and right as binary data."""
    for model, datatype, raw in (
        ("floats", "FP32", np.array([1, np.nan], np.float32).tobytes()),
        ("bytes", "BYTES", b"\x01\x00\x00\x00\xff\x00\x00\x00\x00"),
    ):
        for binary in (False, True):
            tensor = {"name": "x", "datatype": datatype, "shape": [1, 2], "parameters": {"binary_data_size": len(raw)}}
            header = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": binary}}).encode()
            status, answer = request(
                port,
                "POST",
                f"/v2/models/{model}/infer",
                header + raw,
                Inference_Header_Content_Length=str(len(header)),
            )
            if binary:
                assert status == 200
                assert answer.endswith(raw)
            else:
                assert status == 400
                assert "ask for it with binary_data" in json.loads(answer)["error"]


def test_unknown_paths_and_methods_answer_json(port: int) -> None:
    """A path or a method that the protocol does not have is 404 or 405 with an error in JSON."""
    for method, path, expected in (("GET", "/v1", 404), ("GET", "/v2/models/x/y/z", 404), ("GET", INFER, 405)):
        status, answer = request(port, method, path)
        assert status == expected
        assert path in json.loads(answer)["error"]


def test_a_client_that_goes_away_cancels_its_request(port: int) -> None:
    """A request whose sender closes the connection while it waits is never executed."""
    path = "/v2/models/slow/infer"
    body = infer_body([1.0, 2.0])

    def send() -> http.client.HTTPConnection:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        connection.request("POST", path, body)
        return connection

    first = send()
    time.sleep(0.1)
    given_up = send()
    time.sleep(0.1)
    given_up.close()
    assert first.getresponse().status == 200
    first.close()
    time.sleep(0.6)
    (row,) = json.loads(request(port, "GET", "/v2/models/slow/stats")[1])["model_stats"]
    assert (row["execution_count"], row["inference_stats"]["success"]["count"]) == (1, 1)


def test_requests_that_would_hold_too_many_bytes_are_503(tmp_path_factory: pytest.TempPathFactory) -> None:
    """While bodies in hand fill the limit of all together, one more is 503; afterwards it is taken."""
    root = tmp_path_factory.mktemp("models")
    write_identity(root, "floats", ("x", "FP32", -1))
    with serving(root, max_inflight_bytes=1000) as port:
        half = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        half.putrequest("POST", INFER)
        half.putheader("Content-Length", "2000")
        half.endheaders(b" " * 990)
        time.sleep(0.2)
        status, answer = infer(port, one_input())
        assert status == 503
        assert "try again later" in answer["error"]
        half.send(one_input().encode().ljust(1010))
        assert half.getresponse().status == 200
        half.close()
        assert infer(port, one_input())[0] == 200
