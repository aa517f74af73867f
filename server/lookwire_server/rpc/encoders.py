"""EncoderService."""

import asyncio
import time
from collections.abc import Mapping, Sequence
from typing import Any

import grpc

from lookwire.v1 import encoder_service_pb2 as pb
from lookwire.v1 import encoder_service_pb2_grpc
from lookwire.v1.stage_times_pb2 import StageTimes
from lookwire_server.encoding.encoder import Embedded, Encoder, Times, Vectors
from lookwire_server.encoding.encoders import Encoders
from lookwire_server.encoding.labels import Prompts
from lookwire_server.encoding.manifest import ImageRules
from lookwire_server.encoding.scores import ScoreRule
from lookwire_server.errors import InvalidArgument, LookwireError
from lookwire_server.lanes import Lane
from lookwire_server.rpc import convert, labels, scores
from lookwire_server.rpc.guard import to_status

MAX_INPUTS = 1024
# A request of more inputs than this is bulk work: single queries go before it.
BULK_INPUTS = 16
# The mean of so many prompts is computed on the event loop, in less than a millisecond; that of more in a thread.
INLINE_PROMPTS = 512
SCORE_RULES = {"softmax": pb.SCORE_RULE_SOFTMAX, "sigmoid": pb.SCORE_RULE_SIGMOID}

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
        check_count(request.inputs, "inputs")
        encoder = self._encoders.get(request.encoder)
        inputs = [content(message, f"inputs[{index}]") for index, message in enumerate(request.inputs)]
        embedded = await encoder.embed(inputs, lane=lane(len(inputs)), deadline=convert.deadline(context))
        return pb.EmbedResponse(
            embeddings=convert.matrix(embedded.vectors, member),
            errors=input_errors(embedded.errors),
            fingerprint=encoder.fingerprint,
            times=stage_times(started, embedded.times),
        )

    async def Score(self, request: pb.ScoreRequest, context: Context) -> pb.ScoreResponse:
        started = time.monotonic()
        check_count(request.pairs, "pairs")
        encoder = self._encoders.get(request.encoder)
        rows: dict[str | bytes, int] = {}

        def row(message: pb.Input, field: str) -> int:
            """The input's row of the vectors, which equal inputs share."""
            return rows.setdefault(content(message, field), len(rows))

        pairs = [
            (row(pair.first, f"pairs[{index}].first"), row(pair.second, f"pairs[{index}].second"))
            for index, pair in enumerate(request.pairs)
        ]
        embedded = await encoder.embed(list(rows), lane=lane(len(rows)), deadline=convert.deadline(context))
        reply = scores.of_pairs(embedded, pairs, ScoreRule.of(encoder.manifest))
        reply.fingerprint = encoder.fingerprint
        reply.times.CopyFrom(stage_times(started, embedded.times))
        return reply

    async def Classify(self, request: pb.ClassifyRequest, context: Context) -> pb.ClassifyResponse:
        started = time.monotonic()
        check_count(request.inputs, "inputs")
        sets = labels.from_messages(request.groups)
        scores.check_count(len(request.inputs), sets, request.top_k)
        encoder = self._encoders.get(request.encoder)
        if encoder.manifest.text is None:
            raise InvalidArgument(
                f"encoder '{encoder.name}' has no text tower, so that it cannot embed labels; name one that has",
                field="encoder",
            )
        inputs = [content(message, f"inputs[{index}]") for index, message in enumerate(request.inputs)]
        prompts = Prompts(sets)
        prompts.check(encoder)
        work = len(inputs) + encoder.missing(prompts.texts)
        # At once, so that both are of one version of the encoder.
        embedded = await encoder.embed([*inputs, *prompts.texts], lane=lane(work), deadline=convert.deadline(context))
        vectors = await label_vectors(prompts, embedded.vectors[len(inputs) :])
        embedded = Embedded(embedded.vectors[: len(inputs)], embedded.errors, embedded.times)
        return pb.ClassifyResponse(
            classifications=await scores.classifications(
                embedded, vectors, request.top_k, ScoreRule.of(encoder.manifest)
            ),
            errors=input_errors(embedded.errors),
            fingerprint=encoder.fingerprint,
            times=stage_times(started, embedded.times),
        )


async def label_vectors(prompts: Prompts, vectors: Vectors) -> list[Vectors]:
    """The vectors of the labels of each set, from those of their prompts."""
    if len(vectors) <= INLINE_PROMPTS:
        return prompts.label_vectors(vectors)
    return await asyncio.to_thread(prompts.label_vectors, vectors)


def check_count(inputs: Sequence[object], field: str) -> None:
    """Raises InvalidArgument unless there are as many as a request may have."""
    if not 1 <= len(inputs) <= MAX_INPUTS:
        raise InvalidArgument(f"expected 1 to {MAX_INPUTS} {field}, got {len(inputs)}", field=field, limit=MAX_INPUTS)


def lane(inputs: int) -> Lane:
    """The lane that a request of so many inputs deserves."""
    return Lane.BULK if inputs > BULK_INPUTS else Lane.INTERACTIVE


def stage_times(started: float, times: Times) -> StageTimes:
    """The stage times of a request."""
    return convert.stage_times(
        started, decode=times.decode, tokenise=times.tokenise, queue=times.queue, infer=times.infer
    )


def input_errors(errors: Mapping[int, LookwireError]) -> list[pb.InputError]:
    """The messages of errors by index."""
    return [pb.InputError(index=index, status=to_status(error)) for index, error in sorted(errors.items())]


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
        score_rule=SCORE_RULES[manifest.score],
    )
    if manifest.text:
        message.modalities.append(pb.MODALITY_TEXT)
    if manifest.image:
        message.modalities.append(pb.MODALITY_IMAGE)
        message.image_rules.CopyFrom(image_rules(manifest.image))
    if manifest.parity:
        message.parity.reference = manifest.parity.reference
        message.parity.passed = manifest.parity.passed
        for figure in manifest.parity.figures:
            message.parity.figures.add(**figure.model_dump())
    return message


def image_rules(rules: ImageRules) -> pb.ImageRules:
    """The message of the rules for images; the values of its enums are the manifest's words."""
    message = pb.ImageRules
    return message(
        resize=message.Resize.Value(f"RESIZE_{rules.resize.upper()}"),
        interpolation=message.Interpolation.Value(f"INTERPOLATION_{rules.interpolation.upper()}"),
        crop=message.Crop.Value(f"CROP_{rules.crop.upper()}"),
        convert_rgb=message.ConvertRgb.Value(f"CONVERT_RGB_{rules.convert_rgb.upper()}"),
        decode=message.Decode.Value(f"DECODE_{rules.decode.upper()}"),
    )
