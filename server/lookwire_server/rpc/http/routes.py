"""The paths of the protocol, as Triton has them, and the RPC that answers each."""

import base64
import binascii
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from google.protobuf.message import Message
from starlette.responses import Response
from tritonclient.grpc import service_pb2 as pb

from lookwire_server.errors import InvalidArgument
from lookwire_server.rpc.http.document import described, member
from lookwire_server.rpc.http.messages import to_json

Path = Mapping[str, str]
Document = dict[str, Any]
Make = Callable[[Path, Document], Any]  # a message of tritonclient, which has no types

MODEL = "/v2/models/{model}"
VERSION = MODEL + "/versions/{version}"
REPOSITORY = "/v2/repository/models/{model}"
SYSTEM = "/v2/systemsharedmemory"
CUDA = "/v2/cudasharedmemory"


@dataclass(frozen=True, slots=True)
class Operation:
    """An RPC over HTTP: `request` makes its message of the path's parameters and the body's JSON, `respond` the answer."""

    rpc: str
    method: str
    paths: tuple[str, ...]
    request: Make
    respond: Callable[[Any], Response]


def of(kind: Callable[..., Any]) -> Make:
    """Messages that the path's parameters fill: the `model` or the region as `name`, and the `version`."""

    def make(path: Path, document: Document) -> Any:
        names = {"model": "name", "region": "name", "version": "version"}
        return kind(**{names[key]: text for key, text in path.items()})

    return make


def answer(document: object) -> Response:
    return Response(json.dumps(document), media_type="application/json")


def whole(reply: Message) -> Response:
    """Every field of the reply."""
    return answer(to_json(reply))


def nothing(reply: Message) -> Response:
    """The status alone."""
    return Response()


def flag(name: str) -> Callable[[Any], Response]:
    """Whether a health check's field is true, as the status alone: 200, or 400 as Triton has it."""
    return lambda reply: Response(status_code=200 if getattr(reply, name) else 400)


def config(reply: pb.ModelConfigResponse) -> Response:
    return answer(to_json(reply.config))


def index(reply: pb.RepositoryIndexResponse) -> Response:
    """An object for each version; one that was never loaded has a name only."""
    return answer([{key: text for key, text in to_json(row).items() if text or row.state} for row in reply.models])


def regions(reply: pb.SystemSharedMemoryStatusResponse | pb.CudaSharedMemoryStatusResponse) -> Response:
    return answer([to_json(reply.regions[name]) for name in sorted(reply.regions)])


def index_request(path: Path, document: Document) -> Any:
    return pb.RepositoryIndexRequest(ready=member(document, "ready", bool, default=False))


def load_request(path: Path, document: Document) -> Any:
    message = pb.RepositoryModelLoadRequest(model_name=path["model"])
    set_parameters(message, member(document, "parameters", dict, default={}))
    return message


def unload_request(path: Path, document: Document) -> Any:
    message = pb.RepositoryModelUnloadRequest(model_name=path["model"])
    set_parameters(message, member(document, "parameters", dict, default={}))
    return message


def set_parameters(
    message: pb.RepositoryModelLoadRequest | pb.RepositoryModelUnloadRequest, parameters: Document
) -> None:
    """Sets what a load or unload brings along; files (`file:<version>/<name>`) come in base64."""
    for name, content in parameters.items():
        parameter = message.parameters[name]
        match content:
            case str() if name.startswith("file:"):
                parameter.bytes_param = from_base64(content, f"parameters.{name}")
            case str():
                parameter.string_param = content
            case bool():
                parameter.bool_param = content
            case int() if -(1 << 63) <= content < 1 << 63:
                parameter.int64_param = content
            case _:
                raise InvalidArgument(f"'parameters.{name}' must be a string, an integer of 64 bits, true or false")


