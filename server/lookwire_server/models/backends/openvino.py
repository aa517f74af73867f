"""OpenVINO as the execution accelerator of an ONNX graph on the CPU: its products in bfloat16, all else in float32.

`optimization { execution_accelerators { cpu_execution_accelerator [ { name: "openvino" parameters { key: "precision_mode"
value: "bf16" } } ] } }` in a model's config asks for it.
"""

import sys
from collections.abc import Sequence
from functools import cache
from queue import SimpleQueue
from typing import TYPE_CHECKING

from lookwire_server.errors import InvalidArgument
from lookwire_server.lanes import Lane
from lookwire_server.models.backends.openvino_graph import OpenVinoGraph
from lookwire_server.models.backends.sound import execute_sound
from lookwire_server.models.config import ModelConfig
from lookwire_server.models.model import Request, Tensor
from lookwire_server.models.session import Execution, StackedSession

if TYPE_CHECKING:
    import openvino

PROPERTIES = {
    "INFERENCE_PRECISION_HINT": "bf16",
    "PERFORMANCE_HINT": "LATENCY",
    # With one stream an inference runs in the thread that asks for it, at that thread's priority.
    "NUM_STREAMS": 1,
    "ENABLE_CPU_PINNING": False,
}


@cache
def core() -> "openvino.Core":
    """OpenVINO itself; InvalidArgument where it is not installed, or where the CPU does not compute in bfloat16."""
    # Without this the import reports itself to Google Analytics, and writes into the home directory.
    sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
    try:
        import openvino
    except ModuleNotFoundError as error:
        raise InvalidArgument(
            f"the execution accelerator 'openvino' is not installed ({error}): pip install 'lookwire[openvino]'"
        ) from None
    core = openvino.Core()
    # Asked for bf16 on another CPU, OpenVINO would compute in float32, or emulate bfloat16.
    if "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        raise InvalidArgument(
            "this CPU has no instructions for bfloat16 (AVX512_BF16, AMX), which the execution accelerator 'openvino' is "
            "served with; take the accelerator out of the model's config"
        )
    return core


class OpenVinoSession:
    """One instance: a compiled model for each lane, of `threads` threads each. InvalidArgument if the graph cannot be compiled.

    Requests that share a compiled model wait for each other, and so would a search for a batch of an import.
    """

    immediate = False
    concurrent = True

    def __init__(self, config: ModelConfig, graph: OpenVinoGraph, threads: int) -> None:
        self._stacked = StackedSession(config, self._run)
        self._tables = graph.tables
        self._inputs = [node.name for node in graph.inputs]
        self._outputs = [spec.name for spec in config.outputs]
        self._idle: SimpleQueue[openvino.InferRequest] = SimpleQueue()
        properties = PROPERTIES | {"INFERENCE_NUM_THREADS": threads}
        try:
            for _ in Lane:
                self._idle.put(core().compile_model(graph.model, "CPU", properties).create_infer_request())
        except RuntimeError as error:
            raise InvalidArgument(f"model '{config.name}': OpenVINO cannot compile the graph: {error}") from error

    def execute(self, requests: Sequence[Request]) -> Execution:
        return execute_sound(self._stacked, [self._refusal(request) or request for request in requests])

    def _refusal(self, request: Request) -> InvalidArgument | None:
        """What OpenVINO would execute without complaint, and no answer could come of."""
        for name, tensor in request.inputs.items():
            if not tensor.size:
                return InvalidArgument(f"input '{name}' has shape {list(tensor.shape)}: it must not be empty")
            rows = self._tables.get(name)
            if rows and not (-rows <= tensor.min() and tensor.max() < rows):
                return InvalidArgument(
                    f"input '{name}' has {out_of(tensor, rows)}: its values must be from 0 to {rows - 1}"
                )
        return None

    def _run(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        request = self._idle.get()
        try:
            # All inputs by name, for one that is not set would have its value of the request before.
            outputs = request.infer({name: inputs[name] for name in self._inputs}, share_inputs=True)
        finally:
            self._idle.put(request)
        return {name: outputs[name] for name in self._outputs}

    def close(self) -> None:
        """Nothing to do: a compiled model goes with the last reference to it."""


def out_of(values: Tensor, rows: int) -> object:
    """The first of the values that are no row's."""
    return values[~((values >= -rows) & (values < rows))][0]
