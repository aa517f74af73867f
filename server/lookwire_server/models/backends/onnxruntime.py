"""The onnxruntime backend: `<version>/model.onnx`, on the CPU or, with a GPU build of onnxruntime, on GPUs.

A config may have OpenVINO execute the graph in its place (openvino.py).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnxruntime

from lookwire_server.errors import InvalidArgument
from lookwire_server.models import datatypes
from lookwire_server.models.backends.load_threads import in_load_thread
from lookwire_server.models.backends.openvino import OpenVinoSession, core
from lookwire_server.models.backends.openvino_graph import Node, OpenVinoGraph
from lookwire_server.models.backends.sound import execute_sound
from lookwire_server.models.config import ModelConfig, TensorSpec
from lookwire_server.models.model import Model, Request, Tensor
from lookwire_server.models.repository import Repository
from lookwire_server.models.session import Execution, Session, StackedSession
from lookwire_server.models.warmup import rehearse, warm

FILE = "model.onnx"
GPU_PROVIDER = "CUDAExecutionProvider"
# onnxruntime's type strings that are not the V2 name in lower case.
ONNX_TYPES = {"float": "FP32", "double": "FP64", "float16": "FP16", "string": "BYTES"}
# optimization.graph.level -> what onnxruntime may rewrite.
LEVELS = {
    -1: onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    0: onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL,
    1: onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    2: onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL,
}
SHRINKAGE = "memory.enable_memory_arena_shrinkage"


@dataclass(frozen=True, slots=True)
class OnnxRuntimeBackend:
    """Loads ONNX graphs. `threads` is the number of intra-op threads that the sessions of a model share whose config names none.

    `default_max_batch_size` is the max_batch_size of a graph that takes batches and whose config says nothing of it; 0
    leaves such a graph without batching.
    """

    threads: int
    default_max_batch_size: int = 4

    async def load(self, config: ModelConfig, version: int, directory: Path, repository: Repository) -> Model:
        """Opens a session an instance, checks the config against the graph, and warms each up."""
        path = graph_file(config, directory)
        sessions: Sequence[Session]
        if config.accelerated:
            config, sessions = await in_load_thread(self._accelerate, config, path)
        else:
            opened = await in_load_thread(self._open, config, path)
            config = completed(config, opened[0].get_inputs(), opened[0].get_outputs(), self.default_max_batch_size)
            sessions = [OnnxSession(config, session) for session in opened]
        if config.warmups:
            await in_load_thread(warm, config, directory.parent, sessions)
        else:
            await in_load_thread(rehearse, config, sessions)
        return repository.serve(config, version, sessions)

    def _accelerate(self, config: ModelConfig, path: Path) -> tuple[ModelConfig, list[OpenVinoSession]]:
        graph = OpenVinoGraph(core(), path)
        config = completed(config, graph.inputs, graph.outputs, self.default_max_batch_size)
        threads = self._intra_op_threads(config)
        return config, [OpenVinoSession(config, graph, threads) for _ in range(config.instances)]

    def _open(self, config: ModelConfig, path: Path) -> list[onnxruntime.InferenceSession]:
        if config.gpu and GPU_PROVIDER not in onnxruntime.get_available_providers():
            raise InvalidArgument(
                f"model '{config.name}': instance_group asks for KIND_GPU, but this onnxruntime has no GPU support; set "
                "KIND_CPU or KIND_AUTO, or install the GPU build (lookwire[server-gpu])"
            )
        options = self._options(config)
        arena = {"arena_extend_strategy": "kSameAsRequested"}
        try:
            sessions = [
                onnxruntime.InferenceSession(
                    path,
                    options,
                    [
                        *([(GPU_PROVIDER, {"device_id": device})] if device is not None else []),
                        ("CPUExecutionProvider", arena),
                    ],
                )
                for device in devices(config)
            ]
        except Exception as error:  # onnxruntime raises classes of its own for each status, without a common base
            raise InvalidArgument(f"{path}: onnxruntime cannot load it: {error}") from error
        if any(
            device is not None and GPU_PROVIDER not in session.get_providers()
            for device, session in zip(devices(config), sessions, strict=True)
        ):
            raise InvalidArgument(
                f"model '{config.name}': onnxruntime cannot use a GPU here; its log says why. Set KIND_CPU or KIND_AUTO to "
                "serve it on the CPU"
            )
        return sessions

    def _intra_op_threads(self, config: ModelConfig) -> int:
        return integer(config, "intra_op_thread_count", max(1, self.threads // config.instances))

    def _options(self, config: ModelConfig) -> onnxruntime.SessionOptions:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self._intra_op_threads(config)
        options.inter_op_num_threads = integer(config, "inter_op_thread_count", 1)
        options.enable_cpu_mem_arena = bool(integer(config, "enable_mem_arena", 1, most=1))
        # Shapes vary by length and batch: plans per shape and an arena that doubles would grow memory for good.
        options.enable_mem_pattern = bool(integer(config, "enable_mem_pattern", 0, most=1))
        # Between the parts of a run its threads spin, at the lowest priority, and between runs they sleep: to wake them for each
        # of some hundred parts makes a lone text a quarter slower.
        options.add_session_config_entry("session.intra_op.allow_spinning", "1")
        options.add_session_config_entry("session.force_spinning_stop", "1")
        if integer(config, "execution_mode", 0, most=1):
            options.execution_mode = onnxruntime.ExecutionMode.ORT_PARALLEL
        level = config.message.optimization.graph.level
        if level not in LEVELS:
            raise InvalidArgument(
                f"model '{config.name}': optimization.graph.level must be -1 (basic), 0 (all), 1 (extended) or 2 (none), "
                f"got {level}"
            )
        options.graph_optimization_level = LEVELS[level]
        return options


class OnnxSession:
    """One instance. Texts that are not UTF-8 fail the request that has them, for ONNX has no other strings."""

    immediate = False

    def __init__(self, config: ModelConfig, session: onnxruntime.InferenceSession) -> None:
        self._session = session
        # A GPU knows no priorities of threads.
        self.concurrent = GPU_PROVIDER not in session.get_providers()
        self._stacked = StackedSession(config, self._run)
        self._outputs = [spec.name for spec in config.outputs]
        self._text_inputs = [spec.name for spec in config.inputs if spec.datatype == "BYTES"]
        self._text_outputs = [spec.name for spec in config.outputs if spec.datatype == "BYTES"]
        self._options: onnxruntime.RunOptions | None = None
        if SHRINKAGE in config.parameters:
            self._options = onnxruntime.RunOptions()
            self._options.add_run_config_entry(SHRINKAGE, config.parameters[SHRINKAGE])

    def execute(self, requests: Sequence[Request]) -> Execution:
        if not self._text_inputs:
            return self._stacked.execute(requests)
        return execute_sound(self._stacked, [self._decoded(request) for request in requests])

    def _decoded(self, request: Request) -> Request | InvalidArgument:
        """The request with str for bytes, as onnxruntime takes them."""
        inputs = dict(request.inputs)
        for name in self._text_inputs:
            try:
                if name in inputs:
                    inputs[name] = np.array(
                        [text.decode() for text in inputs[name].flat], datatypes.NUMPY["BYTES"]
                    ).reshape(inputs[name].shape)
            except UnicodeDecodeError as error:
                return InvalidArgument(
                    f"input '{name}' has a text that is not UTF-8: {error.reason} at byte {error.start}"
                )
        return replace(request, inputs=inputs)

    def _run(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        outputs = dict(zip(self._outputs, self._session.run(self._outputs, inputs, self._options), strict=True))
        for name in self._text_outputs:
            texts = outputs[name]
            outputs[name] = np.array([text.encode() for text in texts.flat], datatypes.NUMPY["BYTES"]).reshape(
                texts.shape
            )
        return outputs

    def close(self) -> None:
        """Nothing to do: a session goes with the last reference to it."""


def graph_file(config: ModelConfig, directory: Path) -> Path:
    """The graph of the version in `directory`; a folder in its place holds it together with its external data."""
    path = directory / (config.message.default_model_filename or FILE)
    if not path.resolve().is_relative_to(directory.resolve()):
        raise InvalidArgument(f"model '{config.name}': default_model_filename leads out of {directory}: {path}")
    path = path / FILE if path.is_dir() else path
    if not path.is_file():
        raise InvalidArgument(f"{path} does not exist")
    return path


def devices(config: ModelConfig) -> list[int | None]:
    """The GPU of each instance; None is the CPU."""
    found: list[int | None] = []
    for group in config.message.instance_group:
        gpus: Sequence[int | None] = [None]
        if group.kind == group.KIND_GPU:
            gpus = list(group.gpus) or [0]
        found += [gpu for gpu in gpus for _ in range(group.count)]
    return found


def integer(config: ModelConfig, parameter: str, default: int, *, most: int = 1024) -> int:
    """A parameter that is a number from 0 to `most`."""
    values = config.integers(parameter)
    if len(values) > 1 or any(not 0 <= value <= most for value in values):
        raise InvalidArgument(
            f"model '{config.name}': parameter '{parameter}' must be one integer from 0 to {most}, got "
            f"'{config.parameters[parameter]}'"
        )
    return values[0] if values else default


def completed(
    config: ModelConfig, inputs: Sequence[Node], outputs: Sequence[Node], default_max_batch_size: int
) -> ModelConfig:
    """The config with what it leaves to the graph; one that contradicts the graph is an error.

    A config that names no inputs or no outputs gets those of the graph. If all tensors of that have a first dimension of any
    size, it is taken for the batch: max_batch_size is the default where it is 0, and dynamic batching is on.
    """
    declared = {spec.name: spec for spec in (*config.inputs, *config.outputs)}
    batch = config.max_batch_size
    silent = not (config.inputs and config.outputs)
    if silent and not batch and all(takes_batch(node, declared.get(node.name)) for node in (*inputs, *outputs)):
        batch = default_max_batch_size
    graph_inputs, graph_outputs = (
        tuple(spec_of(node, batch, declared.get(node.name)) for node in nodes) for nodes in (inputs, outputs)
    )
    if config.inputs and (lacking := [spec.name for spec in graph_inputs if spec.name not in declared]):
        raise InvalidArgument(f"the graph needs input '{lacking[0]}', which the config does not name")
    joined = any(spec.ragged for spec in config.inputs)
    for specs, in_graph, of_inputs in ((config.inputs, graph_inputs, True), (config.outputs, graph_outputs, False)):
        by_name = {spec.name: spec for spec in in_graph}
        for spec in specs:
            if spec.name not in by_name:
                raise InvalidArgument(f"config names tensor '{spec.name}'; the graph has {', '.join(by_name)}")
            # Ragged inputs go in end to end, and outputs of theirs come out so.
            compare(spec, by_name[spec.name], shapes=not (spec.ragged if of_inputs else joined))
    return config.completed(graph_inputs, graph_outputs, max_batch_size=batch if silent and batch else None)


def takes_batch(node: Node, declared: TensorSpec | None) -> bool:
    """Whether a tensor's first dimension is of any size, and is not among the dims that the config declares."""
    return (
        bool(node.shape)
        and not isinstance(node.shape[0], int)
        and (declared is None or len(model_dims(declared)) + 1 == len(node.shape))
    )


