"""Scores of embedded inputs, as messages."""

import asyncio
from collections.abc import Sequence

import numpy as np

from lookwire.v1 import encoder_service_pb2 as pb
from lookwire_server.encoding import scores
from lookwire_server.encoding.encoder import Embedded, Vectors
from lookwire_server.encoding.labels import LabelSet
from lookwire_server.encoding.scores import ScoreRule
from lookwire_server.errors import InvalidArgument
from lookwire_server.rpc.guard import to_status

# Of a reply, about 16 MiB.
MAX_SCORES = 1 << 20
# Scores that are computed on the event loop, in about a millisecond; more go to a thread.
INLINE_SCORES = 2_048
# Scores that are computed at a time, which bounds the memory that takes.
BLOCK_SCORES = 65_536
LISTS = ("labels", "cosines", "logits", "probabilities")


def of_pairs(embedded: Embedded, pairs: Sequence[tuple[int, int]], rule: ScoreRule) -> pb.ScoreResponse:
    """The scores of pairs, which are rows of `embedded`; zeros and an error for a pair of which one has failed."""
    reply = pb.ScoreResponse()
    for index, pair in enumerate(pairs):
        for side, row in zip(("first", "second"), pair, strict=True):
            if error := embedded.errors.get(row):
                at = type(error)(error.message, field=f"pairs[{index}].{side}", **error.metadata)
                reply.errors.add(index=index, status=to_status(at))
                break
    scored = np.ones(len(pairs), np.bool_)
    scored[[error.index for error in reply.errors]] = False
    first, second = np.transpose(pairs)
    cosines = scores.paired_cosines(embedded.vectors[first], embedded.vectors[second])
    logits = rule.logits(cosines)
    reply.cosines.extend(np.where(scored, cosines, 0).tolist())
    reply.clip_scores.extend(np.where(scored, scores.clip_scores(cosines), 0).tolist())
    reply.logits.extend(np.where(scored, logits, 0).tolist())
    if rule.kind == "sigmoid":
        reply.probabilities.extend(np.where(scored, rule.probabilities(logits), 0).tolist())
    return reply


def check_count(inputs: int, sets: Sequence[LabelSet], top_k: int) -> None:
    """Raises InvalidArgument if the reply would hold too many scores."""
    number = inputs * sum(min(top_k or len(labels.labels), len(labels.labels)) for labels in sets)
    if number > MAX_SCORES:
        raise InvalidArgument(
            f"{inputs} inputs have {number} scores in all; at most {MAX_SCORES} are returned. Ask for the best labels of each "
            "group only (top_k), or send fewer inputs at a time",
            field="top_k",
            scores=number,
            limit=MAX_SCORES,
        )


async def classifications(
    embedded: Embedded, labels: Sequence[Vectors], top_k: int, rule: ScoreRule
) -> list[pb.Classification]:
    """The scores of each input with the labels of each group; none of an input that has failed."""
    if len(embedded.vectors) * sum(map(len, labels)) <= INLINE_SCORES:
        return classified(embedded, labels, top_k, rule)
    return await asyncio.to_thread(classified, embedded, labels, top_k, rule)


def classified(embedded: Embedded, labels: Sequence[Vectors], top_k: int, rule: ScoreRule) -> list[pb.Classification]:
    """As `classifications`, at once."""
    messages = [pb.Classification() for _ in embedded.vectors]
    rows = [row for row in range(len(messages)) if row not in embedded.errors]
    for group in labels:
        vectors = group.astype(np.float64)
        step = max(1, BLOCK_SCORES // len(group))
        for start in range(0, len(rows), step):
            block = rows[start : start + step]
            cosines = scores.cosines(embedded.vectors[block], vectors)
            logits = rule.logits(cosines)
            # Stable: equal logits stay in the order of their labels.
            order = np.argsort(-logits, axis=1, kind="stable")[:, : top_k or None]
            best = (np.take_along_axis(each, order, axis=1) for each in (cosines, logits, rule.probabilities(logits)))
            for row, *lists in zip(block, order, *best, strict=True):
                fields = {name: values.tolist() for name, values in zip(LISTS, lists, strict=True)}
                messages[row].groups.add(**fields)
    return messages