def from_base64(text: str, where: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise InvalidArgument(f"'{where}' must be base64: {error}") from None


def unsigned(document: Document, name: str, default: int | None = None) -> int:
    number: int = member(document, name, int, default=default)
    if not 0 <= number < 1 << 64:
        raise InvalidArgument(f"'{name}' must be an unsigned integer of 64 bits, got {number}")
    return number


def register_system(path: Path, document: Document) -> Any:
    return pb.SystemSharedMemoryRegisterRequest(
        name=path["region"],
        key=member(document, "key", str),
        offset=unsigned(document, "offset", 0),
        byte_size=unsigned(document, "byte_size"),
    )


def register_cuda(path: Path, document: Document) -> Any:
    device = member(document, "device_id", int)
    if not -(1 << 63) <= device < 1 << 63:
        raise InvalidArgument(f"'device_id' must be an integer of 64 bits, got {device}")
    handle = member(member(document, "raw_handle", dict), "b64", str, "raw_handle")
    return pb.CudaSharedMemoryRegisterRequest(
        name=path["region"],
        raw_handle=from_base64(handle, "raw_handle.b64"),
        device_id=device,
        byte_size=unsigned(document, "byte_size"),
    )


def trace_request(path: Path, document: Document) -> Any:
    """Each setting a string, a number or an array of them; null goes back to the default."""
    message = pb.TraceSettingRequest(model_name=path.get("model", ""))
    for name, content in document.items():
        values = [] if content is None else content if isinstance(content, list) else [content]
        if not {str, int} >= set(map(type, values)):
            raise InvalidArgument(f"'{name}' must be a string, an integer, an array of them or null")
        message.settings[name].value.extend(map(str, values))
    return message


def trace_settings(reply: pb.TraceSettingResponse) -> Response:
    """The levels as an array, all others as strings."""
    return answer(
        {
            name: list(setting.value) if name == "trace_level" or len(setting.value) > 1 else "".join(setting.value)
            for name, setting in sorted(reply.settings.items())
        }
    )


def log_request(path: Path, document: Document) -> Any:
    message = pb.LogSettingsRequest()
    for name, content in document.items():
        setting = message.settings[name]
        match content:
            case bool():
                setting.bool_param = content
            case int() if 0 <= content < 1 << 32:
                setting.uint32_param = content
            case str():
                setting.string_param = content
            case _:
                raise InvalidArgument(
                    f"'{name}' must be true, false, a string or an unsigned integer of 32 bits, got {described(content)}"
                )
    return message


def log_settings(reply: pb.LogSettingsResponse) -> Response:
    settings = sorted(reply.settings.items())
    return answer({name: getattr(setting, setting.WhichOneof("parameter_choice")) for name, setting in settings})


def shared_memory(base: str, kind: str, register: Make) -> list[Operation]:
    """The operations on regions of one kind of shared memory."""

    def paths(verb: str) -> tuple[str, ...]:
        return (f"{base}/{verb}", f"{base}/region/{{region}}/{verb}")

    rpc = f"{kind}SharedMemory"
    status, unregister = getattr(pb, f"{rpc}StatusRequest"), getattr(pb, f"{rpc}UnregisterRequest")
    return [
        Operation(f"{rpc}Status", "GET", paths("status"), of(status), regions),
        Operation(f"{rpc}Register", "POST", paths("register")[1:], register, nothing),
        Operation(f"{rpc}Unregister", "POST", paths("unregister"), of(unregister), nothing),
    ]


# ModelInfer is not among them: its bodies are more than JSON. A path that is another's special case stands before it.
OPERATIONS = (
    Operation("ServerMetadata", "GET", ("/v2",), of(pb.ServerMetadataRequest), whole),
    Operation("ServerLive", "GET", ("/v2/health/live",), of(pb.ServerLiveRequest), flag("live")),
    Operation("ServerReady", "GET", ("/v2/health/ready",), of(pb.ServerReadyRequest), flag("ready")),
    Operation(
        "ModelStatistics",
        "GET",
        ("/v2/models/stats", f"{MODEL}/stats", f"{VERSION}/stats"),
        of(pb.ModelStatisticsRequest),
        whole,
    ),
    Operation("ModelMetadata", "GET", (MODEL, VERSION), of(pb.ModelMetadataRequest), whole),
    Operation("ModelReady", "GET", (f"{MODEL}/ready", f"{VERSION}/ready"), of(pb.ModelReadyRequest), flag("ready")),
    Operation("ModelConfig", "GET", (f"{MODEL}/config", f"{VERSION}/config"), of(pb.ModelConfigRequest), config),
    Operation("RepositoryIndex", "POST", ("/v2/repository/index",), index_request, index),
    Operation("RepositoryModelLoad", "POST", (f"{REPOSITORY}/load",), load_request, nothing),
    Operation("RepositoryModelUnload", "POST", (f"{REPOSITORY}/unload",), unload_request, nothing),
    *shared_memory(SYSTEM, "System", register_system),
    *shared_memory(CUDA, "Cuda", register_cuda),
    *(
        Operation(
            "TraceSetting", method, ("/v2/trace/setting", f"{MODEL}/trace/setting"), trace_request, trace_settings
        )
        for method in ("GET", "POST")
    ),
    *(Operation("LogSettings", method, ("/v2/logging",), log_request, log_settings) for method in ("GET", "POST")),
)
INFER_PATHS = (f"{MODEL}/infer", f"{VERSION}/infer")
