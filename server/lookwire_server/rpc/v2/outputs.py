"""The outputs of a request: how they are asked for, and how they go into the response."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from tritonclient.grpc import service_pb2 as pb

from lookwire_server.errors import InvalidArgument, ModelFailure, SharedMemoryFailure
from lookwire_server.models.config import ModelConfig
from lookwire_server.models.model import Response
from lookwire_server.rpc.v2 import parameters, tensors
from lookwire_server.rpc.v2.classification import classify
from lookwire_server.rpc.v2.shared_memory import Use, Uses

# The most that protobuf can carry in one message, and what of it is left for names and shapes.
MAX_RESPONSE_BYTES = 2**31 - 1
ROOM = 1 << 16


@dataclass(slots=True)
class Output:
    """An output as it is asked for: cut to the best `classes` (0: as it is), and put into shared memory (None: the message)."""

    name: str
    classes: int = 0
    use: Use | None = None


def wanted(request: pb.ModelInferRequest, config: ModelConfig, uses: Uses) -> list[Output]:
    """The outputs that a request asks for, none if it leaves that to the model."""
    if not request.outputs:
        return []
    names = {spec.name for spec in config.outputs}
    outputs: list[Output] = []
    for tensor in request.outputs:
        if any(tensor.name == output.name for output in outputs):
            raise InvalidArgument(f"output '{tensor.name}' already exists in request for model '{config.name}'")
        if tensor.name not in names:
            raise InvalidArgument(
                f"unexpected inference output '{tensor.name}' for model '{config.name}'; it has {', '.join(sorted(names))}"
            )
        output = Output(tensor.name)
        if tensor.parameters:
            place = parameters.place(tensor)
            output.classes = parameters.classes(tensor)
            if place and output.classes:
                raise InvalidArgument(
                    f"output can't set both 'shared_memory_region' and 'classification', as '{tensor.name}' does"
                )
            output.use = uses.use(place) if place else None
        outputs.append(output)
    return outputs


async def fill(
    reply: pb.ModelInferResponse, config: ModelConfig, response: Response, outputs: Sequence[Output]
) -> None:
    """Puts the outputs asked for into the reply, always raw, or into shared memory; all of the model's if none are named."""
    given = response.outputs
    total = 0
    for output in outputs or [Output(spec.name) for spec in config.outputs if spec.name in given]:
        name = output.name
        tensor = given.get(name)
        if tensor is None:
            raise ModelFailure(f"model '{config.name}' has given no output '{name}'", output=name)
        large = tensor.size > tensors.MAX_ON_LOOP
        if output.classes:
            labels = next(spec.labels for spec in config.outputs if spec.name == name)
            ranking = (tensor, output.classes, labels, config.max_batch_size > 0)
            tensor = await asyncio.to_thread(classify, *ranking) if large else classify(*ranking)
        datatype, tensor = tensors.named(name, tensor)
        check_size(total + tensor.nbytes)
        if large and datatype == "BYTES":
            data = await asyncio.to_thread(tensors.to_raw, tensor)
        else:
            data = tensors.to_raw(tensor)
        described = reply.outputs.add()
        described.name = name
        described.datatype = datatype
        described.shape.extend(tensor.shape)
        if output.use:
            put(name, output.use, data)
            described.parameters["shared_memory_region"].string_param = output.use.region.name
            described.parameters["shared_memory_byte_size"].int64_param = len(data)
            data = b""
        total += len(data)
        if datatype == "BYTES":
            check_size(total)
        reply.raw_output_contents.append(data)


def check_size(total: int) -> None:
    """Refuses a response that no message can carry."""
    if total > MAX_RESPONSE_BYTES - ROOM:
        raise InvalidArgument(
            f"Response has byte size {total} which exceeds gRPC's byte size limit {MAX_RESPONSE_BYTES}. "
            "Ask for fewer rows or outputs."
        )


def put(name: str, use: Use, data: bytes) -> None:
    """Puts an output into shared memory."""
    if len(data) > use.byte_size:
        raise SharedMemoryFailure(
            f"shared memory size specified with the request for output '{name}' ({use.byte_size} bytes) should be at least "
            f"{len(data)} bytes to hold the results",
            region=use.region.name,
        )
    use.write(data)
