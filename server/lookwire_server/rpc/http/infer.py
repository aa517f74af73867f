"""ModelInfer over HTTP: a JSON header, and after it the tensors that travel as binary data."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain
from math import prod
from typing import Any

from tritonclient.grpc import model_config_pb2
from tritonclient.grpc import service_pb2 as pb

from lookwire_server.errors import InvalidArgument
from lookwire_server.models import datatypes
from lookwire_server.rpc.http import elements
from lookwire_server.rpc.http.document import check_object, member, parse

INT64 = range(-(1 << 63), 1 << 63)
UINT64 = range(1 << 64)


@dataclass(frozen=True, slots=True)
class InferCall:
    """A request for the servicer, and the outputs to answer as binary data: those set in `binary`, else by `binary_default`."""

    message: pb.ModelInferRequest
    binary: Mapping[str, bool]
    binary_default: bool = False


def from_body(body: bytes, length: int, model: str, version: str) -> InferCall:
    """The call that a body makes, of which the first `length` bytes are JSON.

    Raises InvalidArgument that says where the body is wrong.
    """
    view = memoryview(body)
    document = parse(view[:length])
    message = pb.ModelInferRequest(model_name=model, model_version=version, id=member(document, "id", str, default=""))
    parameters = member(document, "parameters", dict, default={})
    binary_default = member(parameters, "binary_data_output", bool, "parameters", False)
    set_parameters(message, parameters, "parameters", without="binary_data_output")
    rest = view[length:]
    for index, tensor in enumerate(member(document, "inputs", list)):
        rest = add_input(message, tensor, f"inputs[{index}]", rest)
    if rest:
        raise InvalidArgument(f"{len(rest)} bytes follow the binary data of the inputs; check each binary_data_size")
    binary = {}
    for index, output in enumerate(member(document, "outputs", list, default=[])):
        where = f"outputs[{index}]"
        check_object(output, where)
        added = message.outputs.add(name=member(output, "name", str, where))
        parameters = member(output, "parameters", dict, where, {})
        set_parameters(added, parameters, f"{where}.parameters", without="binary_data")
        binary[added.name] = member(parameters, "binary_data", bool, f"{where}.parameters", binary_default)
    return InferCall(message, binary, binary_default)


def json_length(header: str, size: int) -> int:
    """The length of the JSON in a body of `size` bytes, by its Inference-Header-Content-Length."""
    if not (header.isascii() and header.isdecimal()) or len(header) > 20 or int(header) > size:
        raise InvalidArgument(
            f"Inference-Header-Content-Length must be 0 to {size}, the size of the body, got '{header[:20]}'"
        )
    return int(header)


def add_input(message: pb.ModelInferRequest, tensor: Any, where: str, rest: memoryview) -> memoryview:
    """Adds an input, its data from the JSON or from the front of `rest`; returns what is left of that."""
    check_object(tensor, where)
    shape = member(tensor, "shape", list, where)
    for index, size in enumerate(shape):
        if type(size) is not int or size not in INT64:
            raise InvalidArgument(f"'{where}.shape[{index}]' must be an integer of 64 bits")
    added = message.inputs.add(
        name=member(tensor, "name", str, where), datatype=member(tensor, "datatype", str, where), shape=shape
    )
    parameters = member(tensor, "parameters", dict, where, {})
    set_parameters(added, parameters, f"{where}.parameters", without="binary_data_size")
    shared, binary = "shared_memory_region" in parameters, "binary_data_size" in parameters
    if [shared, binary, "data" in tensor].count(True) != 1:
        raise InvalidArgument(
            f"{where} ('{added.name}') must have one of 'data', the parameter 'binary_data_size' and the parameter "
            "'shared_memory_region'"
        )
    if binary:
        size = member(parameters, "binary_data_size", int, f"{where}.parameters")
        if not 0 <= size <= len(rest):
            raise InvalidArgument(
                f"'{where}.parameters.binary_data_size' is {size}, but {len(rest)} bytes of binary data are left"
            )
        message.raw_input_contents.append(bytes(rest[:size]))
        return rest[size:]
    if not shared:
        message.raw_input_contents.append(elements.to_raw(tensor["data"], added.datatype, where))
    return rest


def set_parameters(holder: Any, parameters: Mapping[str, Any], where: str, *, without: str) -> None:
    """Sets the parameters of a request, an input or an output, except the one that is HTTP's own."""
    for name, content in parameters.items():
        if name == without:
            continue
        parameter = holder.parameters[name]
        match content:
            case bool():
                parameter.bool_param = content
            case int() if content in INT64:
                parameter.int64_param = content
            case int() if content in UINT64:
                parameter.uint64_param = content
            case float():
                parameter.double_param = content
            case str():
                parameter.string_param = content
            case _:
                raise InvalidArgument(f"'{where}.{name}' must be a string, a number of 64 bits, true or false")


