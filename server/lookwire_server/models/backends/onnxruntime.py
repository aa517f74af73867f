"""The onnxruntime backend: `<version>/model.onnx` on the CPU."""

import asyncio
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime

from lookwire_server.errors import InvalidArgument
from lookwire_server.models import datatypes
from lookwire_server.models.config import ModelConfig, TensorSpec
from lookwire_server.models.model import Model, Tensor
from lookwire_server.models.padding import Padding
from lookwire_server.models.repository import Repository
from lookwire_server.models.session import StackedSession

FILE = "model.onnx"
# onnxruntime's type strings that are not the V2 name in lower case.
ONNX_TYPES = {"float": "FP32", "double": "FP64", "float16": "FP16", "string": "BYTES"}


@dataclass(frozen=True, slots=True)
class OnnxRuntimeBackend:
    """Loads ONNX graphs. `threads` is the number of intra-op threads of a session whose config names none."""

    threads: int

    async def load(self, config: ModelConfig, version: int, directory: Path, repository: Repository) -> Model:
        """Opens a session an instance, checks the config against the graph, and runs each once."""
        sessions = await asyncio.to_thread(self._open, config, directory / FILE)
        config = completed(config, sessions[0])
        await asyncio.to_thread(warm_up, config, sessions)
        return repository.serve(config, version, [StackedSession(config, session.run) for session in sessions])

    def _open(self, config: ModelConfig, path: Path) -> list["OnnxSession"]:
        if not path.is_file():
            raise InvalidArgument(f"{path} does not exist")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = next(iter(config.integers("intra_op_thread_count")), self.threads)
        options.inter_op_num_threads = 1
        # Shapes vary by length and batch: plans per shape and an arena that doubles would grow memory for good.
        options.enable_mem_pattern = False
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        providers = [("CPUExecutionProvider", {"arena_extend_strategy": "kSameAsRequested"})]
        try:
            return [
                OnnxSession(onnxruntime.InferenceSession(path, options, providers)) for _ in range(config.instances)
            ]
        except Exception as error:  # onnxruntime raises classes of its own for each status, without a common base
            raise InvalidArgument(f"{path}: onnxruntime cannot load it: {error}") from error


class OnnxSession:
    """One onnxruntime session."""

    def __init__(self, session: onnxruntime.InferenceSession) -> None:
        self.session = session
        self._outputs = [output.name for output in session.get_outputs()]

    def run(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        return dict(zip(self._outputs, self.session.run(self._outputs, inputs), strict=True))


def completed(config: ModelConfig, session: OnnxSession) -> ModelConfig:
    """The config with inputs and outputs taken from the graph where it is silent; one that contradicts it is an error."""
    graph_inputs = tuple(spec(config, node) for node in session.session.get_inputs())
    graph_outputs = tuple(spec(config, node) for node in session.session.get_outputs())
    for declared, actual in ((config.inputs, graph_inputs), (config.outputs, graph_outputs)):
        by_name = {tensor.name: tensor for tensor in actual}
        for tensor in declared:
            if tensor.name not in by_name:
                raise InvalidArgument(f"config names tensor '{tensor.name}'; the graph has {', '.join(by_name)}")
            in_graph = by_name[tensor.name]
            if tensor.datatype != in_graph.datatype:
                raise InvalidArgument(
                    f"config says tensor '{tensor.name}' is {tensor.datatype}; the graph says {in_graph.datatype}"
                )
            if len(tensor.dims) != len(in_graph.dims) or any(
                want != got and -1 not in (want, got) for want, got in zip(tensor.dims, in_graph.dims, strict=True)
            ):
                raise InvalidArgument(
                    f"config says tensor '{tensor.name}' has dims {list(tensor.dims)}; the graph says {list(in_graph.dims)}"
                )
    return config.completed(graph_inputs, graph_outputs)


def spec(config: ModelConfig, node: onnxruntime.NodeArg) -> TensorSpec:
    """An input or output of the graph, without its batch dimension."""
    kind = node.type.removeprefix("tensor(").removesuffix(")")
    datatype = ONNX_TYPES.get(kind, kind.upper())
    if datatype not in datatypes.NUMPY:
        raise InvalidArgument(f"the graph's tensor '{node.name}' has type {node.type}, which is not supported")
    dims = tuple(dim if isinstance(dim, int) else -1 for dim in node.shape)
    if config.max_batch_size:
        if not dims or dims[0] != -1:
            raise InvalidArgument(
                f"max_batch_size is {config.max_batch_size}, but the first dimension of the graph's tensor '{node.name}' "
                f"is not a dynamic batch: {list(node.shape)}; set max_batch_size to 0 or export with a dynamic batch"
            )
        dims = dims[1:]
    return TensorSpec(node.name, datatype, dims)


def warm_up(config: ModelConfig, sessions: list[OnnxSession]) -> None:
    """Runs every session at batch 1 and at the largest, so that the first request pays for no lazy allocation."""
    padding = Padding.of(config)
    for rows in {1, config.max_batch_size or 1}:
        inputs = {}
        for tensor in config.inputs:
            dims = [padding.bucket(1) if dim == -1 else dim for dim in tensor.dims]
            shape = [rows, *dims] if config.max_batch_size else dims
            inputs[tensor.name] = np.zeros(shape, datatypes.NUMPY[tensor.datatype])
        for session in sessions:
            session.run(inputs)
