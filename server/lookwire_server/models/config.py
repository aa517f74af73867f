"""A model's configuration: Triton's ModelConfig, checked and completed.

Field by field the meaning is Triton's (`model_config.proto`); a field that is
unknown is an error, one that is known and has no effect here is a warning.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from google.protobuf import json_format
from tritonclient.grpc import model_config_pb2

from lookwire_server.errors import InvalidArgument
from lookwire_server.models import datatypes

Accelerator: TypeAlias = model_config_pb2.ModelOptimizationPolicy.ExecutionAccelerators.Accelerator
# Backend -> the platform that Triton's clients expect to read.
PLATFORMS = {"onnxruntime": "onnxruntime_onnx", "ensemble": "ensemble"}


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """An input or output: V2 datatype and dims without the batch dimension; -1 stands for any size.

    `reshape` are the dims that the model itself takes or gives, where they differ from what callers see. `ragged` inputs
    of unequal shapes share a batch, joined end to end in one dimension. `labels` name the classes of an output.
    """

    name: str
    datatype: str
    dims: tuple[int, ...]
    optional: bool = False
    reshape: tuple[int, ...] | None = None
    ragged: bool = False
    labels: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class QueuePolicy:
    """How a priority level queues: at most `max_requests` (0: no bound of its own) for at most `timeout` seconds (0: no limit).

    A request that waited longer is rejected, or with `delay` goes behind all others of its level. `allow_override` lets
    requests bring a shorter timeout of their own.
    """

    max_requests: int = 0
    timeout: float = 0.0
    delay: bool = False
    allow_override: bool = False


@dataclass(frozen=True, slots=True)
class Step:
    """A step of an ensemble: `inputs` and `outputs` map the model's tensors to the ensemble's; version None: the newest."""

    model: str
    version: int | None
    inputs: Mapping[str, str]
    outputs: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class WarmupInput:
    """An input of a warm-up sample, dims without the batch: zeros, random values, or raw contents of the file `source`."""

    datatype: str
    dims: tuple[int, ...]
    random: bool
    source: str


@dataclass(frozen=True, slots=True)
class Warmup:
    """A warm-up sample, executed `count` times on each instance before the model is ready."""

    name: str
    rows: int
    count: int
    inputs: Mapping[str, WarmupInput]


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """What the server needs of a ModelConfig; `message` is the whole of it, with defaults filled in.

    `max_batch_size` 0 means that the model has no batch dimension. `specs` are the inputs by name. Priority levels run from
    1, the highest, to `priority_levels`; 0 means that there are none. `max_queue_delay` is in seconds. `scattered` are the
    outputs that are handed out in the shapes of a ragged input, each with that input's name. `accelerated` says that OpenVINO
    executes an ONNX graph, in bf16.
    """

    name: str
    backend: str
    max_batch_size: int
    inputs: tuple[TensorSpec, ...]
    specs: Mapping[str, TensorSpec]
    outputs: tuple[TensorSpec, ...]
    scattered: Mapping[str, str]
    instances: int
    gpu: bool
    accelerated: bool
    dynamic_batching: bool
    preferred_batch_sizes: tuple[int, ...]
    max_queue_delay: float
    preserve_ordering: bool
    priority_levels: int
    default_priority: int
    queue_policies: Mapping[int, QueuePolicy]
    default_queue_policy: QueuePolicy
    response_cache: bool
    parameters: Mapping[str, str]
    metric_tags: Mapping[str, str]
    steps: tuple[Step, ...]
    warmups: tuple[Warmup, ...]
    message: model_config_pb2.ModelConfig

    @property
    def platform(self) -> str:
        """The platform as Triton's clients know it; the backend where it has none."""
        return self.message.platform or self.backend

    def integers(self, parameter: str) -> tuple[int, ...]:
        """A parameter that is a comma-separated list of integers; empty if absent."""
        text = self.parameters.get(parameter, "")
        try:
            return tuple(int(part) for part in text.split(",") if part.strip())
        except ValueError:
            raise InvalidArgument(
                f"model '{self.name}': parameter '{parameter}' must be integers separated by commas, got '{text}'"
            ) from None

    def to_json(self) -> str:
        """The message as JSON with the field names of config.pbtxt, as python models get it."""
        return json_format.MessageToJson(
            self.message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
        )

    def completed(
        self, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...], *, max_batch_size: int | None = None
    ) -> "ModelConfig":
        """The configuration with what was read from the model itself: inputs and outputs where it names none.

        With `max_batch_size`, batching too: dynamic batching is switched on where no scheduler is chosen.
        """
        message = model_config_pb2.ModelConfig()
        message.CopyFrom(self.message)
        if not message.input:
            message.input.extend(
                model_config_pb2.ModelInput(
                    name=spec.name,
                    data_type=data_type(spec),
                    dims=spec.dims,
                    optional=spec.optional,
                    reshape=reshape_of(spec),
                )
                for spec in inputs
            )
        if not message.output:
            message.output.extend(
                model_config_pb2.ModelOutput(
                    name=spec.name, data_type=data_type(spec), dims=spec.dims, reshape=reshape_of(spec)
                )
                for spec in outputs
            )
        if max_batch_size is not None:
            message.max_batch_size = max_batch_size
            if max_batch_size > 1 and not message.WhichOneof("scheduling_choice"):
                message.dynamic_batching.SetInParent()
        labels = {spec.name: spec.labels for spec in self.outputs}
        return from_message(message, labels)


