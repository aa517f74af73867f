"""The V2 protocol over HTTP as tritonclient speaks it."""

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.http as triton
import tritonclient.http.aio as triton_aio
from tritonclient.grpc import service_pb2 as pb
from tritonclient.utils import InferenceServerException, np_to_triton_dtype, shared_memory

from lookwire.local import LocalServer
from lookwire_server.rpc.http import infer, routes
from lookwire_server.rpc.http.threads import SMALL
from tests.server.test_http_server import request, serving, write_identity

VALUES: dict[str, list[Any]] = {
    "BOOL": [True, False],
    "INT8": [-128, 127],
    "INT16": [-(1 << 15), 5],
    "INT32": [-(1 << 31), 5],
    "INT64": [-(1 << 63), (1 << 63) - 1],
    "UINT8": [0, 255],
    "UINT16": [0, 65535],
    "UINT32": [0, (1 << 32) - 1],
    "UINT64": [0, (1 << 64) - 1],
    "FP16": [0.5, -65504.0],
    "FP32": [0.1, -3e38],
    "FP64": [0.1, 1e308],
    "STRING": ["größe", ""],
}


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    root = tmp_path_factory.mktemp("models")
    write_identity(root, "floats", ("x", "FP32", -1))
    write_identity(root, "text", ("x", "STRING", 1))
    for datatype in VALUES:
        write_identity(root, f"of-{datatype}", ("x", datatype, 2))
    write_identity(root, "spare", ("x", "FP32", -1))
    write_identity(root, "two", ("a", "INT32", 2), ("b", "STRING", 2))
    with LocalServer(root, model_control_mode="explicit", load_model="*", allow_client_shm=True) as server:
        yield int(server.http_address.rpartition(":")[2])


@pytest.fixture
def client(port: int) -> Iterator[Any]:
    with triton.InferenceServerClient(f"127.0.0.1:{port}") as client:
        yield client


def tensor(name: str, values: Any, *, binary: bool = True) -> Any:
    array = np.array(values)
    if array.dtype.kind == "U":
        array = array.astype(np.object_)
    made = triton.InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype))
    made.set_data_from_numpy(array, binary_data=binary)
    return made


def test_health_and_descriptions(client: Any) -> None:
    """Health, metadata, configuration and the index say of a model what they say over gRPC; 64-bit integers are numbers."""
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("floats")
    assert client.is_model_ready("floats", "1")
    assert not client.is_model_ready("unknown")
    assert "binary_tensor_data" in client.get_server_metadata()["extensions"]
    assert client.get_model_metadata("floats") == {
        "name": "floats",
        "versions": ["1"],
        "platform": "identity",
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, -1]}],
        "outputs": [{"name": "yx", "datatype": "FP32", "shape": [-1, -1]}],
    }
    config = client.get_model_config("floats", "1")
    assert config["max_batch_size"] == 8
    assert config["input"][0]["data_type"] == "TYPE_FP32"
    assert config["input"][0]["dims"] == [-1]
    assert {"name": "floats", "version": "1", "state": "READY", "reason": ""} in client.get_model_repository_index()


def test_statistics_are_numbers(client: Any) -> None:
    """Statistics of one model and of all count requests as numbers."""
    client.infer("two", [tensor("a", np.array([[1, 2]], np.int32)), tensor("b", [["x", "y"]])])
    (row,) = client.get_inference_statistics("two", "1")["model_stats"]
    assert row["inference_stats"]["success"]["count"] == row["execution_count"] == 1
    assert row["batch_stats"][0]["batch_size"] == 1
    assert len(client.get_inference_statistics()["model_stats"]) == len(VALUES) + 4


@pytest.mark.parametrize(
    ("call", "status", "words"),
    [
        (
            lambda client: client.get_model_metadata("unknown"),
            "404",
            "Request for unknown model: 'unknown' is not found",
        ),
        (lambda client: client.get_model_metadata("floats", "9"), "404", "version 9 is not found"),
        (lambda client: client.get_model_config("floats", "one"), "400", "must be an integer"),
        (lambda client: client.get_inference_statistics("unknown"), "400", "is not available"),
        (lambda client: client.infer("floats", [tensor("z", [[1.0]])]), "400", "[request id: <id_unknown>]"),
        (lambda client: client.load_model("../x"), "404", "Not Found"),
        (lambda client: client.load_model("unknown"), "500", "failed to load 'unknown'"),
        (lambda client: client.register_cuda_shared_memory("r", b"AAAA", 0, 8), "400", "GPU"),
        (lambda client: client.update_log_settings({"log_file": "x"}), "501", "log file"),
        (lambda client: client.update_log_settings({"log_info": [1]}), "400", "'log_info' must be"),
        (lambda client: client.update_trace_settings(settings={"trace_rate": 1.5}), "400", "'trace_rate' must be"),
    ],
)
def test_errors_have_tritons_status_and_a_message(client: Any, call: Any, status: str, words: str) -> None:
    """A refused request answers the status that its error has in Triton, with the error's own words."""
    with pytest.raises(InferenceServerException) as caught:
        call(client)
    assert caught.value.status() == status
    assert words in caught.value.message()


