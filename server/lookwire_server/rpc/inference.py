"""inference.GRPCInferenceService: the KServe V2 protocol with Triton's extensions, as far as it is built."""

from typing import Any

import grpc
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc

from lookwire_server import __version__
from lookwire_server.errors import InvalidArgument, NotFound
from lookwire_server.models.model import Model, Request
from lookwire_server.models.repository import Repository
from lookwire_server.models.statistics import Duration
from lookwire_server.rpc import convert, tensors

EXTENSIONS = ("model_repository", "model_configuration", "statistics")
PLATFORMS = {"onnxruntime": "onnxruntime_onnx"}

Context = grpc.aio.ServicerContext[Any, Any]


class InferenceServicer(service_pb2_grpc.GRPCInferenceServiceServicer):  # type: ignore[misc]  # untyped stubs
    """Answers for every model of the repository, towers and encoders alike."""

    def __init__(self, repository: Repository) -> None:
        self._repository = repository

    async def ServerLive(self, request: pb.ServerLiveRequest, context: Context) -> pb.ServerLiveResponse:
        return pb.ServerLiveResponse(live=True)

    async def ServerReady(self, request: pb.ServerReadyRequest, context: Context) -> pb.ServerReadyResponse:
        return pb.ServerReadyResponse(ready=bool(self._repository.models()))

    async def ModelReady(self, request: pb.ModelReadyRequest, context: Context) -> pb.ModelReadyResponse:
        wanted = version(request.version)
        versions = self._repository.versions(request.name)
        return pb.ModelReadyResponse(ready=bool(versions) and wanted in (None, *versions))

    async def ServerMetadata(self, request: pb.ServerMetadataRequest, context: Context) -> pb.ServerMetadataResponse:
        return pb.ServerMetadataResponse(name="lookwire", version=__version__, extensions=EXTENSIONS)

    async def ModelMetadata(self, request: pb.ModelMetadataRequest, context: Context) -> pb.ModelMetadataResponse:
        wanted = version(request.version)
        model = self._repository.get(request.name, wanted)
        config = model.config
        batch = [-1] if config.max_batch_size else []

        def described(specs: Any) -> list[pb.ModelMetadataResponse.TensorMetadata]:
            return [
                pb.ModelMetadataResponse.TensorMetadata(
                    name=spec.name, datatype=spec.datatype, shape=[*batch, *spec.dims]
                )
                for spec in specs
            ]

        return pb.ModelMetadataResponse(
            name=config.name,
            versions=[str(number) for number in ([wanted] if wanted else self._repository.versions(request.name))],
            platform=PLATFORMS.get(config.backend, config.backend),
            inputs=described(config.inputs),
            outputs=described(config.outputs),
        )

    async def ModelConfig(self, request: pb.ModelConfigRequest, context: Context) -> pb.ModelConfigResponse:
        return pb.ModelConfigResponse(
            config=self._repository.get(request.name, version(request.version)).config.message
        )

    async def ModelInfer(self, request: pb.ModelInferRequest, context: Context) -> pb.ModelInferResponse:
        try:
            model = self._repository.get(request.model_name, version(request.model_version))
            wanted = outputs(model, request)
            response = await model.infer(Request(tensors.inputs(request), deadline=convert.deadline(context)))
        except InvalidArgument as error:
            raise type(error)(
                f"[request id: {request.id or '<id_unknown>'}] {error.message}", field=error.field, **error.metadata
            ) from error
        reply = pb.ModelInferResponse(model_name=model.config.name, model_version=str(model.version), id=request.id)
        for name in wanted:
            tensor = response.outputs[name]
            reply.outputs.add(name=name, datatype=tensors.datatype(tensor), shape=tensor.shape)
            reply.raw_output_contents.append(tensors.to_raw(tensor))
        return reply

    async def ModelStatistics(self, request: pb.ModelStatisticsRequest, context: Context) -> pb.ModelStatisticsResponse:
        wanted = version(request.version)
        if not request.name:
            return pb.ModelStatisticsResponse(model_stats=map(statistics, self._repository.models()))
        try:
            newest = self._repository.get(request.name, wanted)
        except NotFound:
            raise InvalidArgument(f"requested model '{request.name}' is not available") from None
        numbers = [newest.version] if wanted else self._repository.versions(request.name)
        models = [self._repository.get(request.name, number) for number in numbers]
        return pb.ModelStatisticsResponse(model_stats=map(statistics, models))

    async def RepositoryIndex(self, request: pb.RepositoryIndexRequest, context: Context) -> pb.RepositoryIndexResponse:
        return pb.RepositoryIndexResponse(
            models=[
                pb.RepositoryIndexResponse.ModelIndex(
                    name=row.name,
                    version=str(row.version or ""),
                    state="READY" if row.version else "",
                    reason=row.reason,
                )
                for row in self._repository.index()
                if row.version or not request.ready
            ]
        )


def version(text: str) -> int | None:
    """The version number of a request; None where it names none."""
    if not text:
        return None
    if not text.isdecimal():
        raise InvalidArgument(f"failed to get model version from specified version string '{text}', must be an integer")
    return int(text)


def outputs(model: Model, request: pb.ModelInferRequest) -> list[str]:
    """The names of the outputs asked for, all of the model's if none are."""
    names = [spec.name for spec in model.config.outputs]
    for output in request.outputs:
        if output.name not in names:
            raise InvalidArgument(f"unexpected inference output '{output.name}' for model '{model.config.name}'")
    return [output.name for output in request.outputs] or names


def statistics(model: Model) -> pb.ModelStatistics:
    """The message of a model version's counters."""
    counted = model.statistics

    def duration(value: Duration) -> pb.StatisticDuration:
        return pb.StatisticDuration(count=value.count, ns=value.ns)

    return pb.ModelStatistics(
        name=model.config.name,
        version=str(model.version),
        last_inference=counted.last_inference_ms,
        inference_count=counted.inference_count,
        execution_count=counted.execution_count,
        inference_stats=pb.InferStatistics(
            success=duration(counted.success),
            fail=duration(counted.fail),
            queue=duration(counted.queue),
            compute_input=duration(counted.compute_input),
            compute_infer=duration(counted.compute_infer),
            compute_output=duration(counted.compute_output),
        ),
        batch_stats=[
            pb.InferBatchStatistics(
                batch_size=size,
                compute_input=duration(batch.input),
                compute_infer=duration(batch.infer),
                compute_output=duration(batch.output),
            )
            for size, batch in sorted(counted.batches.items())
        ],
    )