def data_type(spec: TensorSpec) -> int:
    """The number of a tensor's data type in the message."""
    number: int = model_config_pb2.DataType.Value(datatypes.to_config(spec.datatype))
    return number


def reshape_of(spec: TensorSpec) -> model_config_pb2.ModelTensorReshape | None:
    """The message of a tensor's reshape."""
    return None if spec.reshape is None else model_config_pb2.ModelTensorReshape(shape=spec.reshape)


def from_message(
    message: model_config_pb2.ModelConfig, labels: Mapping[str, tuple[str, ...]] | None = None
) -> ModelConfig:
    """Checks a ModelConfig and fills in Triton's defaults. `labels` are the class names by output."""
    wrong = Complaint(message.name)
    check_support(message, wrong)
    backend = message.backend or next(
        (name for name, platform in PLATFORMS.items() if platform == message.platform), message.platform
    )
    if not backend:
        raise wrong("'backend' is not set")
    message.backend = "" if backend == "ensemble" else backend  # Triton's ensembles have a platform only
    message.platform = message.platform or PLATFORMS.get(backend, "")
    if message.max_batch_size < 0:
        raise wrong(f"max_batch_size must be 0 or more, got {message.max_batch_size}")
    if not message.HasField("version_policy"):
        message.version_policy.latest.num_versions = 1
    fill_instances(message, backend, wrong)
    gpu = any(group.kind == model_config_pb2.ModelInstanceGroup.KIND_GPU for group in message.instance_group)
    batching = message.dynamic_batching
    dynamic = message.HasField("dynamic_batching") and message.max_batch_size > 0
    if message.HasField("dynamic_batching"):
        check_batching(message, wrong)
    for declared in (message.input, message.output):
        repeated = [name for name, times in Counter(tensor.name for tensor in declared).items() if times > 1]
        if repeated:
            raise wrong(f"tensor '{repeated[0]}' is declared twice")
    inputs = tuple(
        TensorSpec(
            tensor.name,
            datatype(tensor, wrong),
            dims(tensor, wrong),
            tensor.optional,
            reshaped(tensor, wrong),
            tensor.allow_ragged_batch,
        )
        for tensor in message.input
    )
    return ModelConfig(
        name=message.name,
        backend=backend,
        max_batch_size=message.max_batch_size,
        inputs=inputs,
        specs={spec.name: spec for spec in inputs},
        outputs=tuple(
            TensorSpec(
                tensor.name,
                datatype(tensor, wrong),
                dims(tensor, wrong),
                reshape=reshaped(tensor, wrong),
                labels=(labels or {}).get(tensor.name, ()),
            )
            for tensor in message.output
        ),
        scattered=scattered(message, wrong),
        instances=sum(group.count for group in message.instance_group) or 1,
        gpu=gpu,
        accelerated=backend == "onnxruntime" and accelerated(message, gpu, wrong),
        dynamic_batching=dynamic,
        preferred_batch_sizes=tuple(sorted(batching.preferred_batch_size)),
        max_queue_delay=batching.max_queue_delay_microseconds / 1e6,
        preserve_ordering=batching.preserve_ordering,
        priority_levels=batching.priority_levels,
        default_priority=batching.default_priority_level,
        queue_policies={level: queue_policy(policy) for level, policy in batching.priority_queue_policy.items()},
        default_queue_policy=queue_policy(batching.default_queue_policy),
        response_cache=message.response_cache.enable,
        parameters={key: value.string_value for key, value in message.parameters.items()},
        metric_tags=dict(message.metric_tags),
        steps=tuple(
            Step(
                step.model_name,
                step.model_version if step.model_version > 0 else None,
                dict(step.input_map),
                dict(step.output_map),
            )
            for step in message.ensemble_scheduling.step
        ),
        warmups=tuple(warmup(sample, wrong) for sample in message.model_warmup),
        message=message,
    )