def test_models_are_loaded_and_unloaded(client: Any) -> None:
    """Load and unload requests act as over gRPC, a configuration of the request's own included."""
    client.unload_model("spare")
    assert not client.is_model_ready("spare")
    client.load_model("spare", config=json.dumps({"backend": "identity", "max_batch_size": 3}))
    assert client.get_model_config("spare")["max_batch_size"] == 3
    with pytest.raises(InferenceServerException, match="failed to load"):
        client.load_model("spare", files={"file:1/model": b"\x00\xff"})


def test_settings_are_read_and_changed(client: Any) -> None:
    """Log and trace settings have their own types, and null sets one back."""
    assert client.update_log_settings({"log_info": False, "log_verbose_level": 1})["log_info"] is False
    assert client.get_log_settings()["log_verbose_level"] == 1
    settings = client.update_trace_settings("floats", {"trace_level": ["TIMESTAMPS"], "trace_rate": "7"})
    assert (settings["trace_level"], settings["trace_rate"]) == (["TIMESTAMPS"], "7")
    client.update_trace_settings("floats", {"trace_level": None, "trace_rate": None})
    assert client.get_trace_settings("floats") == client.get_trace_settings()
    assert client.get_trace_settings()["trace_level"] == ["OFF"]


@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("datatype", VALUES)
def test_every_datatype_goes_there_and_back(port: int, datatype: str, binary: bool) -> None:
    """JSON elements of each datatype, its extremes among them, come back as they went in, as JSON or as binary data."""
    name = "BYTES" if datatype == "STRING" else datatype
    body = {
        "inputs": [{"name": "x", "datatype": name, "shape": [1, 2], "data": [VALUES[datatype]]}],
        "outputs": [{"name": "yx", "parameters": {"binary_data": binary}}],
    }
    with triton.InferenceServerClient(f"127.0.0.1:{port}") as client:
        status, raw = request(port, "POST", f"/v2/models/of-{datatype}/versions/1/infer", json.dumps(body))
        assert status == 200, raw
        if not binary:
            (output,) = json.loads(raw)["outputs"]
            dtype = np.float32 if datatype == "FP32" else np.float16 if datatype == "FP16" else object
            assert np.array(output["data"], dtype).tolist() == np.array(VALUES[datatype], dtype).tolist()
            return
        header = raw.index(b"]}", raw.index(b'"outputs"')) + 2
        result = client.parse_response_body(raw, header_length=header).as_numpy("yx")
        sent = [text.encode() for text in VALUES["STRING"]] if datatype == "STRING" else VALUES[datatype]
        assert result.tolist() == np.array([sent], result.dtype).tolist()


@pytest.mark.parametrize("algorithm", [None, "gzip", "deflate"])
def test_bodies_may_be_compressed(client: Any, algorithm: str | None) -> None:
    """gzip and deflate do for requests and for answers."""
    values = np.arange(30_000, dtype=np.float32).reshape(1, -1)
    result = client.infer(
        "floats",
        [tensor("x", values)],
        request_id="seven",
        request_compression_algorithm=algorithm,
        response_compression_algorithm=algorithm,
    )
    assert np.array_equal(result.as_numpy("yx"), values)
    assert result.get_response()["id"] == "seven"


def test_binary_and_json_mix(client: Any) -> None:
    """Each input and each output chooses between JSON and binary data for itself."""
    inputs = [
        tensor("a", np.array([[1, 2]], np.int32), binary=False),
        tensor("b", [["one", "two"]]),
    ]
    outputs = [triton.InferRequestedOutput("ya"), triton.InferRequestedOutput("yb", binary_data=False)]
    result = client.infer("two", inputs, outputs=outputs)
    assert result.as_numpy("ya").tolist() == [[1, 2]]
    assert result.get_output("ya")["parameters"] == {"binary_data_size": 8}
    assert result.get_output("yb")["data"] == ["one", "two"]


def test_classification(client: Any) -> None:
    """An output may be asked for as its best classes."""
    result = client.infer(
        "floats",
        [tensor("x", np.array([[0.25, 0.75, 0.5]], np.float32))],
        outputs=[triton.InferRequestedOutput("yx", class_count=2)],
    )
    assert result.as_numpy("yx").tolist() == [[b"0.750000:1", b"0.500000:2"]]


