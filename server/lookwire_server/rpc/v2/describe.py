"""What the server says of its models: metadata, statistics, and the index of the repository."""

from collections.abc import Iterable, Sequence

from tritonclient.grpc import service_pb2 as pb

from lookwire_server.models.config import TensorSpec
from lookwire_server.models.managed import ModelState
from lookwire_server.models.model import Model
from lookwire_server.models.statistics import Duration, Phases


def metadata(model: Model, versions: Sequence[int]) -> pb.ModelMetadataResponse:
    """A model's inputs and outputs; where it takes batches, the first dimension is the batch."""
    config = model.config
    batch = (-1,) if config.max_batch_size else ()

    def described(specs: Iterable[TensorSpec]) -> list[pb.ModelMetadataResponse.TensorMetadata]:
        return [
            pb.ModelMetadataResponse.TensorMetadata(name=spec.name, datatype=spec.datatype, shape=(*batch, *spec.dims))
            for spec in specs
        ]

    return pb.ModelMetadataResponse(
        name=config.name,
        versions=map(str, versions),
        platform=config.platform,
        inputs=described(config.inputs),
        outputs=described(config.outputs),
    )


def statistics(model: Model) -> pb.ModelStatistics:
    """The counters of a model version."""
    counted = model.statistics
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
            **phases(counted.compute),
            cache_hit=duration(counted.cache_hit),
            cache_miss=duration(counted.cache_miss),
        ),
        batch_stats=[
            pb.InferBatchStatistics(batch_size=size, **phases(batch)) for size, batch in sorted(counted.batches.items())
        ],
    )


def duration(value: Duration) -> pb.StatisticDuration:
    """A number of events and their total time in nanoseconds."""
    return pb.StatisticDuration(count=value.count, ns=value.ns)


def phases(value: Phases) -> dict[str, pb.StatisticDuration]:
    """The phases of executions, under the names of the fields that hold them."""
    return {
        "compute_input": pb.StatisticDuration(count=value.count, ns=value.input_ns),
        "compute_infer": pb.StatisticDuration(count=value.count, ns=value.infer_ns),
        "compute_output": pb.StatisticDuration(count=value.count, ns=value.output_ns),
    }


def index(states: Iterable[ModelState], *, ready: bool) -> pb.RepositoryIndexResponse:
    """A row for each version, only of those that answer if `ready`."""
    return pb.RepositoryIndexResponse(
        models=[
            pb.RepositoryIndexResponse.ModelIndex(
                name=state.name,
                version="" if state.version is None else str(state.version),
                state=str(state.state),
                reason=state.reason,
            )
            for state in states
            if state.state == "READY" or not ready
        ]
    )