class Complaint:
    """Makes the errors of one model's configuration."""

    def __init__(self, model: str) -> None:
        self._model = model

    def __call__(self, problem: str) -> InvalidArgument:
        return InvalidArgument(f"model '{self._model}': {problem}")


def check_support(message: model_config_pb2.ModelConfig, wrong: Complaint) -> None:
    """Refuses what would change answers if it were ignored."""
    if message.HasField("sequence_batching"):
        raise wrong("sequence_batching is not served: encoders are stateless; use dynamic_batching")
    if message.model_transaction_policy.decoupled:
        raise wrong("model_transaction_policy.decoupled is not served: each request has one response")
    if message.batch_input:
        raise wrong(
            "batch_input is not served; declare pad_value and length_buckets in 'parameters' to batch unequal lengths"
        )
    for output in message.batch_output:
        if output.kind != model_config_pb2.BatchOutput.BATCH_SCATTER_WITH_INPUT_SHAPE:
            raise wrong("batch_output is served with kind BATCH_SCATTER_WITH_INPUT_SHAPE only")


def scattered(message: model_config_pb2.ModelConfig, wrong: Complaint) -> dict[str, str]:
    """The outputs that batch_output names, each with the ragged input whose shapes it takes."""
    outputs = {tensor.name for tensor in message.output}
    ragged = {tensor.name for tensor in message.input if tensor.allow_ragged_batch}
    sources: dict[str, str] = {}
    for entry in message.batch_output:
        if len(entry.source_input) != 1:
            raise wrong(f"batch_output must have one source_input, got {list(entry.source_input)}")
        source = entry.source_input[0]
        if source not in ragged:
            raise wrong(f"batch_output: source_input '{source}' is not an input with allow_ragged_batch")
        for target in entry.target_name:
            if outputs and target not in outputs:  # a config without outputs gets those of the model later
                raise wrong(f"batch_output: target_name '{target}' is not an output")
            if target in sources:
                raise wrong(f"batch_output: target_name '{target}' is named twice")
            sources[target] = source
    return sources


def accelerated(message: model_config_pb2.ModelConfig, gpu: bool, wrong: Complaint) -> bool:
    """Whether the config asks for OpenVINO in bf16, the one execution accelerator that is served."""
    asked = [accelerator for accelerator in cpu_accelerators(message) if takes_effect(accelerator)]
    if not asked:
        return False
    for name, value in asked[0].parameters.items():
        if (name, value) != ("precision_mode", "bf16"):
            raise wrong(
                f"execution accelerator 'openvino' has parameter '{name}' with value '{value}'; served is precision_mode 'bf16' "
                "alone"
            )
    if gpu:
        raise wrong("execution accelerator 'openvino' is for instances of KIND_CPU; instance_group asks for KIND_GPU")
    return True


