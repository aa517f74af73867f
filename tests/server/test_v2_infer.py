"""ModelInfer of the V2 protocol: where tensors come from, and what comes back."""

import struct
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2, service_pb2_grpc
from tritonclient.grpc import service_pb2 as pb
from tritonclient.utils import InferenceServerException

from lookwire.local import LocalServer
from lookwire_server.errors import InvalidArgument
from lookwire_server.models.config import from_message
from lookwire_server.models.model import Parameter, Request, Response
from lookwire_server.rpc.v2.outputs import check_size
from lookwire_server.rpc.v2.servicer import InferenceServicer
from tests.server import v2_models
from tests.server.v2_models import raw_request, refused, strings

SIXTEEN = np.arange(16, dtype=np.int32)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalServer]:
    with LocalServer(v2_models.write(tmp_path_factory.mktemp("models"))) as server:
        yield server


@pytest.fixture(scope="module")
def client(server: LocalServer) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(server.address) as client:
        yield client


@pytest.fixture(scope="module")
def stub(server: LocalServer) -> Iterator[Any]:
    """The bare stub: for requests that the client would not let out."""
    with grpc.insecure_channel(server.address) as channel:
        yield service_pb2_grpc.GRPCInferenceServiceStub(channel)


def tensor(name: str, array: np.ndarray[Any, Any], datatype: str) -> triton.InferInput:
    made = triton.InferInput(name, list(array.shape), datatype)
    made.set_data_from_numpy(array)
    return made


def test_sums_of_raw_contents(client: triton.InferenceServerClient) -> None:
    """Raw tensors go to the model and come back raw, with the model's name, its version and the request's id."""
    inputs = [tensor("INPUT0", SIXTEEN[None], "INT32"), tensor("INPUT1", np.ones((1, 16), np.int32), "INT32")]

    result = client.infer("simple", inputs, request_id="seven", model_version="1")

    response = result.get_response()
    assert (response.model_name, response.model_version, response.id) == ("simple", "1", "seven")
    assert [output.name for output in response.outputs] == ["OUTPUT0", "OUTPUT1"]
    np.testing.assert_array_equal(result.as_numpy("OUTPUT0"), SIXTEEN[None] + 1)
    np.testing.assert_array_equal(result.as_numpy("OUTPUT1"), SIXTEEN[None] - 1)


def test_newest_version_answers_where_none_is_named(client: triton.InferenceServerClient) -> None:
    """Without a version the highest one answers."""
    inputs = [tensor(name, SIXTEEN[None], "INT32") for name in ("INPUT0", "INPUT1")]

    assert client.infer("simple", inputs).get_response().model_version == "2"


def test_only_outputs_asked_for(client: triton.InferenceServerClient) -> None:
    """The response holds the outputs that were asked for, in that order."""
    inputs = [tensor(name, SIXTEEN[None], "INT32") for name in ("INPUT0", "INPUT1")]
    names = ["OUTPUT1", "OUTPUT0"]

    one = client.infer("simple", inputs, outputs=[triton.InferRequestedOutput("OUTPUT1")])
    both = client.infer("simple", inputs, outputs=[triton.InferRequestedOutput(name) for name in names])

    assert [output.name for output in one.get_response().outputs] == ["OUTPUT1"]
    assert [output.name for output in both.get_response().outputs] == names
    np.testing.assert_array_equal(both.as_numpy("OUTPUT0"), 2 * SIXTEEN[None])


TYPED: dict[str, tuple[str, list[Any]]] = {
    "BOOL": ("bool_contents", [True, False]),
    "INT8": ("int_contents", [-128, 127]),
    "INT16": ("int_contents", [-32768, 32767]),
    "INT32": ("int_contents", [-(2**31), 2**31 - 1]),
    "INT64": ("int64_contents", [-(2**63), 2**63 - 1]),
    "UINT8": ("uint_contents", [0, 255]),
    "UINT16": ("uint_contents", [0, 65535]),
    "UINT32": ("uint_contents", [0, 2**32 - 1]),
    "UINT64": ("uint64_contents", [0, 2**64 - 1]),
    "FP32": ("fp32_contents", [0.5, -1.5]),
    "FP64": ("fp64_contents", [0.1, -1e300]),
    "BYTES": ("bytes_contents", [b"", b"\xff\x00text"]),
}

FORMATS = dict(zip(TYPED, "?bhiqBHIQfd", strict=False))


@pytest.mark.parametrize("datatype", TYPED)
def test_typed_contents(stub: Any, datatype: str) -> None:
    """Elements of typed contents come back raw, whatever their type."""
    field, elements = TYPED[datatype]
    number = v2_models.TYPES.index("STRING" if datatype == "BYTES" else datatype)
    request = pb.ModelInferRequest(model_name="types")
    given = request.inputs.add(name=f"INPUT{number}", datatype=datatype, shape=[2])
    getattr(given.contents, field).extend(elements)
    request.outputs.add(name=f"OUTPUT{number}")

    response = stub.ModelInfer(request)

    (output,) = response.outputs
    assert (output.datatype, list(output.shape)) == (datatype, [2])
    expected = strings(*elements) if datatype == "BYTES" else struct.pack(f"<2{FORMATS[datatype]}", *elements)
    assert response.raw_output_contents[0] == expected


