"""An ONNX graph as OpenVINO reads it, kept inside its own memory whatever its inputs hold."""

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from lookwire_server.errors import InvalidArgument

if TYPE_CHECKING:
    import openvino

# OpenVINO checks no index that a GatherND, a ScatterND or the like takes from a tensor: a graph has only operations of which it
# is known that no value leads them out of their tensors. Of Gather that is documented: what is out of range is zeros.
OPERATIONS = frozenset(
    """
    Abs Add AvgPool BatchNormInference Broadcast Clamp Concat Constant Convert ConvertLike Convolution Cos CumSum Divide
    Elu Equal Erf Exp Floor FloorMod Gather Gelu Greater GreaterEqual GroupConvolution HardSigmoid HSwish IsFinite IsInf
    IsNaN Less LessEqual Log LogicalAnd LogicalNot LogicalOr MatMul Maximum MaxPool Minimum Mish Multiply MVN Negative
    NonZero NotEqual Parameter Power Range ReduceL2 ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum Relu Reshape
    Result Round Select ShapeOf Sigmoid Sign Sin Slice Softmax SoftPlus Split Sqrt Squeeze StridedSlice Subtract Swish
    Tanh Tile TopK Transpose Unsqueeze VariadicSplit
    """.split()  # noqa: SIM905 - a name a line would fill two pages
)
# Inputs of operations that lead outside where they are not what a graph's author meant: they must be constants.
CONSTANTS = {"TopK": 1, "VariadicSplit": 2}
# What may lie between an input and the indices of a table, for it changes no value.
PASSING = frozenset({"Convert", "Gather", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze"})
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
                if replacement := gathered(operation):
                    operation.output(0).replace(replacement.output(0))
            self.model.validate_nodes_and_infer_types()
        except RuntimeError as error:
            raise InvalidArgument(f"{path}: OpenVINO cannot load it: {error}") from error
        self.tables: dict[str, int] = {}
        for operation in self.model.get_ops():
            kind = operation.get_type_name()
            if kind not in OPERATIONS or not is_constant(operation, CONSTANTS.get(kind)):
                raise InvalidArgument(
                    f"{path}: '{operation.get_friendly_name()}' is a {kind} of which it is not known that OpenVINO stays inside "
                    "its tensors whatever is sent; serve the graph without the execution accelerator"
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


def is_constant(operation: "openvino.Node", place: int | None) -> bool:
    """Whether an input of the operation is the same for all that is sent."""
    return place is None or source(operation, place).get_type_name() == "Constant"


def described(port: "openvino.Output") -> Node:
    """An input or output of the model."""
    name, shape = port.any_name, port.get_partial_shape()
    type = port.get_element_type().get_type_name()
    if type not in TYPES:
        raise InvalidArgument(f"the graph's tensor '{name}' has type {type}, which OpenVINO is not used for here")
    dims = [] if shape.rank.is_dynamic else [dim.get_length() if dim.is_static else None for dim in shape]
    return Node(name, TYPES[type], dims)


def gathered(operation: "openvino.Node") -> "openvino.Node | None":
    """A Gather that gives what a GatherND or a GatherElements gives, whose indices nobody checks; None where there is none."""
    kind, attributes = operation.get_type_name(), operation.get_attributes()
    if kind not in ("GatherND", "GatherElements"):
        return None
    data, indices = operation.input_value(0), operation.input_value(1)
    rank, last = data.get_partial_shape().rank, indices.get_partial_shape()[-1]
    if rank.is_dynamic:
        return None
    if kind == "GatherElements" and attributes["axis"] in (-1, rank.get_length() - 1):
        return along_last(data, indices, rank.get_length() - 1)
    if kind == "GatherND" and not attributes["batch_dims"] and last.is_static:
        return joined(data, indices, rank.get_length(), last.get_length())
    return None


def along_last(data: "openvino.Output", indices: "openvino.Output", axis: int) -> "openvino.Node":
    """GatherElements along the last axis: each row's indices are of that row."""
    from openvino import opset13 as ov

    return ov.gather(data, indices, np.int64(axis), axis)


def joined(data: "openvino.Output", indices: "openvino.Output", rank: int, depth: int) -> "openvino.Node":
    """GatherND from the first `depth` dimensions: they are made one, and so are the indices of each."""
    from openvino import opset13 as ov

    zero = np.int64(0)
    sizes = ov.shape_of(data)
    row = ov.constant(zero)
    for place in range(depth):
        size = ov.gather(sizes, np.int64(place), zero)
        index = ov.convert(ov.gather(indices, np.int64(place), np.int64(-1)), "i64")
        index = ov.select(ov.less(index, zero), ov.add(index, size), index)
        row = ov.add(ov.multiply(row, size), index)
    rest = ov.gather(sizes, np.arange(depth, rank), zero)
    return ov.gather(ov.reshape(data, ov.concat([np.array([-1]), rest], 0), False), row, zero)
