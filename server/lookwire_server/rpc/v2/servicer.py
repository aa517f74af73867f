"""The methods of inference.GRPCInferenceService, for gRPC and for HTTP alike."""

import asyncio
from collections.abc import AsyncIterable, Awaitable, Callable

from tritonclient.grpc import service_pb2 as pb

from lookwire_server import __version__
from lookwire_server.errors import InvalidArgument, NotFound, Unavailable, Unimplemented
from lookwire_server.metrics import Metrics
from lookwire_server.models.repository import Repository
from lookwire_server.rpc.handlers import Received
from lookwire_server.rpc.v2 import describe, stream
from lookwire_server.rpc.v2.infer import Call, Inference, deadline, version
from lookwire_server.rpc.v2.log_settings import Levels, LogSettings
from lookwire_server.rpc.v2.shared_memory import SharedMemory, allowed
from lookwire_server.rpc.v2.trace_settings import TraceSettings

EXTENSIONS = (
    "classification",
    "model_repository",
    "model_repository(unload_dependents)",
    "schedule_policy",
    "model_configuration",
    "binary_tensor_data",
    "parameters",
    "statistics",
    "trace",
    "logging",
)
MAX_STREAM_BYTES = 1 << 30
MAX_NAME = 255  # bytes: a model is a folder