def cpu_accelerators(message: model_config_pb2.ModelConfig) -> Sequence[Accelerator]:
    """The accelerators that are asked for on the CPU."""
    accelerators: Sequence[Accelerator] = message.optimization.execution_accelerators.cpu_execution_accelerator
    return accelerators


def takes_effect(accelerator: Accelerator) -> bool:
    """OpenVINO without a precision would compute what onnxruntime computes."""
    return accelerator.name == "openvino" and "precision_mode" in accelerator.parameters


def warnings(message: model_config_pb2.ModelConfig) -> list[str]:
    """What the configuration asks for that has no effect here, a sentence each."""
    optimization = message.optimization
    without_effect: dict[str, Callable[[], object]] = {
        "optimization.cuda": lambda: optimization.HasField("cuda"),
        "optimization.input_pinned_memory": lambda: optimization.HasField("input_pinned_memory"),
        "optimization.output_pinned_memory": lambda: optimization.HasField("output_pinned_memory"),
        "optimization.execution_accelerators": lambda: (
            optimization.execution_accelerators.gpu_execution_accelerator
            or not all(map(takes_effect, cpu_accelerators(message)))
        ),
        "optimization.gather_kernel_buffer_threshold": lambda: optimization.gather_kernel_buffer_threshold,
        "optimization.eager_batching": lambda: optimization.eager_batching,
        "optimization.priority": lambda: optimization.priority,
        "model_operations": lambda: message.HasField("model_operations"),
        "model_repository_agents": lambda: message.HasField("model_repository_agents"),
        "model_metrics": lambda: message.HasField("model_metrics"),
        "cc_model_filenames": lambda: message.cc_model_filenames,
        "ensemble_scheduling.max_inflight_requests": lambda: message.ensemble_scheduling.max_inflight_requests,
        "instance_group.rate_limiter": lambda: any(group.HasField("rate_limiter") for group in message.instance_group),
        "instance_group.secondary_devices": lambda: any(group.secondary_devices for group in message.instance_group),
        "instance_group.host_policy": lambda: any(group.host_policy for group in message.instance_group),
        "instance_group.profile": lambda: any(group.profile for group in message.instance_group),
        "instance_group.passive": lambda: any(group.passive for group in message.instance_group),
    }
    return [f"'{name}' is known but has no effect in this server" for name, used in without_effect.items() if used()]


def fill_instances(message: model_config_pb2.ModelConfig, backend: str, wrong: Complaint) -> None:
    """One instance on the CPU unless the config says otherwise."""
    if backend == "ensemble":
        if message.instance_group:
            raise wrong("an ensemble must not have instance_group: its steps have their own")
        return
    if not message.instance_group:
        message.instance_group.add(name=f"{message.name}_0", kind=model_config_pb2.ModelInstanceGroup.KIND_CPU)
    total = 0
    for number, group in enumerate(message.instance_group):
        if group.count < 0:
            raise wrong(f"instance_group.count must be 1 or more, got {group.count}")
        group.count = group.count or 1
        if (total := total + group.count) > MAX_INSTANCES:
            raise wrong(f"instance_group has {total} instances or more, at most {MAX_INSTANCES} are served")
        group.name = group.name or f"{message.name}_{number}"
        if group.kind == model_config_pb2.ModelInstanceGroup.KIND_AUTO:
            group.kind = model_config_pb2.ModelInstanceGroup.KIND_CPU


def check_batching(message: model_config_pb2.ModelConfig, wrong: Complaint) -> None:
    """Checks dynamic_batching, and fills in the preferred size and the default priority."""
    batching = message.dynamic_batching
    for size in batching.preferred_batch_size:
        if not 1 <= size <= max(1, message.max_batch_size):
            raise wrong(f"preferred_batch_size {size} is not within 1 and max_batch_size, {message.max_batch_size}")
    if not batching.preferred_batch_size and message.max_batch_size:
        batching.preferred_batch_size.append(message.max_batch_size)
    levels, default = batching.priority_levels, batching.default_priority_level
    if levels > MAX_PRIORITY_LEVELS:
        raise wrong(f"priority_levels is {levels}, at most {MAX_PRIORITY_LEVELS} are served")
    if levels and not 1 <= default <= levels:
        raise wrong(f"default_priority_level must be within 1 and priority_levels, {levels}; got {default}")
    if out := [level for level in batching.priority_queue_policy if not 1 <= level <= levels]:
        raise wrong(f"priority_queue_policy {out[0]} is not within 1 and priority_levels, {levels}")
    if batching.preserve_ordering:
        if levels > 1:
            raise wrong("preserve_ordering needs a single priority level")
        policies = [batching.default_queue_policy, *batching.priority_queue_policy.values()]
        if any(policy.timeout_action == model_config_pb2.ModelQueuePolicy.DELAY for policy in policies):
            raise wrong("preserve_ordering and timeout_action DELAY contradict each other")


