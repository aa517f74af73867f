"""Requests of the V2 protocol that are wrong: which, and in which words they are refused."""

from collections.abc import Callable, Iterator
from typing import Any

import grpc
import numpy as np
import pytest
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc

from lookwire.local import LocalServer
from tests.server import v2_models
from tests.server.v2_models import raw_request, refused, strings

Change = Callable[[pb.ModelInferRequest], object]


@pytest.fixture(scope="module")
def stub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The bare stub: for requests that the client would not let out."""
    models = v2_models.write(tmp_path_factory.mktemp("models"))
    with LocalServer(models) as server, grpc.insecure_channel(server.address) as channel:
        yield service_pb2_grpc.GRPCInferenceServiceStub(channel)


def add_input(
    name: str = "INPUT0", datatype: str = "FP32", shape: tuple[int, ...] = (1, 2), raw: bytes | None = None
) -> Change:
    def change(request: pb.ModelInferRequest) -> None:
        request.inputs.add(name=name, datatype=datatype, shape=shape)
        if raw is not None:
            request.raw_input_contents.append(raw)

    return change


def add_typed(datatype: str, shape: tuple[int, ...], **contents: object) -> Change:
    return lambda request: request.inputs.add(
        name="INPUT0", datatype=datatype, shape=shape, contents=pb.InferTensorContents(**contents)
    )


def ask(name: str = "OUTPUT0", **parameters: pb.InferParameter) -> Change:
    return lambda request: request.outputs.add(name=name, parameters=parameters)


def all_of(*changes: Change) -> Change:
    return lambda request: [change(request) for change in changes]


def parameter(name: str, **value: object) -> Change:
    return lambda request: request.parameters[name].CopyFrom(pb.InferParameter(**value))


GOOD = add_input(raw=bytes(8))
STRING_SHAPE = (1, 16)

INVALID: dict[str, tuple[str, Change, str]] = {
    # sizes
    "too many bytes": (
        "floats",
        add_input(shape=(1, 8), raw=bytes(40)),
        "input byte size mismatch for input 'INPUT0' for model 'floats'. Expected 32, got 40",
    ),
    "too few bytes": ("floats", add_input(shape=(1, 8), raw=bytes(31)), "Expected 32, got 31"),
    "too many typed": ("floats", add_typed("FP32", (1, 1), fp32_contents=[1, 2]), "Expected 4, got 8"),
    "too few strings": (
        "strings",
        add_input(datatype="BYTES", shape=STRING_SHAPE, raw=strings(*[b"1"] * 14)),
        "expected 16 string elements for inference input 'INPUT0' for model 'strings', got 14",
    ),
    "too many strings": (
        "strings",
        add_input(datatype="BYTES", shape=STRING_SHAPE, raw=strings(*[b"1"] * 18)),
        "unexpected number of string elements 17 for inference input 'INPUT0' for model 'strings', expecting 16",
    ),
    "too few typed strings": (
        "strings",
        add_typed("BYTES", STRING_SHAPE, bytes_contents=[b""]),
        "expected 16 string elements for inference input 'INPUT0' for model 'strings', got 1",
    ),
    "string length cut short": (
        "strings",
        add_input(datatype="BYTES", shape=(1, 1), raw=b"\1\0"),
        "incomplete string length indicator for inference input 'INPUT0'",
    ),
    "string cut short": (
        "strings",
        add_input(datatype="BYTES", shape=(1, 1), raw=b"\5\0\0\0abc"),
        "expecting string of length 5 but only 3 bytes available",
    ),
    # sources
    "no data": ("floats", add_input(), "unable to find data for input tensor 'INPUT0' for model 'floats' in request"),
    "raw and typed": (
        "types",
        all_of(
            add_typed("BOOL", (1,), bool_contents=[True]),
            add_input("INPUT10", "FP32", (1,), bytes(4)),
        ),
        "contents field must not be specified when using raw_input_contents for 'INPUT0' for model 'types'",
    ),
    "surplus raw contents": (
        "floats",
        all_of(GOOD, lambda request: request.raw_input_contents.append(b"more")),
        "raw_input_contents has 2 entries for model 'floats', but only 1 inputs take their data from there",
    ),
    "wrong typed field": (
        "floats",
        add_typed("FP32", (1, 1), fp64_contents=[1.0]),
        "unexpected explicit tensor data for input tensor 'INPUT0' for model 'floats' of type 'FP32'",
    ),
    "two typed fields": (
        "floats",
        add_typed("FP32", (1, 1), fp32_contents=[1.0], fp64_contents=[1.0]),
        "unexpected explicit tensor data",
    ),
    "typed element out of range": (
        "types",
        lambda request: request.inputs.add(
            name="INPUT1", datatype="INT8", shape=[1], contents=pb.InferTensorContents(int_contents=[128])
        ),
        "does not fit INT8",
    ),
    "shared memory": (
        "floats",
        lambda request: request.inputs.add(
            name="INPUT0",
            datatype="FP32",
            shape=[1, 1],
            parameters={
                "shared_memory_region": pb.InferParameter(string_param="r"),
                "shared_memory_byte_size": pb.InferParameter(int64_param=4),
            },
            contents=pb.InferTensorContents(fp32_contents=[1]),
        ),
        "unexpected 'content' provided when using shared memory for input tensor 'INPUT0'",
    ),
    # names, types, shapes
    "input twice": ("floats", all_of(GOOD, GOOD), "input 'INPUT0' already exists in request"),
    "output twice": ("floats", all_of(GOOD, ask(), ask()), "output 'OUTPUT0' already exists in request"),
    "unknown input": (
        "floats",
        add_input("nonsense", raw=bytes(8)),
        "unexpected inference input 'nonsense' for model 'floats'",
    ),
    "unknown output": (
        "floats",
        all_of(GOOD, ask("nonsense")),
        "unexpected inference output 'nonsense' for model 'floats'",
    ),
    "wrong datatype": (
        "floats",
        add_input(datatype="FP64", raw=bytes(16)),
        "inference input 'INPUT0' data-type is 'FP64', but model 'floats' expects 'FP32'",
    ),
    "unknown datatype": ("floats", add_input(datatype="BF16", raw=bytes(4)), "data-type is 'BF16'"),
    "negative dimension": ("floats", add_input(shape=(1, -1), raw=bytes(8)), "must be >= 0"),
    "too many dimensions": ("floats", add_input(shape=(1,) * 40, raw=bytes(4)), "has 40 dimensions"),
    "shape beyond any array": ("plain", add_input(shape=(2**62, 2**62, 0), raw=b""), "no tensor can have"),
    "no inputs": (
        "required",
        all_of(),
        "expected 3 inputs but got 0 inputs for model 'required'. Got input(s) [], but missing required input(s) "
        "['INPUT0','INPUT1','INPUT2']. Please provide all required input(s).",
    ),
    "some inputs": (
        "some",
        add_input(shape=(1,), raw=bytes(4)),
        "expected number of inputs between 2 and 3 but got 1 inputs for model 'some'. Got input(s) ['INPUT0'], but missing "
        "required input(s) ['INPUT1']. Please provide all required input(s).",
    ),
    # parameters
    "version": (
        "floats",
        all_of(GOOD, lambda request: setattr(request, "model_version", "one")),
        "failed to get model version from specified version string 'one'",
    ),
    "sequence": ("floats", all_of(GOOD, parameter("sequence_id", int64_param=5)), "sequences are not served"),
    "sequence start": (
        "floats",
        all_of(GOOD, parameter("sequence_start", bool_param=True)),
        "sequences are not served",
    ),
    "sequence_id type": (
        "floats",
        all_of(GOOD, parameter("sequence_id", bool_param=True)),
        "invalid value type for 'sequence_id' parameter, expected int64_param or string_param",
    ),
    "priority type": (
        "floats",
        all_of(GOOD, parameter("priority", string_param="1")),
        "invalid value type for 'priority' parameter, expected int64_param or uint64_param",
    ),
    "negative priority": (
        "floats",
        all_of(GOOD, parameter("priority", int64_param=-1)),
        "invalid value for 'priority', expected value >= 0",
    ),
    "timeout type": (
        "floats",
        all_of(GOOD, parameter("timeout", uint64_param=1)),
        "invalid value type for 'timeout' parameter, expected int64_param",
    ),
    "reserved parameter": (
        "floats",
        all_of(GOOD, parameter("triton_else", bool_param=True)),
        "parameter keys starting with 'triton_' are reserved for Triton usage",
    ),
    "custom parameter type": (
        "floats",
        all_of(GOOD, parameter("mine", uint64_param=1)),
        "invalid value type for 'mine' parameter, expected int64_param, bool_param, string_param or double_param",
    ),
    "no classes": ("floats", all_of(GOOD, ask(classification=pb.InferParameter(int64_param=0))), "'classification'"),
    "classes of strings": (
        "strings",
        all_of(
            add_input(datatype="BYTES", shape=(1, 1), raw=strings(b"x")),
            ask(classification=pb.InferParameter(int64_param=1)),
        ),
        "class result not available for output due to unsupported type 'BYTES'",
    ),
    "classes of a million scores": (
        "floats",
        all_of(
            add_input(shape=(1, 1_000_001), raw=bytes(4_000_004)),
            ask(classification=pb.InferParameter(int64_param=1)),
        ),
        "classification output tensor too large",
    ),
    "classes into shared memory": (
        "floats",
        all_of(
            GOOD,
            ask(
                classification=pb.InferParameter(int64_param=1),
                shared_memory_region=pb.InferParameter(string_param="r"),
                shared_memory_byte_size=pb.InferParameter(int64_param=1),
            ),
        ),
        "output can't set both 'shared_memory_region' and 'classification'",
    ),
    "region without size": (
        "floats",
        all_of(GOOD, ask(shared_memory_region=pb.InferParameter(string_param="r"))),
        "'shared_memory_byte_size' must be specified along with 'shared_memory_region'",
    ),
}


@pytest.mark.parametrize("case", INVALID)
def test_wrong_requests_are_explained(stub: Any, case: str) -> None:
    """A request that is wrong is INVALID_ARGUMENT in Triton's words after its id, and the next one is answered."""
    model, change, words = INVALID[case]
    request = pb.ModelInferRequest(model_name=model, id="r-1")
    change(request)

    code, message = refused(stub, request)

    assert code is grpc.StatusCode.INVALID_ARGUMENT, message
    assert message.startswith("[request id: r-1] ")
    assert words in message
    assert stub.ModelInfer(raw_request("floats", np.ones((1, 2), np.float32))).raw_output_contents


def test_request_without_an_id_is_called_unknown(stub: Any) -> None:
    """The words about a request that has no id begin with <id_unknown>."""
    _, message = refused(stub, raw_request("floats", np.ones((1, 2), np.float64), datatype="FP64"))

    assert message.startswith("[request id: <id_unknown>] ")
