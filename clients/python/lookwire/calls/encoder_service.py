"""The calls of EncoderService."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lookwire.calls.call import Call, stage_times
from lookwire.errors import FieldViolation, LookwireError, from_status
from lookwire.images import image_bytes
from lookwire.types import (
    Classifications,
    Content,
    Embeddings,
    Encoder,
    Image,
    ImageRules,
    LabelGroup,
    Labels,
    LabelScore,
    ParityFigure,
    ParityRecord,
    Scores,
)
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


def score(pairs: Sequence[tuple[Content, Content]], encoder: str, *, partial: bool) -> Call[Scores]:
    """Asks how well the inputs of each pair match."""
    if isinstance(pairs, str | bytes | Path):
        raise TypeError("pairs are a list of pairs of inputs, not one input")
    request = pb.ScoreRequest(encoder=encoder, pairs=[_pair(index, pair) for index, pair in enumerate(pairs)])
    if not request.pairs:
        raise ValueError("there is nothing to score: give pairs")

    def parse(response: pb.ScoreResponse) -> Scores:
        failed = {error.index: from_status(error.status) for error in response.errors}
        if failed and not partial:
            raise failed[min(failed)]

        def array(values: Sequence[float]) -> NDArray[np.float32]:
            scores = np.array(values, np.float32)
            scores[list(failed)] = np.nan
            return scores

        return Scores(
            cosines=array(response.cosines),
            clip_scores=array(response.clip_scores),
            logits=array(response.logits),
            probabilities=array(response.probabilities) if response.probabilities else None,
            fingerprint=response.fingerprint,
            times=stage_times(response.times),
            errors=failed,
        )

    return Call("Score", request, parse)


def classify(
    inputs: Sequence[Content],
    groups: Mapping[str, Labels | LabelGroup],
    encoder: str,
    *,
    top_k: int,
    partial: bool,
) -> Call[Classifications]:
    """Asks which labels of each group fit each input."""
    if isinstance(inputs, str | bytes | Path):
        raise TypeError("inputs are a list of texts and images, not one of them")
    if not isinstance(groups, Mapping):
        raise TypeError(
            f"groups are a dict of names to labels, such as {{'colour': ['red', 'blue']}}, not {_a(groups)}"
        )
    if top_k < 0:
        raise ValueError(f"top_k is at least 0, which means all labels, not {top_k}")
    request = pb.ClassifyRequest(
        encoder=encoder,
        inputs=[_input(content) for content in inputs],
        groups=[_group(name, group) for name, group in groups.items()],
        top_k=top_k,
    )
    if not request.inputs:
        raise ValueError("there is nothing to classify: give texts, images or both")
    names = {group.name: [label.name for label in group.labels] for group in request.groups}

    def parse(response: pb.ClassifyResponse) -> Classifications:
        failed = {error.index: from_status(error.status) for error in response.errors}
        if failed and not partial:
            raise _of_input(*min(failed.items()))
        return Classifications(
            groups=tuple(_classification(names, each) for each in response.classifications),
            fingerprint=response.fingerprint,
            times=stage_times(response.times),
            errors=failed,
        )

    return Call("Classify", request, parse)


def _input(content: Content) -> pb.Input:
    """The message of a text or an image."""
    return pb.Input(text=content) if isinstance(content, str) else pb.Input(image=image_bytes(content))


def _pair(index: int, pair: Any) -> pb.Pair:
    """The message of a pair; TypeError for what is none, such as a text, which is a sequence too."""
    match pair:
        case str():
            given = "a text"
        case bytes() | Path():
            given = "an image"
        case [first, second]:
            return pb.Pair(first=_input(first), second=_input(second))
        case [*inputs]:
            given = f"a list of {len(inputs)}"
        case _:
            given = _a(pair)
    raise TypeError(f"pairs[{index}] is {given}, not a pair of inputs")


def _group(name: str, group: Labels | LabelGroup) -> pb.LabelGroup:
    """The message of a group, given as one, as the names of its labels, or as those with prompts."""
    if not isinstance(name, str):
        raise TypeError(f"the name of a group is a string, not {_a(name)}")
    if not isinstance(group, LabelGroup):
        group = LabelGroup(group)
    of_group = f"group {name!r}"
    own_prompts = group.labels if isinstance(group.labels, Mapping) else dict[str, Sequence[str]]()
    labels = [
        pb.Label(name=label, prompts=_strings(f"{of_group}: prompts of {label!r}", own_prompts.get(label, ())))
        for label in _strings(f"{of_group}: labels", group.labels)
    ]
    return pb.LabelGroup(name=name, labels=labels, templates=_strings(f"{of_group}: templates", group.templates))


def _strings(what: str, values: Iterable[str]) -> list[str]:
    """The strings of a list, or the keys of a dict; TypeError for anything else. `what` names them."""
    if isinstance(values, str):
        raise TypeError(f"{what} are a list of strings, not one string")
    if isinstance(values, set | frozenset):
        raise TypeError(f"{what} are a list of strings, not a set, whose order varies")
    if not isinstance(values, Iterable):
        raise TypeError(f"{what} are a list of strings, not {_a(values)}")
    strings = list(values)
    for index, value in enumerate(strings):
        if not isinstance(value, str):
            raise TypeError(f"{what} are a list of strings, but the one at index {index} is {_a(value)}")
    return strings


def _a(value: object) -> str:
    """What kind of thing a value is, for the message of an error."""
    return f"a value of type {type(value).__name__}"


def _classification(
    names: Mapping[str, Sequence[str]], message: pb.Classification
) -> dict[str, tuple[LabelScore, ...]]:
    """The labels of one input by group, of which one that failed has none; `names` are those of each group's labels."""
    members = zip(names.items(), message.groups, strict=False)
    return {group: _label_scores(labels, scores) for (group, labels), scores in members}


def _label_scores(labels: Sequence[str], scores: pb.LabelScores) -> tuple[LabelScore, ...]:
    """The scores of one group, with the names of its labels."""
    columns = zip(scores.labels, scores.cosines, scores.logits, scores.probabilities, strict=True)
    return tuple(LabelScore(labels[index], *values) for index, *values in columns)


def _of_input(index: int, error: LookwireError) -> LookwireError:
    """The error of one input, as the error of the whole call."""
    field, message = f"inputs[{index}]", f"inputs[{index}]: {error.message}"
    violations = (FieldViolation(field, error.message),)
    return type(error)(message, error.code, error.reason, error.metadata, violations, error.retry_after)


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
        score_rule=_word(pb.ScoreRule, message.score_rule),
        image_rules=_image_rules(message.image_rules) if message.HasField("image_rules") else None,
    )


def _image_rules(message: pb.ImageRules) -> ImageRules:
    return ImageRules(
        decode=_word(pb.ImageRules.Decode, message.decode),
        resize=_word(pb.ImageRules.Resize, message.resize),
        interpolation=_word(pb.ImageRules.Interpolation, message.interpolation),
        crop=_word(pb.ImageRules.Crop, message.crop),
        convert_rgb=_word(pb.ImageRules.ConvertRgb, message.convert_rgb),
    )


def _word(enum: Any, value: int) -> str:
    """The name of an enum's value without the prefix that they share; its number where only a newer server knows it."""
    values = enum.DESCRIPTOR.values_by_number
    prefix = values[0].name.removesuffix("UNSPECIFIED")
    return values[value].name.removeprefix(prefix).lower() if value in values else str(value)


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