def from_binary(body: bytes, config: model_config_pb2.ModelConfig, version: str) -> InferCall:
    """The call that a body makes which is the data of the model's only input (Inference-Header-Content-Length: 0).

    Of the input's dims, one may be any size; a BYTES input must be one element, which the whole body is.
    """
    if len(config.input) != 1:
        raise InvalidArgument(
            f"a body without JSON is for models of one input; '{config.name}' has {len(config.input)}"
        )
    (spec,) = config.input
    datatype = datatypes.from_config(model_config_pb2.DataType.Name(spec.data_type))
    dims = list(spec.dims)
    size = prod(dim for dim in dims if dim != -1)
    count = 1
    if datatype == "BYTES":
        body = len(body).to_bytes(4, "little") + body
    else:
        size *= datatypes.NUMPY[datatype].itemsize
        count, odd = divmod(len(body), size)
        if odd or dims.count(-1) > 1 or (count != 1 and -1 not in dims):
            raise InvalidArgument(
                f"{len(body)} bytes do not fill input '{spec.name}' for model '{config.name}': {datatype} of dims {dims}"
            )
    shape = [1] * (config.max_batch_size > 0) + [count if dim == -1 else dim for dim in dims]
    message = pb.ModelInferRequest(model_name=config.name, model_version=version, raw_input_contents=[body])
    message.inputs.add(name=spec.name, datatype=datatype, shape=shape)
    return InferCall(message, {})


def json_size(reply: pb.ModelInferResponse, call: InferCall) -> int:
    """About how many bytes of a reply's raw contents become JSON."""
    return sum(
        max(len(raw), prod(output.shape) * 8)
        for output, raw in zip(reply.outputs, reply.raw_output_contents, strict=True)
        if not call.binary.get(output.name, call.binary_default)
    )


def to_body(reply: pb.ModelInferResponse, call: InferCall) -> tuple[bytes, int | None]:
    """The body of a reply, and the length of its JSON if binary data follow it.

    Raises InvalidArgument for an output that JSON cannot express.
    """
    outputs = []
    binary: list[bytes] = []
    for output, raw in zip(reply.outputs, reply.raw_output_contents, strict=True):
        parameters = to_parameters(output.parameters)
        tensor: dict[str, Any] = {"name": output.name, "datatype": output.datatype, "shape": list(output.shape)}
        data = ""
        if "shared_memory_region" not in parameters:
            if call.binary.get(output.name, call.binary_default):
                parameters["binary_data_size"] = len(raw)
                binary.append(raw)
            else:
                data = elements.to_json(raw, output.datatype, prod(output.shape), output.name, reply.model_name)
        if parameters:
            tensor["parameters"] = parameters
        text = json.dumps(tensor)
        outputs.append(f'{text[:-1]},"data":{data}}}' if data else text)
    document: dict[str, Any] = {"model_name": reply.model_name, "model_version": reply.model_version}
    if reply.id:
        document["id"] = reply.id
    if reply.parameters:
        document["parameters"] = to_parameters(reply.parameters)
    header = f'{json.dumps(document)[:-1]},"outputs":[{",".join(outputs)}]}}'.encode()
    return (b"".join(chain((header,), binary)), len(header)) if binary else (header, None)


def to_parameters(parameters: Mapping[str, pb.InferParameter]) -> dict[str, Any]:
    """The parameters of a reply or of an output."""
    return {
        name: getattr(parameters[name], parameters[name].WhichOneof("parameter_choice") or "string_param")
        for name in sorted(parameters)
    }
