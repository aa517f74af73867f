"""Reciprocal rank fusion of a search by vectors with one for words (Cormack, Clarke and Buettcher, 2009)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lookwire_server.errors import FailedPrecondition, InvalidArgument
from lookwire_server.search.fields import Field, FieldType, listed, shown
from lookwire_server.search.vectors import Vector

# The constant of the paper: how little the very first ranks count above the next.
RANK_OFFSET = 60
MAX_WORDS_CHARACTERS = 1_024

Keys = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Hybrid:
    """What words to look for, in which TEXT fields (all if none is named), and what each leg weighs."""

    words: str
    fields: tuple[str, ...] = ()
    vector_weight: float = 1.0
    word_weight: float = 1.0

    def check(self, fields: Sequence[Field]) -> None:
        """Raises InvalidArgument, or FailedPrecondition for a collection without TEXT fields, with the path at fault."""
        texts = [field.name for field in fields if field.type is FieldType.TEXT]
        if not texts:
            raise FailedPrecondition("the collection declares no TEXT field to look for words in", field="hybrid")
        for position, name in enumerate(self.fields):
            if name not in texts:
                raise InvalidArgument(
                    f"the collection has no TEXT field {shown(name)}: it declares {listed(texts)}",
                    field=f"hybrid.fields[{position}]",
                )
        if not 1 <= len(self.words) <= MAX_WORDS_CHARACTERS:
            raise InvalidArgument(
                f"words have 1 to {MAX_WORDS_CHARACTERS} characters, these have {len(self.words)}",
                field="hybrid.words",
                limit=MAX_WORDS_CHARACTERS,
            )
        weights = {"vector_weight": self.vector_weight, "word_weight": self.word_weight}
        for name, weight in weights.items():
            if not (math.isfinite(weight) and weight >= 0):
                raise InvalidArgument(f"a weight is finite and 0 or more, got {weight}", field=f"hybrid.{name}")
        if not any(weights.values()):
            raise InvalidArgument("one of vector_weight and word_weight must be above 0", field="hybrid")

    @property
    def best(self) -> float:
        """The score of an item that both legs rank first."""
        return (self.vector_weight + self.word_weight) / (RANK_OFFSET + 1)


@dataclass(frozen=True, slots=True, eq=False)
class Legs:
    """Where the legs rank items, arrays [n].

    Ranks are from 1, 0 for an item that the leg did not reach; `word_scores` are BM25's, `equal` tells which items have a field
    that is equal to the words: they come before all others, whatever their `fused` scores.
    """

    vector_ranks: NDArray[np.int64]
    word_ranks: NDArray[np.int64]
    word_scores: Vector
    equal: NDArray[np.bool_]
    fused: NDArray[np.float64]

    def at(self, positions: NDArray[np.int64]) -> "Legs":
        """Returns those of the items at the given positions, in that order."""
        return Legs(
            self.vector_ranks[positions],
            self.word_ranks[positions],
            self.word_scores[positions],
            self.equal[positions],
            self.fused[positions],
        )


def fused(
    hybrid: Hybrid,
    keys: Keys,
    cosines: Vector,
    in_vector_leg: NDArray[np.bool_],
    word_keys: Keys,
    word_scores: Vector,
    equal: NDArray[np.bool_],
) -> Legs:
    """Returns the legs of the items with the given keys [n].

    `in_vector_leg` [n] tells which of them the vector leg has; their cosines rank them. `word_keys` and `word_scores` are those
    of the word leg, best first.
    """
    vector_ranks = np.zeros(len(keys), np.int64)
    vector_leg = np.flatnonzero(in_vector_leg)
    vector_ranks[vector_leg[np.argsort(-cosines[vector_leg], kind="stable")]] = np.arange(1, len(vector_leg) + 1)
    places = {key: place for place, key in enumerate(word_keys.tolist(), 1)}
    word_ranks = np.array([places.get(key, 0) for key in keys.tolist()], np.int64)
    scores = np.append(np.float32(0), word_scores)[word_ranks]
    total = np.zeros(len(keys))
    for weight, ranks in ((hybrid.vector_weight, vector_ranks), (hybrid.word_weight, word_ranks)):
        total += np.where(ranks > 0, weight / (RANK_OFFSET + ranks), 0.0)
    return Legs(vector_ranks, word_ranks, scores, equal, total)