def test_shared_memory(client: Any) -> None:
    """Tensors go through a registered region, which is listed with its place and size."""
    values = np.array([[1.5, 2.5]], np.float32)
    handle = shared_memory.create_shared_memory_region("region", "/lookwire-test-http", 64)
    try:
        shared_memory.set_shared_memory_region(handle, [values])
        client.register_system_shared_memory("region", "/lookwire-test-http", 64)
        assert client.get_system_shared_memory_status("region") == [
            {"name": "region", "key": "/lookwire-test-http", "offset": 0, "byte_size": 64}
        ]
        with pytest.raises(InferenceServerException, match="already in manager") as caught:
            client.register_system_shared_memory("region", "/lookwire-test-http", 64)
        assert caught.value.status() == "409"
        given = triton.InferInput("x", [1, 2], "FP32")
        given.set_shared_memory("region", 8)
        wanted = triton.InferRequestedOutput("yx")
        wanted.set_shared_memory("region", 8, offset=16)
        result = client.infer("floats", [given], outputs=[wanted])
        output = result.get_output("yx")
        assert "data" not in output
        assert shared_memory.get_contents_as_numpy(handle, np.float32, [1, 2], 16).tolist() == values.tolist()
        client.unregister_system_shared_memory("region")
        client.unregister_system_shared_memory()
        assert client.get_system_shared_memory_status() == []
    finally:
        shared_memory.destroy_shared_memory_region(handle)


async def test_the_asyncio_client(port: int) -> None:
    """tritonclient's asyncio client, which always offers to take compressed answers, gets its tensors."""
    async with triton_aio.InferenceServerClient(f"127.0.0.1:{port}") as client:
        result = await client.infer("floats", [tensor("x", np.array([[1.5, 2.5]], np.float32))])
        assert result.as_numpy("yx").tolist() == [[1.5, 2.5]]


def test_a_body_without_json_is_the_only_input(port: int) -> None:
    """With Inference-Header-Content-Length 0 the whole body is the data of a model's one input."""

    def infer(model: str, body: bytes) -> tuple[int, Any]:
        status, answer = request(port, "POST", f"/v2/models/{model}/infer", body, Inference_Header_Content_Length="0")
        return status, json.loads(answer)

    status, answer = infer("floats", np.array([1.5, 2.5], np.float32).tobytes())
    assert (status, answer["outputs"][0]["shape"], answer["outputs"][0]["data"]) == (200, [1, 2], [1.5, 2.5])
    assert infer("text", "schön".encode())[1]["outputs"][0]["data"] == ["schön"]
    assert infer("two", b"1234") == (400, {"error": "a body without JSON is for models of one input; 'two' has 2"})
    status, answer = infer("of-INT32", b"1234")
    assert status == 400
    assert "4 bytes do not fill input 'x'" in answer["error"]


def test_large_json_does_not_hold_up_others(client: Any, port: int) -> None:
    """While megabytes of JSON are parsed, other requests are answered."""
    values = [0.123456789 + index for index in range(300_000)]
    body = json.dumps({"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, len(values)], "data": values}]})
    assert len(body) > 4 << 20
    answers: list[int] = []
    big = threading.Thread(target=lambda: answers.append(request(port, "POST", "/v2/models/floats/infer", body)[0]))
    big.start()
    meanwhile = 0
    while big.is_alive():
        assert client.is_server_live()
        meanwhile += 1
    assert answers == [200]
    assert meanwhile >= 10


def test_large_text_is_put_into_json_in_a_thread() -> None:
    """A reply of few but long elements counts by its bytes, so that the event loop is not held up by it."""
    reply = pb.ModelInferResponse(raw_output_contents=[bytes(SMALL), bytes(SMALL)])
    for name in ("a", "b"):
        reply.outputs.add(name=name, datatype="BYTES", shape=[1])
    assert infer.json_size(reply, infer.InferCall(pb.ModelInferRequest(), {"a": True})) == SMALL


def test_a_large_model_file_is_decoded_in_a_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The base64 of an uploaded file is not read on the event loop."""
    threads: list[str] = []

    def from_base64(text: str, where: str) -> bytes:
        threads.append(threading.current_thread().name)
        return b""

    monkeypatch.setattr(routes, "from_base64", from_base64)
    body = json.dumps({"parameters": {"config": "{}", "file:1/x": "A" * 2 * SMALL}})
    write_identity(tmp_path, "floats", ("x", "FP32", -1))
    with serving(tmp_path) as port:
        request(port, "POST", "/v2/repository/models/floats/load", body)
    assert [name.startswith("http") for name in threads] == [True]
