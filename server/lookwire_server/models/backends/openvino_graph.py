"""An ONNX graph as OpenVINO reads it, kept inside its own memory whatever its inputs hold."""

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from lookwire_server.errors import InvalidArgument

if TYPE_CHECKING:
    import openvino

# OpenVINO checks no index that a GatherND, a Scatter or the like takes from a tensor: a graph has only operations of which it
# is known that no value leads them out of their tensors. Of Gather that is documented: what is out of range is zeros.
OPERATIONS = frozenset(
    """
    Abs Add AvgPool Broadcast Clamp Concat Constant Convert ConvertLike Convolution Cos CumSum Divide Elu Equal Erf Exp
    Floor FloorMod Gather Gelu Greater GreaterEqual GroupConvolution HardSigmoid HSwish Less LessEqual Log LogicalAnd
    LogicalNot LogicalOr MVN MatMul MaxPool Maximum Minimum Mish Multiply Negative NotEqual Parameter Power Range ReduceL2
    ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum Relu Reshape Result Round Select ShapeOf Sigmoid Sign Sin Slice
    SoftPlus Softmax Split Sqrt Squeeze StridedSlice Subtract Swish Tanh Tile TopK Transpose Unsqueeze VariadicSplit
    """.split()
)
# What lies between an input and the indices of a table without changing a value, or making one.
PASSING = frozenset({"Convert", "Reshape", "Squeeze", "Transpose", "Unsqueeze"})
# OpenVINO's type -> onnxruntime's name for it.
TYPES = {
    "boolean": "bool",
    "f16": "float16",
    "f32": "float",
    "f64": "double",
    **{f"{sign}{bits}": f"{'u' * (sign == 'u')}int{bits}" for sign in "iu" for bits in (8, 16, 32, 64)},
}


class Node(NamedTuple):
    """An input or output, described as onnxruntime does; a dimension of any size is None."""

    name: str
    type: str
    shape: list[int | None]


class OpenVinoGraph:
    """The graph of a file. Raises InvalidArgument if OpenVINO cannot read it, or if it has an operation that may read outside.

    `inputs` and `outputs` describe its tensors. `tables` has the inputs whose values are looked up in tables: by name the rows
    of the smallest.
    """

    def __init__(self, core: "openvino.Core", path: Path) -> None:
        try:
            self.model = core.read_model(path)
            for operation in self.model.get_ops():
                if operation.get_type_name() == "GatherND":
                    replace_gather_nd(operation)
            self.model.validate_nodes_and_infer_types()
        except RuntimeError as error:
            raise InvalidArgument(f"{path}: OpenVINO cannot load it: {error}") from error
        self.tables: dict[str, int] = {}
        for operation in self.model.get_ops():
            kind = operation.get_type_name()
            if kind not in OPERATIONS:
                raise InvalidArgument(
                    f"{path}: '{operation.get_friendly_name()}' is a {kind}, which is not among the operations that are known "
                    "to stay inside their tensors in OpenVINO whatever is sent; serve the graph without the execution accelerator"
                )
            if kind == "Gather":
                self._note_table(operation)
        self.inputs = [described(port) for port in self.model.inputs]
        self.outputs = [described(port) for port in self.model.outputs]

    def _note_table(self, gather: "openvino.Node") -> None:
        indices, axis = source(gather, 1), source(gather, 2)
        while indices.get_type_name() in PASSING:
            indices = source(indices, 0)
        if indices.get_type_name() != "Parameter" or axis.get_type_name() != "Constant":
            return
        rows = gather.input(0).get_partial_shape()[int(axis.get_vector()[0])]
        if rows.is_static:
            name = indices.output(0).any_name
            self.tables[name] = min(rows.get_length(), self.tables.get(name, rows.get_length()))


def source(operation: "openvino.Node", place: int) -> "openvino.Node":
    """The operation that makes an input of this one."""
    return operation.input_value(place).get_node()


def described(port: "openvino.Output") -> Node:
    """An input or output of the model."""
    name, shape = port.any_name, port.get_partial_shape()
    type = port.get_element_type().get_type_name()
    if type not in TYPES:
        raise InvalidArgument(f"the graph's tensor '{name}' has type {type}, which OpenVINO is not used for here")
    dims = [] if shape.rank.is_dynamic else [dim.get_length() if dim.is_static else None for dim in shape]
    return Node(name, TYPES[type], dims)


def replace_gather_nd(operation: "openvino.Node") -> None:
    """Puts a Gather in the place of a GatherND: from the same data with the dimensions that it indexes made one.

    The answers to indices that are in range, negative ones too, are the same. Nothing is done where the two have dimensions
    of batches in common, or where the number of indexed dimensions is not known.
    """
    from openvino import opset13 as ov

    data, indices = operation.input_value(0), operation.input_value(1)
    rank, last = data.get_partial_shape().rank, indices.get_partial_shape()[-1]
    if operation.get_attributes().get("batch_dims") or rank.is_dynamic or last.is_dynamic:
        return
    depth = last.get_length()
    zero = np.int64(0)
    sizes = ov.shape_of(data)
    row = ov.constant(zero)
    for place in range(depth):
        size = ov.gather(sizes, np.int64(place), zero)
        index = ov.convert(ov.gather(indices, np.int64(place), np.int64(-1)), "i64")
        index = ov.select(ov.less(index, zero), ov.add(index, size), index)
        row = ov.add(ov.multiply(row, size), index)
    rest = ov.gather(sizes, np.arange(depth, rank.get_length()), zero)
    joined = ov.reshape(data, ov.concat([np.array([-1]), rest], 0), False)
    operation.output(0).replace(ov.gather(joined, row, zero).output(0))