class InferenceServicer:
    """Answers for every model of the repository, towers and encoders alike.

    Methods take the RPC's message and a call, return the RPC's message, and raise LookwireErrors. `shared_memory` None means
    that clients may not register any. `response_delay` holds each inference response back for so many seconds, for tests.
    `ready` says whether the server is, by default the repository; `levels` are what is logged, None if that cannot be changed.
    `max_stream_bytes` bounds what all streams have in flight; `metrics` count their requests.
    """

    def __init__(
        self,
        repository: Repository,
        *,
        server_name: str = "lookwire",
        shared_memory: SharedMemory | None = None,
        response_delay: float = 0.0,
        ready: Callable[[], bool] | None = None,
        levels: Levels | None = None,
        max_stream_bytes: int = MAX_STREAM_BYTES,
        metrics: Metrics | None = None,
    ) -> None:
        self._repository = repository
        self._server_name = server_name
        self._shared_memory = shared_memory
        self._traces = TraceSettings()
        self._ready = ready or repository.ready
        self._log = LogSettings(levels)
        self._inference = Inference(repository, shared_memory, self._traces, response_delay)
        self._streams = stream.Streams(self._inference, max_stream_bytes, metrics or Metrics())

    def end_streams(self) -> None:
        """Lets every stream answer what it has in flight and end with UNAVAILABLE; for a server that stops."""
        self._streams.stop()

    async def ServerLive(self, request: pb.ServerLiveRequest, call: Call) -> pb.ServerLiveResponse:
        return pb.ServerLiveResponse(live=True)

    async def ServerReady(self, request: pb.ServerReadyRequest, call: Call) -> pb.ServerReadyResponse:
        return pb.ServerReadyResponse(ready=self._ready())

    async def ModelReady(self, request: pb.ModelReadyRequest, call: Call) -> pb.ModelReadyResponse:
        wanted = version(request.version)
        versions = self._repository.versions(request.name)
        return pb.ModelReadyResponse(ready=bool(versions) and wanted in (None, *versions))

    async def ServerMetadata(self, request: pb.ServerMetadataRequest, call: Call) -> pb.ServerMetadataResponse:
        shared = ("system_shared_memory",) if self._shared_memory else ()
        return pb.ServerMetadataResponse(name=self._server_name, version=__version__, extensions=(*EXTENSIONS, *shared))

    async def ModelMetadata(self, request: pb.ModelMetadataRequest, call: Call) -> pb.ModelMetadataResponse:
        wanted = version(request.version)
        model = self._repository.get(request.name, wanted)
        versions = self._repository.versions(request.name) if wanted is None else [wanted]
        return describe.metadata(model, versions)

    async def ModelConfig(self, request: pb.ModelConfigRequest, call: Call) -> pb.ModelConfigResponse:
        model = self._repository.get(request.name, version(request.version))
        return pb.ModelConfigResponse(config=model.config.message)

    def ModelInfer(self, request: pb.ModelInferRequest, call: Call) -> Awaitable[pb.ModelInferResponse]:
        return self._inference.infer(request, list(request.raw_input_contents), deadline(call))

    async def ModelStreamInfer(self, requests: AsyncIterable[Received], call: stream.Call) -> None:
        await self._streams.serve(requests, call)

    async def ModelStatistics(self, request: pb.ModelStatisticsRequest, call: Call) -> pb.ModelStatisticsResponse:
        wanted = version(request.version)
        if not request.name:
            return pb.ModelStatisticsResponse(model_stats=map(describe.statistics, self._repository.models()))
        try:
            found = self._repository.get(request.name, wanted)
        except (NotFound, Unavailable) as error:
            raise InvalidArgument(f"requested model '{request.name}' is not available: {error.message}") from error
        models = [found]
        if wanted is None:
            models = [model for model in self._repository.models() if model.config.name == request.name]
        return pb.ModelStatisticsResponse(model_stats=map(describe.statistics, models))

    async def RepositoryIndex(self, request: pb.RepositoryIndexRequest, call: Call) -> pb.RepositoryIndexResponse:
        check_repository(request.repository_name)
        folders = await asyncio.to_thread(self._repository.folders)
        return describe.index(self._repository.index(folders), ready=request.ready)

    async def RepositoryModelLoad(
        self, request: pb.RepositoryModelLoadRequest, call: Call
    ) -> pb.RepositoryModelLoadResponse:
        check_repository(request.repository_name)
        config = None
        files = {}
        for name, message in request.parameters.items():
            given = message.WhichOneof("parameter_choice")
            if name == "config":
                check_type("load", name, given, "string_param")
                config = message.string_param
            elif name.startswith("file:"):
                check_type("load", name, given, "bytes_param")
                files[name] = message.bytes_param
            else:
                raise InvalidArgument(
                    f"unrecognized load parameter '{name[:MAX_NAME]}', expected 'config' or 'file:<path>'"
                )
        await self._repository.load_model(model_name(request.model_name), config, files)
        return pb.RepositoryModelLoadResponse()

    async def RepositoryModelUnload(
        self, request: pb.RepositoryModelUnloadRequest, call: Call
    ) -> pb.RepositoryModelUnloadResponse:
        check_repository(request.repository_name)
        dependents = False
        for name, message in request.parameters.items():
            if name != "unload_dependents":
                raise InvalidArgument(
                    f"unrecognized unload parameter '{name[:MAX_NAME]}', expected 'unload_dependents'"
                )
            check_type("unload", name, message.WhichOneof("parameter_choice"), "bool_param")
            dependents = message.bool_param
        await self._repository.unload_model(model_name(request.model_name), dependents=dependents)
        return pb.RepositoryModelUnloadResponse()

    async def SystemSharedMemoryStatus(
        self, request: pb.SystemSharedMemoryStatusRequest, call: Call
    ) -> pb.SystemSharedMemoryStatusResponse:
        status = pb.SystemSharedMemoryStatusResponse()
        for region in self._shared_memory.regions(request.name) if self._shared_memory else ():
            row = status.regions[region.name]
            row.name, row.key, row.offset, row.byte_size = region.name, region.key, region.offset, region.byte_size
        return status

    async def SystemSharedMemoryRegister(
        self, request: pb.SystemSharedMemoryRegisterRequest, call: Call
    ) -> pb.SystemSharedMemoryRegisterResponse:
        allowed(self._shared_memory).register(request.name, request.key, request.offset, request.byte_size)
        return pb.SystemSharedMemoryRegisterResponse()

    async def SystemSharedMemoryUnregister(
        self, request: pb.SystemSharedMemoryUnregisterRequest, call: Call
    ) -> pb.SystemSharedMemoryUnregisterResponse:
        allowed(self._shared_memory).unregister(request.name)
        return pb.SystemSharedMemoryUnregisterResponse()

    async def CudaSharedMemoryStatus(
        self, request: pb.CudaSharedMemoryStatusRequest, call: Call
    ) -> pb.CudaSharedMemoryStatusResponse:
        if request.name:
            raise NotFound(f"Unable to find cuda shared memory region: '{request.name[:MAX_NAME]}'; there are none")
        return pb.CudaSharedMemoryStatusResponse()

    async def CudaSharedMemoryRegister(
        self, request: pb.CudaSharedMemoryRegisterRequest, call: Call
    ) -> pb.CudaSharedMemoryRegisterResponse:
        raise InvalidArgument(
            f"failed to register CUDA shared memory region: '{request.name[:MAX_NAME]}', GPUs not supported; use system shared "
            "memory"
        )

    async def CudaSharedMemoryUnregister(
        self, request: pb.CudaSharedMemoryUnregisterRequest, call: Call
    ) -> pb.CudaSharedMemoryUnregisterResponse:
        return pb.CudaSharedMemoryUnregisterResponse()

    async def TraceSetting(self, request: pb.TraceSettingRequest, call: Call) -> pb.TraceSettingResponse:
        if request.model_name and not self._repository.versions(request.model_name):
            raise InvalidArgument(f"Request for unknown model : {request.model_name[:MAX_NAME]}")
        if request.settings:
            self._traces.update(request.model_name, {name: message.value for name, message in request.settings.items()})
        response = pb.TraceSettingResponse()
        for name, values in self._traces.settings(request.model_name).items():
            response.settings[name].value.extend(values)
        return response

    async def LogSettings(self, request: pb.LogSettingsRequest, call: Call) -> pb.LogSettingsResponse:
        self._log.update(request.settings)
        response = pb.LogSettingsResponse()
        for name, value in self._log.values.items():
            match value:
                case bool():
                    response.settings[name].bool_param = value
                case int():
                    response.settings[name].uint32_param = value
                case str():
                    response.settings[name].string_param = value
        return response


def check_repository(name: str) -> None:
    """The server does not tell its repositories apart."""
    if name:
        raise Unimplemented("'repository_name' specification is not supported; leave it empty")


def check_type(kind: str, name: str, given: str | None, expected: str) -> None:
    """Refuses a parameter of a load or unload request that has another type."""
    if given != expected:
        raise InvalidArgument(
            f"invalid value type for {kind} parameter '{name[:MAX_NAME]}', expected {expected}, got {given or 'no value'}"
        )


def model_name(name: str) -> str:
    """The name of a model to load or unload."""
    if len(name.encode()) > MAX_NAME:
        raise InvalidArgument(f"the model name has {len(name.encode())} bytes, at most {MAX_NAME} are taken")
    return name
