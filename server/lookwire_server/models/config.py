"""A model's configuration: `config.pbtxt`, protobuf text format of Triton's ModelConfig, read and checked."""

from dataclasses import dataclass, replace
from pathlib import Path

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from lookwire_server.errors import InvalidArgument
from lookwire_server.models import datatypes

FILE = "config.pbtxt"


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """An input or output: V2 datatype and dims without the batch dimension; -1 stands for any size."""

    name: str
    datatype: str
    dims: tuple[int, ...]
    optional: bool = False


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """What the server needs of a ModelConfig; `message` is the whole of it, with defaults filled in.

    `max_batch_size` 0 means that the model has no batch dimension. `max_queue_rows` 0 means the server's own bound.
    """

    name: str
    backend: str
    max_batch_size: int
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    instances: int
    dynamic_batching: bool
    max_queue_delay: float
    max_queue_rows: int
    parameters: dict[str, str]
    message: model_config_pb2.ModelConfig

    def integers(self, parameter: str) -> tuple[int, ...]:
        """A parameter that is a comma-separated list of integers; empty if absent."""
        text = self.parameters.get(parameter, "")
        try:
            return tuple(int(part) for part in text.split(",") if part.strip())
        except ValueError:
            raise InvalidArgument(
                f"model '{self.name}': parameter '{parameter}' must be integers separated by commas, got '{text}'"
            ) from None

    def with_tensors(self, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...]) -> "ModelConfig":
        """The configuration with inputs and outputs that were read from the model file."""
        message = model_config_pb2.ModelConfig()
        message.CopyFrom(self.message)
        del message.input[:], message.output[:]
        for spec in inputs:
            message.input.add(
                name=spec.name,
                data_type=model_config_pb2.DataType.Value(datatypes.to_config(spec.datatype)),
                dims=spec.dims,
                optional=spec.optional,
            )
        for spec in outputs:
            message.output.add(
                name=spec.name,
                data_type=model_config_pb2.DataType.Value(datatypes.to_config(spec.datatype)),
                dims=spec.dims,
            )
        return replace(self, inputs=inputs, outputs=outputs, message=message)


def read(directory: Path) -> ModelConfig:
    """Reads `directory`/config.pbtxt; a mistake in it is InvalidArgument with file, line and column."""
    path = directory / FILE
    message = model_config_pb2.ModelConfig()
    try:
        text_format.Parse(path.read_text(encoding="utf-8"), message)
    except text_format.ParseError as error:
        raise InvalidArgument(f"{path}:{error}") from None
    except UnicodeDecodeError as error:
        raise InvalidArgument(f"{path}: not UTF-8: {error.reason} at byte {error.start}") from None
    if message.name and message.name != directory.name:
        raise InvalidArgument(f"{path}: name is '{message.name}', but the directory is '{directory.name}'")
    message.name = directory.name
    return from_message(message)


def from_message(message: model_config_pb2.ModelConfig) -> ModelConfig:
    """Checks a ModelConfig and fills in Triton's defaults."""
    if message.max_batch_size < 0:
        raise InvalidArgument(f"model '{message.name}': max_batch_size must be 0 or more, got {message.max_batch_size}")
    backend = message.backend or {"onnxruntime_onnx": "onnxruntime"}.get(message.platform, message.platform)
    if not backend:
        raise InvalidArgument(f"model '{message.name}': 'backend' is not set")
    message.backend = backend
    if not message.HasField("version_policy"):
        message.version_policy.latest.num_versions = 1
    if not message.instance_group:
        message.instance_group.add(name=f"{message.name}_0", kind=model_config_pb2.ModelInstanceGroup.KIND_CPU)
    for group in message.instance_group:
        group.count = group.count or 1
    batching = message.dynamic_batching
    return ModelConfig(
        name=message.name,
        backend=backend,
        max_batch_size=message.max_batch_size,
        inputs=tuple(
            TensorSpec(tensor.name, datatype(message.name, tensor), tuple(tensor.dims), tensor.optional)
            for tensor in message.input
        ),
        outputs=tuple(
            TensorSpec(tensor.name, datatype(message.name, tensor), tuple(tensor.dims)) for tensor in message.output
        ),
        instances=sum(group.count for group in message.instance_group),
        dynamic_batching=message.HasField("dynamic_batching") and message.max_batch_size > 0,
        max_queue_delay=batching.max_queue_delay_microseconds / 1e6,
        max_queue_rows=batching.default_queue_policy.max_queue_size,
        parameters={key: value.string_value for key, value in message.parameters.items()},
        message=message,
    )


def datatype(model: str, tensor: model_config_pb2.ModelInput | model_config_pb2.ModelOutput) -> str:
    """The V2 datatype of a tensor of the configuration."""
    name = datatypes.from_config(model_config_pb2.DataType.Name(tensor.data_type))
    if name not in datatypes.NUMPY:
        raise InvalidArgument(f"model '{model}': tensor '{tensor.name}' has data_type '{name}', which is not supported")
    return name
