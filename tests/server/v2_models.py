"""For tests of the V2 protocol: a model repository, of two sums and of models that give back what they get, and requests."""

import struct
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from tritonclient.grpc import service_pb2 as pb

SIMPLE = """
backend: "onnxruntime" max_batch_size: 8
input [{ name: "INPUT0" data_type: TYPE_INT32 dims: [16] }, { name: "INPUT1" data_type: TYPE_INT32 dims: [16] }]
output [{ name: "OUTPUT0" data_type: TYPE_INT32 dims: [16] }, { name: "OUTPUT1" data_type: TYPE_INT32 dims: [16] }]
"""
TYPES = (
    "BOOL",
    "INT8",
    "INT16",
    "INT32",
    "INT64",
    "UINT8",
    "UINT16",
    "UINT32",
    "UINT64",
    "FP16",
    "FP32",
    "FP64",
    "STRING",
)


def tensors(*types: str, dims: str = "[-1]", more: str = "") -> str:
    """The config of inputs INPUT0, INPUT1, ... and outputs of the same types."""
    lines = []
    for number, type in enumerate(types):
        lines.append(f'input {{ name: "INPUT{number}" data_type: TYPE_{type} dims: {dims} {more} }}')
        lines.append(f'output {{ name: "OUTPUT{number}" data_type: TYPE_{type} dims: {dims} }}')
    return "\n".join(lines)


IDENTITIES = {
    "floats": "max_batch_size: 8\n"
    'input { name: "INPUT0" data_type: TYPE_FP32 dims: [-1] }\n'
    'output { name: "OUTPUT0" data_type: TYPE_FP32 dims: [-1] label_filename: "labels.txt" }',
    "strings": f"max_batch_size: 8\n{tensors('STRING')}",
    "types": tensors(*TYPES, more="optional: true"),
    "plain": tensors("FP32", dims="[-1, 2]"),
    "required": tensors("FP32", "FP32", "FP32"),
    "some": f"{tensors('FP32', 'FP32')}\n" + 'input { name: "EXTRA" data_type: TYPE_FP32 dims: [1] optional: true }',
    "slow": f"max_batch_size: 1\n{tensors('FP32')}\n"
    'dynamic_batching { }\nparameters { key: "execute_delay_ms" value { string_value: "300" } }',
    "one_at_a_time": f"max_batch_size: 1\n{tensors('FP32')}\n"
    "dynamic_batching { default_queue_policy { max_queue_size: 1 } }\n"
    'parameters { key: "execute_delay_ms" value { string_value: "300" } }',
    "patient": f"max_batch_size: 1\n{tensors('FP32')}\n"
    "dynamic_batching { default_queue_policy { allow_timeout_override: true default_timeout_microseconds: 60000000 } }\n"
    'parameters { key: "execute_delay_ms" value { string_value: "300" } }',
}


def write(root: Path) -> Path:
    """Writes the repository."""
    for name, config in IDENTITIES.items():
        (root / name / "1").mkdir(parents=True)
        (root / name / "config.pbtxt").write_text(f'backend: "identity"\n{config}\n')
    (root / "floats" / "labels.txt").write_text("cat\ndog\nhat\n")
    for version in (1, 2):
        save_sums(root / "simple" / str(version) / "model.onnx")
    (root / "simple" / "config.pbtxt").write_text(f"{SIMPLE}version_policy {{ all {{ }} }}\n")
    return root


def save_sums(path: Path) -> None:
    """Writes a graph of INT32 tensors of shape [batch, 16]: OUTPUT0 = INPUT0 + INPUT1, OUTPUT1 = INPUT0 - INPUT1."""
    names = ("INPUT0", "INPUT1", "OUTPUT0", "OUTPUT1")
    values = [helper.make_tensor_value_info(name, TensorProto.INT32, ["batch", 16]) for name in names]
    nodes = [helper.make_node("Add", names[:2], ["OUTPUT0"]), helper.make_node("Sub", names[:2], ["OUTPUT1"])]
    graph = helper.make_graph(nodes, "sums", values[:2], values[2:])
    path.parent.mkdir(parents=True)
    onnx.save(helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 17)]), path)


def raw_request(
    model: str, *arrays: np.ndarray[Any, Any], datatype: str = "FP32", **fields: object
) -> pb.ModelInferRequest:
    """A request with raw contents INPUT0, INPUT1, ..."""
    request = pb.ModelInferRequest(model_name=model, **fields)
    for number, array in enumerate(arrays):
        request.inputs.add(name=f"INPUT{number}", datatype=datatype, shape=array.shape)
        request.raw_input_contents.append(array.tobytes())
    return request


def strings(*elements: bytes) -> bytes:
    return b"".join(struct.pack("<I", len(element)) + element for element in elements)


def refused(stub: Any, request: pb.ModelInferRequest) -> tuple[grpc.StatusCode, str]:
    """The code and the words of a request that must fail."""
    with pytest.raises(grpc.RpcError) as failure:
        stub.ModelInfer(request)
    return failure.value.code(), failure.value.details() or ""
