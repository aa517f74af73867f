"""The inputs of a request, from wherever their data is."""

import asyncio
from collections.abc import Mapping, Sequence
from math import prod

from tritonclient.grpc import service_pb2 as pb

from lookwire_server.errors import InvalidArgument
from lookwire_server.models import datatypes
from lookwire_server.models.config import ModelConfig, TensorSpec
from lookwire_server.models.model import Tensor
from lookwire_server.rpc.v2 import parameters, tensors
from lookwire_server.rpc.v2.parameters import Place
from lookwire_server.rpc.v2.shared_memory import Uses

# A copy of this many bytes out of shared memory holds up the event loop for about a millisecond.
MAX_COPY_ON_LOOP = 4 << 20
MAX_RANK = 32


async def read(
    request: pb.ModelInferRequest, raw: Sequence[bytes], config: ModelConfig, uses: Uses
) -> dict[str, Tensor]:
    """The input tensors by name: each from shared memory, from its typed contents, or from the next of the raw contents.

    Names, datatypes and sizes are right in themselves; whether the shapes fit the model is for the model to say.
    """
    specs = config.specs
    inputs: dict[str, Tensor] = {}
    taken = one_by_one = 0
    for tensor in request.inputs:
        name = tensor.name
        if name in inputs:
            raise InvalidArgument(f"input '{name}' already exists in request for model '{config.name}'")
        shape = tuple(tensor.shape)
        check(config.name, name, tensor.datatype, shape, specs)
        count = prod(shape)
        place = parameters.place(tensor) if tensor.parameters else None
        typed = tensor.HasField("contents")
        data = b""
        if place:
            if typed:
                raise InvalidArgument(
                    f"unexpected 'content' provided when using shared memory for input tensor '{name}' for model "
                    f"'{config.name}'"
                )
            data = await copy(tensor, count, place, uses, config.name)
        elif typed:
            if raw:
                raise InvalidArgument(
                    f"contents field must not be specified when using raw_input_contents for '{name}' for model "
                    f"'{config.name}'"
                )
        elif taken < len(raw):
            data = raw[taken]
            taken += 1
        else:
            raise InvalidArgument(
                f"unable to find data for input tensor '{name}' for model '{config.name}' in request: it has no contents and no "
                f"shared memory, and raw_input_contents has {len(raw)} entries"
            )
        if typed or tensor.datatype == "BYTES":
            one_by_one += count
        if one_by_one > tensors.MAX_ON_LOOP:
            flat = await asyncio.to_thread(tensors.elements, tensor, count, data, config.name)
        else:
            flat = tensors.elements(tensor, count, data, config.name)
        try:
            inputs[name] = flat.reshape(shape)
        except ValueError:  # sizes beside a 0 that no array can have
            raise InvalidArgument(
                f"input '{name}' for model '{config.name}' has a shape that no tensor can have: {list(shape)}"
            ) from None
    if taken < len(raw):
        raise InvalidArgument(
            f"raw_input_contents has {len(raw)} entries for model '{config.name}', but only {taken} inputs take their data "
            "from there"
        )
    return inputs


def check(model: str, name: str, datatype: str, shape: tuple[int, ...], specs: Mapping[str, TensorSpec]) -> None:
    """Refuses an input that the model does not have, or of another datatype, or with a shape that none can have."""
    spec = specs.get(name)
    if spec is None:
        raise InvalidArgument(
            f"unexpected inference input '{name}' for model '{model}'; it takes {', '.join(specs) or 'none'}"
        )
    if datatype != spec.datatype:
        raise InvalidArgument(
            f"inference input '{name}' data-type is '{datatype}', but model '{model}' expects '{spec.datatype}'"
        )
    if len(shape) > MAX_RANK:
        raise InvalidArgument(
            f"input '{name}' for model '{model}' has {len(shape)} dimensions, at most {MAX_RANK} are taken"
        )
    if shape and min(shape) < 0:
        raise InvalidArgument(
            f"input '{name}' for model '{model}' has shape {list(shape)}; the dimensions of a request must be >= 0"
        )


async def copy(tensor: tensors.InputTensor, count: int, place: Place, uses: Uses, model: str) -> bytes:
    """The contents of an input in shared memory."""
    use = uses.use(place, copied=True)
    expected = count * datatypes.NUMPY[tensor.datatype].itemsize
    if tensor.datatype != "BYTES" and place.byte_size != expected:
        raise tensors.mismatch(tensor.name, model, expected, place.byte_size)
    if place.byte_size <= MAX_COPY_ON_LOOP:
        return use.read()
    return await asyncio.to_thread(use.read)  # if the call is cancelled meanwhile, what it reads is thrown away
