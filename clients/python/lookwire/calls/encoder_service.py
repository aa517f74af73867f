"""The calls of EncoderService."""

from collections.abc import Sequence

import numpy as np

from lookwire.calls.call import Call, stage_times
from lookwire.errors import FieldViolation, LookwireError, from_status
from lookwire.images import image_bytes
from lookwire.types import Embeddings, Encoder, Image, ParityFigure, ParityRecord
from lookwire.v1 import encoder_service_pb2 as pb
from lookwire.v1.vector_pb2 import VECTOR_FORMAT_F16, VECTOR_FORMAT_F32
from lookwire.vectors import matrix_array


def list_encoders() -> Call[list[Encoder]]:
    """Asks for all encoders."""

    def parse(response: pb.ListEncodersResponse) -> list[Encoder]:
        return [_encoder(message) for message in response.encoders]

    return Call("ListEncoders", pb.ListEncodersRequest(), parse)


def get_encoder(name: str) -> Call[Encoder]:
    """Asks for one encoder."""

    def parse(response: pb.GetEncoderResponse) -> Encoder:
        return _encoder(response.encoder)

    return Call("GetEncoder", pb.GetEncoderRequest(name=name), parse)


def embed(
    texts: Sequence[str], images: Sequence[Image], encoder: str, *, partial: bool, float16: bool
) -> Call[Embeddings]:
    """Asks for a vector for each text and then each image."""
    if isinstance(texts, str):
        raise TypeError("texts are a list of strings, not one string")
    if isinstance(images, bytes):
        raise TypeError("images are a list of images, not one image")
    inputs = [pb.Input(text=text) for text in texts] + [pb.Input(image=image_bytes(image)) for image in images]
    if not inputs:
        raise ValueError("there is nothing to embed: give texts, images or both")
    vector_format = VECTOR_FORMAT_F16 if float16 else VECTOR_FORMAT_F32

    def parse(response: pb.EmbedResponse) -> Embeddings:
        failed = {error.index: from_status(error.status) for error in response.errors}
        if failed and not partial:
            raise _of_input(*min(failed.items()))
        vectors = matrix_array(response.embeddings)
        vectors[list(failed)] = np.nan
        return Embeddings(vectors, response.fingerprint, stage_times(response.times), failed)

    return Call("Embed", pb.EmbedRequest(encoder=encoder, inputs=inputs, vector_format=vector_format), parse)


def _of_input(index: int, error: LookwireError) -> LookwireError:
    """The error of one input, as the error of the whole call."""
    field, message = f"inputs[{index}]", f"inputs[{index}]: {error.message}"
    violations = (FieldViolation(field, error.message),)
    return type(error)(message, error.code, error.reason, error.metadata, violations)


def _encoder(message: pb.Encoder) -> Encoder:
    return Encoder(
        name=message.name,
        fingerprint=message.fingerprint,
        version=message.version,
        description=message.description,
        dimension=message.dimension,
        modalities=frozenset(pb.Modality.Name(value).removeprefix("MODALITY_").lower() for value in message.modalities),
        image_size=message.image_size,
        context_length=message.context_length,
        precision=message.precision,
        logit_scale=message.logit_scale,
        logit_bias=message.logit_bias if message.HasField("logit_bias") else None,
        parity=_parity(message.parity) if message.HasField("parity") else None,
    )


def _parity(message: pb.ParityRecord) -> ParityRecord:
    figures = (
        ParityFigure(
            name=figure.name,
            value=figure.value,
            at_least=figure.at_least if figure.HasField("at_least") else None,
            at_most=figure.at_most if figure.HasField("at_most") else None,
        )
        for figure in message.figures
    )
    return ParityRecord(reference=message.reference, passed=message.passed, figures=tuple(figures))
