"""EncoderService."""

import time
from typing import Any

import grpc

from lookwire.v1 import encoder_service_pb2 as pb
from lookwire.v1 import encoder_service_pb2_grpc
from lookwire_server.encoding.encoder import Encoder
from lookwire_server.encoding.encoders import Encoders
from lookwire_server.errors import InvalidArgument
from lookwire_server.models.model import Lane
from lookwire_server.rpc import convert
from lookwire_server.rpc.guard import to_status

MAX_INPUTS = 1024
# A request of more inputs than this is bulk work: single queries go before it.
BULK_INPUTS = 16

Context = grpc.aio.ServicerContext[Any, Any]


class EncoderServicer(encoder_service_pb2_grpc.EncoderServiceServicer):
    """Answers with the encoders of the repository."""

    def __init__(self, encoders: Encoders) -> None:
        self._encoders = encoders

    async def ListEncoders(self, request: pb.ListEncodersRequest, context: Context) -> pb.ListEncodersResponse:
        return pb.ListEncodersResponse(encoders=map(describe, self._encoders.list()))

    async def GetEncoder(self, request: pb.GetEncoderRequest, context: Context) -> pb.GetEncoderResponse:
        return pb.GetEncoderResponse(encoder=describe(self._encoders.get(request.name, "name")))

    async def Embed(self, request: pb.EmbedRequest, context: Context) -> pb.EmbedResponse:
        started = time.monotonic()
        member = convert.vector_format(request.vector_format)
        if not 1 <= len(request.inputs) <= MAX_INPUTS:
            raise InvalidArgument(
                f"expected 1 to {MAX_INPUTS} inputs, got {len(request.inputs)}", field="inputs", limit=MAX_INPUTS
            )
        encoder = self._encoders.get(request.encoder)
        inputs = [content(message, f"inputs[{index}]") for index, message in enumerate(request.inputs)]
        lane = Lane.BULK if len(inputs) > BULK_INPUTS else Lane.INTERACTIVE
        embedded = await encoder.embed(inputs, lane=lane, deadline=convert.deadline(context))
        times = embedded.times
        return pb.EmbedResponse(
            embeddings=convert.matrix(embedded.vectors, member),
            errors=[
                pb.InputError(index=index, status=to_status(error)) for index, error in sorted(embedded.errors.items())
            ],
            fingerprint=encoder.fingerprint,
            times=convert.stage_times(
                started, decode=times.decode, tokenise=times.tokenise, queue=times.queue, infer=times.infer
            ),
        )


def content(message: pb.Input, field: str) -> str | bytes:
    """The text or the encoded image of an input."""
    match message.WhichOneof("content"):
        case "text":
            return message.text
        case "image":
            return message.image
        case _:
            raise InvalidArgument("set text or image", field=field)


def describe(encoder: Encoder) -> pb.Encoder:
    """The message that describes an encoder."""
    manifest = encoder.manifest
    message = pb.Encoder(
        name=encoder.name,
        fingerprint=encoder.fingerprint,
        version=encoder.version,
        description=manifest.description,
        dimension=manifest.dimension,
        image_size=manifest.image.size if manifest.image else 0,
        context_length=manifest.text.context_length if manifest.text else 0,
        precision=manifest.precision,
        logit_scale=manifest.logit_scale,
        logit_bias=manifest.logit_bias,
    )
    if manifest.text:
        message.modalities.append(pb.MODALITY_TEXT)
    if manifest.image:
        message.modalities.append(pb.MODALITY_IMAGE)
    if manifest.parity:
        message.parity.reference = manifest.parity.reference
        message.parity.passed = manifest.parity.passed
        for figure in manifest.parity.figures:
            message.parity.figures.add(**figure.model_dump())
    return message
