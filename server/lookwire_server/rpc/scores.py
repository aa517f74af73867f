"""Scores of embedded inputs, as messages."""

import asyncio
import itertools
from collections.abc import Sequence

import numpy as np

from lookwire.v1 import encoder_service_pb2 as pb
from lookwire_server.encoding import scores
from lookwire_server.encoding.encoder import Embedded, Vectors
from lookwire_server.encoding.labels import LabelSet
from lookwire_server.encoding.scores import Doubles, ScoreRule
from lookwire_server.errors import InvalidArgument
from lookwire_server.rpc.guard import to_status

# Of a reply, which takes at most 14 bytes for each score and 20 for each list: 15 MiB.
MAX_SCORES = 1 << 20
MAX_SCORE_LISTS = 65_536
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
                reply.errors.add(index=index, status=to_status(error.at(f"pairs[{index}].{side}")))
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
    """Raises InvalidArgument if the reply would hold too many scores, or too many lists of them."""
    if (lists := inputs * len(sets)) > MAX_SCORE_LISTS:
        raise InvalidArgument(
            f"{inputs} inputs with {len(sets)} groups each have {lists} lists of scores; at most {MAX_SCORE_LISTS} are "
            "returned. Send fewer inputs or groups at a time",
            field="groups",
            lists=lists,
            limit=MAX_SCORE_LISTS,
        )
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
    messages = [pb.Classification() for _ in embedded.vectors]
    rows = [row for row in range(len(messages)) if row not in embedded.errors]
    ends = list(itertools.accumulate(map(len, labels)))
    if len(rows) * ends[-1] <= INLINE_SCORES:
        classify(messages, rows, embedded.vectors, in_doubles(labels), ends, top_k, rule)
        return messages
    of_all_labels = await asyncio.to_thread(in_doubles, labels)
    step = max(1, BLOCK_SCORES // ends[-1])
    # A thread cannot be interrupted: when the caller leaves, the block that is being computed is the last.
    for start in range(0, len(rows), step):
        block = rows[start : start + step]
        await asyncio.to_thread(classify, messages, block, embedded.vectors, of_all_labels, ends, top_k, rule)
    return messages


def in_doubles(groups: Sequence[Vectors]) -> Doubles:
    """The vectors of all groups, one after the other, in double precision, in which cosines are computed."""
    return np.concatenate(groups, dtype=np.float64)


def classify(
    messages: Sequence[pb.Classification],
    rows: Sequence[int],
    vectors: Vectors,
    labels: Doubles,
    ends: Sequence[int],
    top_k: int,
    rule: ScoreRule,
) -> None:
    """Adds to the messages of some rows of `vectors` their scores with the labels of each group; `ends` are where each ends."""
    # One product for all groups: many small ones cost more than what they compute.
    for cosines in np.split(scores.cosines(vectors[rows], labels), ends[:-1], axis=1):
        logits = rule.logits(cosines)
        # Stable: equal logits stay in the order of their labels.
        order = np.argsort(-logits, axis=1, kind="stable")[:, : top_k or None]
        best = (np.take_along_axis(each, order, axis=1) for each in (cosines, logits, rule.probabilities(logits)))
        for row, *lists in zip(rows, order, *best, strict=True):
            fields = {name: values.tolist() for name, values in zip(LISTS, lists, strict=True)}
            messages[row].groups.add(**fields)