# Each instance is a thread of its own.
MAX_INSTANCES = 1024
# Each level is a queue of its own.
MAX_PRIORITY_LEVELS = 1000


def queue_policy(policy: model_config_pb2.ModelQueuePolicy) -> QueuePolicy:
    """The policy of a level, times in seconds."""
    return QueuePolicy(
        policy.max_queue_size,
        policy.default_timeout_microseconds / 1e6,
        policy.timeout_action == model_config_pb2.ModelQueuePolicy.DELAY,
        policy.allow_timeout_override,
    )


def warmup(sample: model_config_pb2.ModelWarmup, wrong: Complaint) -> Warmup:
    """A warm-up sample; its dims must be fixed, and each input must say where its data comes from."""
    inputs = {}
    for name, tensor in sample.inputs.items():
        if any(dim < 0 for dim in tensor.dims):
            raise wrong(
                f"warm-up sample '{sample.name}': input '{name}' has dims {list(tensor.dims)}; -1 is not allowed"
            )
        if not tensor.WhichOneof("input_data_type"):
            raise wrong(
                f"warm-up sample '{sample.name}': input '{name}' needs zero_data, random_data or input_data_file"
            )
        inputs[name] = WarmupInput(
            datatypes.from_config(model_config_pb2.DataType.Name(tensor.data_type)),
            tuple(tensor.dims),
            tensor.random_data,
            tensor.input_data_file,
        )
    return Warmup(sample.name, max(1, sample.batch_size), max(1, sample.count), inputs)


ModelTensor: TypeAlias = model_config_pb2.ModelInput | model_config_pb2.ModelOutput


def datatype(tensor: ModelTensor, wrong: Complaint) -> str:
    """The V2 datatype of a tensor of the configuration."""
    name = datatypes.from_config(model_config_pb2.DataType.Name(tensor.data_type))
    if name not in datatypes.NUMPY:
        raise wrong(f"tensor '{tensor.name}' has data_type '{name}', which is not served")
    return name


def dims(tensor: ModelTensor, wrong: Complaint) -> tuple[int, ...]:
    """The dims of a tensor: at least one, each positive or -1."""
    if not tensor.name:
        raise wrong("an input or output has no 'name'")
    if not tensor.dims:
        raise wrong(f"tensor '{tensor.name}' must specify 'dims'")
    if bad := [dim for dim in tensor.dims if dim < 1 and dim != -1]:
        raise wrong(f"tensor '{tensor.name}' has dims {list(tensor.dims)}: each must be positive or -1, got {bad[0]}")
    return tuple(tensor.dims)


def reshaped(tensor: ModelTensor, wrong: Complaint) -> tuple[int, ...] | None:
    """The dims on the model's side; they must hold as many elements as `dims`, with as many of any size."""
    if not tensor.HasField("reshape"):
        return None
    shape = tuple(tensor.reshape.shape)
    if shape.count(-1) != list(tensor.dims).count(-1) or product(shape) != product(tuple(tensor.dims)):
        raise wrong(f"tensor '{tensor.name}': dims {list(tensor.dims)} cannot be reshaped to {list(shape)}")
    return shape


def product(dims: tuple[int, ...]) -> int:
    """The elements of the fixed dims."""
    elements = 1
    for dim in dims:
        elements *= dim if dim > 0 else 1
    return elements