def test_half_precision_and_strings_travel_raw(client: triton.InferenceServerClient) -> None:
    """FP16 and BYTES tensors come back as they were sent, empty and non-ASCII elements included."""
    halves = np.array([0.5, -2.0, np.inf], np.float16)
    texts = np.array([["", "ä\N{SNOWMAN}", "x" * 300]], np.object_)

    half = v2_models.TYPES.index("FP16")
    back = client.infer("types", [tensor(f"INPUT{half}", halves, "FP16")]).as_numpy(f"OUTPUT{half}")
    words = client.infer("strings", [tensor("INPUT0", texts, "BYTES")]).as_numpy("OUTPUT0")

    np.testing.assert_array_equal(back, halves)
    assert [[element.decode() for element in row] for row in words] == texts.tolist()


def test_tensors_without_elements(client: triton.InferenceServerClient) -> None:
    """A dimension may be 0: the output is there, with an empty raw entry."""
    result = client.infer("plain", [tensor("INPUT0", np.empty((0, 2), np.float32), "FP32")])

    response = result.get_response()
    assert (list(response.outputs[0].shape), list(response.raw_output_contents)) == ([0, 2], [b""])


def test_inputs_that_are_optional_may_be_left_out(client: triton.InferenceServerClient) -> None:
    """A model all of whose inputs are optional answers a request without any."""
    assert client.infer("types", []).get_response().outputs


def test_large_string_tensors_do_not_hold_others_up(server: LocalServer, client: triton.InferenceServerClient) -> None:
    """While half a million strings are taken apart, other calls are answered within a fraction of that time."""
    texts = np.array([b"%d" % number for number in range(500_000)], np.object_)[None]
    request = pb.ModelInferRequest(model_name="strings", raw_input_contents=[strings(*texts[0])])
    request.inputs.add(name="INPUT0", datatype="BYTES", shape=texts.shape)
    options = [("grpc.max_receive_message_length", -1)]
    waits = []

    with grpc.insecure_channel(server.address, options=options) as channel, ThreadPoolExecutor(1) as pool:
        started = time.monotonic()
        large = pool.submit(service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer, request)
        while not large.done():
            asked = time.monotonic()
            assert client.is_server_live()
            waits.append(time.monotonic() - asked)
        took = time.monotonic() - started

    assert large.result().raw_output_contents[0] == request.raw_input_contents[0]
    assert max(waits) < took / 2


def test_unknown_models_and_versions(stub: Any) -> None:
    """A model or version that is not there is NOT_FOUND, in words that clients look for."""
    model = refused(stub, raw_request("nobody", np.ones((1, 2), np.float32)))
    version = refused(stub, raw_request("floats", np.ones((1, 2), np.float32), model_version="99"))

    assert model == (grpc.StatusCode.NOT_FOUND, "Request for unknown model: 'nobody' is not found")
    assert version[0] is grpc.StatusCode.NOT_FOUND
    assert version[1].startswith("Request for unknown model: 'floats' version 99 is not found")


def test_queue_full_and_queue_timeout_are_unavailable(client: triton.InferenceServerClient) -> None:
    """A full queue and a wait beyond the request's timeout are UNAVAILABLE, which clients try again; in Triton's words."""
    inputs = [tensor("INPUT0", np.ones((1, 1), np.float32), "FP32")]

    def outcomes(model: str, **options: Any) -> list[str]:
        results: list[str] = []
        calls = 4
        for _ in range(calls):
            client.async_infer(model, inputs, lambda result, error: results.append(str(error)), **options)
        deadline = time.monotonic() + 10
        while len(results) < calls and time.monotonic() < deadline:
            time.sleep(0.01)
        return results

    full = outcomes("one_at_a_time")
    late = outcomes("patient", timeout=20_000)

    assert any("StatusCode.UNAVAILABLE" in error and "Exceeds maximum queue size" in error for error in full)
    assert [error for error in late if error != "None"] == ["[StatusCode.UNAVAILABLE] Request timeout expired"] * 3


def test_classes_of_each_row(client: triton.InferenceServerClient) -> None:
    """An output asked for as classes is BYTES "score:index:label", the best first, labels as far as there are any."""
    scores = np.array([[0.1, 0.7, 0.2, 0.7], [4.0, -1.0, 2.5, np.nan]], np.float32)

    result = client.infer(
        "floats", [tensor("INPUT0", scores, "FP32")], outputs=[triton.InferRequestedOutput("OUTPUT0", class_count=3)]
    )

    output = result.get_output("OUTPUT0")
    assert (output.datatype, list(output.shape)) == ("BYTES", [2, 3])
    assert result.as_numpy("OUTPUT0").tolist() == [
        [b"0.700000:1:dog", b"0.700000:3", b"0.200000:2:hat"],
        [b"4.000000:0:cat", b"2.500000:2:hat", b"-1.000000:1:dog"],
    ]