def model_dims(spec: TensorSpec) -> tuple[int, ...]:
    """The dims on the graph's side."""
    return spec.dims if spec.reshape is None else spec.reshape


def compare(declared: TensorSpec, in_graph: TensorSpec, *, shapes: bool) -> None:
    """Raises InvalidArgument where the config contradicts the graph."""
    if declared.datatype != in_graph.datatype:
        raise InvalidArgument(
            f"config says tensor '{declared.name}' is {declared.datatype}; the graph says {in_graph.datatype}"
        )
    wanted, found = model_dims(declared), model_dims(in_graph)
    if shapes and (
        len(wanted) != len(found)
        or any(want != got and -1 not in (want, got) for want, got in zip(wanted, found, strict=True))
    ):
        raise InvalidArgument(
            f"config says tensor '{declared.name}' has dims {list(wanted)}; the graph says {list(found)}"
        )


def spec_of(node: Node, max_batch_size: int, declared: TensorSpec | None) -> TensorSpec:
    """An input or output of the graph, without its batch dimension; a single number is a tensor of dims [1]."""
    kind = node.type.removeprefix("tensor(").removesuffix(")")
    datatype = ONNX_TYPES.get(kind, kind.upper())
    if datatype not in datatypes.NUMPY:
        raise InvalidArgument(f"the graph's tensor '{node.name}' has type {node.type}, which is not supported")
    dims = tuple(dim if isinstance(dim, int) else -1 for dim in node.shape)
    if max_batch_size:
        if not dims or dims[0] != -1:
            raise InvalidArgument(
                f"max_batch_size is {max_batch_size}, but the first dimension of the graph's tensor '{node.name}' "
                f"is not a dynamic batch: {list(node.shape)}; set max_batch_size to 0 or export with a dynamic batch"
            )
        dims = dims[1:]
    return TensorSpec(node.name, datatype, dims) if dims else TensorSpec(node.name, datatype, (1,), reshape=())