def test_classes_of_whole_numbers_are_as_many_as_there_are(client: triton.InferenceServerClient) -> None:
    """Whole scores are written without a point, and a row has at most as many classes as scores."""
    inputs = [tensor(name, SIXTEEN[None], "INT32") for name in ("INPUT0", "INPUT1")]

    result = client.infer("simple", inputs, outputs=[triton.InferRequestedOutput("OUTPUT0", class_count=99)])

    classes = result.as_numpy("OUTPUT0")
    assert classes.shape == (1, 16)
    assert classes[0, :2].tolist() == [b"30:15", b"28:14"]


def test_custom_parameters_and_harmless_reserved_ones_are_taken(stub: Any) -> None:
    """Parameters of the four types for models, and reserved ones that ask for nothing, do not stop a request."""
    request = raw_request("floats", np.ones((1, 2), np.float32))
    request.parameters["text"].string_param = "x"
    request.parameters["number"].int64_param = 1
    request.parameters["ratio"].double_param = 0.5
    request.parameters["flag"].bool_param = True
    request.parameters["sequence_id"].int64_param = 0
    request.parameters["sequence_start"].bool_param = False
    request.parameters["priority"].uint64_param = 0
    request.parameters["triton_enable_empty_final_response"].bool_param = True

    assert stub.ModelInfer(request).raw_output_contents[0] == request.raw_input_contents[0]


def test_shared_memory_is_off_unless_allowed(client: triton.InferenceServerClient, stub: Any) -> None:
    """Without --allow-client-shm no region can be registered or used, and the words say how to allow it."""
    request = pb.ModelInferRequest(model_name="floats")
    given = request.inputs.add(name="INPUT0", datatype="FP32", shape=[1, 1])
    given.parameters["shared_memory_region"].string_param = "r"
    given.parameters["shared_memory_byte_size"].int64_param = 4

    used = refused(stub, request)
    with pytest.raises(InferenceServerException) as registered:
        client.register_system_shared_memory("r", "/r", 4)

    assert used[0] is grpc.StatusCode.UNIMPLEMENTED
    assert "Client shared memory is disabled. Start the server with '--allow-client-shm=true'" in used[1]
    assert "Client shared memory is disabled" in registered.value.message()
    assert not client.get_system_shared_memory_status().regions
    assert "system_shared_memory" not in client.get_server_metadata().extensions


class Recorder:
    """A model, and a repository of it, that keeps the request it got."""

    def __init__(self) -> None:
        message = model_config_pb2.ModelConfig()
        text_format.Parse(f'name: "floats" backend: "identity" {v2_models.IDENTITIES["floats"]}', message)
        self.config = from_message(message)
        self.version = 7
        self.request: Request

    def get(self, name: str, version: int | None) -> "Recorder":
        return self

    def ready(self) -> bool:
        return True

    def check_wait(self, deadline: float | None) -> None:
        """Never refuses."""

    async def infer(self, request: Request) -> Response:
        self.request = request
        parameters: dict[str, Parameter] = {"flag": True, "count": 3, "ratio": 0.5, "word": "x"}
        return Response({"OUTPUT0": request.inputs["INPUT0"]}, 0.0, 0.0, parameters)


class Call:
    def time_remaining(self) -> float:
        return 10.0


async def test_models_get_what_the_request_says() -> None:
    """Priority, timeout in seconds, deadline, outputs and the caller's own parameters reach the model; its own come back."""
    recorder = Recorder()
    request = raw_request("floats", np.ones((1, 2), np.float32), id="seven")
    request.outputs.add(name="OUTPUT0")
    request.parameters["priority"].uint64_param = 2
    request.parameters["timeout"].int64_param = 1_500_000
    request.parameters["mine"].string_param = "x"
    servicer: Any = InferenceServicer(recorder)  # type: ignore[arg-type]  # of a repository it needs `get` and `ready` here

    response = await servicer.ModelInfer(request, Call())

    got = recorder.request
    assert (got.priority, got.timeout, got.id, got.outputs, got.parameters) == (
        2,
        1.5,
        "seven",
        ("OUTPUT0",),
        {"mine": "x"},
    )
    assert got.deadline is not None
    assert 9 < got.deadline - time.monotonic() <= 10
    assert response.model_version == "7"
    assert {name: parameter.WhichOneof("parameter_choice") for name, parameter in response.parameters.items()} == {
        "flag": "bool_param",
        "count": "int64_param",
        "ratio": "double_param",
        "word": "string_param",
    }


def test_responses_that_no_message_can_carry_are_refused() -> None:
    """A response of 2 GiB or more is INVALID_ARGUMENT with its size."""
    with pytest.raises(InvalidArgument, match="Response has byte size 2147483648 which exceeds gRPC's byte size limit"):
        check_size(2**31)
