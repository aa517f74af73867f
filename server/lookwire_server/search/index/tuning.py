"""The effort that a sealed index needs for a recall, found by measuring."""

import time
from dataclasses import dataclass
from statistics import median
from typing import Self

import numpy as np
from numpy.typing import NDArray

from lookwire_server.search.index.sealed import Effort, Mask, Sealed, Slots
from lookwire_server.search.vectors import Matrix

RECALL_AT = 10
# Float rounding differs between ways to compute one and the same inner product. Within that, items are equally near:
# exact duplicates of an item are as good as the item.
SAME_SCORE = 1e-5
# The mean over a sample must exceed the target by so many of its standard errors: the one-sided 95 % bound of a normal
# distribution, so that the collection's own recall is below the target in about one build of twenty.
MARGIN = 1.645
# Texts among images need so many times the effort of images for the same recall: 6 in inverted files and 11 in graphs, measured
# on 100,000 vectors like those of CLIP.
FAR_EFFORT = 8
SEED = 1234
# Batches that a choice between two indexes is timed with, and how often.
TIMED_BATCHES = (1, 8)
TIMED_ROUNDS = 9


@dataclass(frozen=True, slots=True)
class Tuned:
    """An effort and the mean recall at 10 that it has with the queries at hand; None where there are none of the kind."""

    effort: Effort
    near_recall: float | None
    far_recall: float | None

    @classmethod
    def exact(cls) -> Self:
        """What an index has that compares every item."""
        return cls(Effort(0, 0), 1.0, 1.0)

    def reached(self, target_recall: float) -> bool:
        """Whether no recall that was measured is below the target."""
        return all(recall is None or recall >= target_recall for recall in (self.near_recall, self.far_recall))


def tune(index: Sealed, near: Matrix, far: Matrix | None, target_recall: float, near_slots: Slots) -> Tuned:
    """Returns the smallest efforts whose recalls reach the target with a margin, or the largest efforts if none does.

    `near` [m, d] are queries of the same kind as the items, and `near_slots` [m] the items that they are, -1 for none.
    `far` [m, d] are queries of another kind; without them their effort is FAR_EFFORT times that of the near ones.
    `target_recall` is in (0, 1].
    """
    if index.max_effort == 0:
        return Tuned.exact()
    near_sample = Sample(index, near, near_slots)
    near_effort = near_sample.smallest_effort(target_recall)
    if far is None or not len(far):
        effort = Effort(near_effort, min(FAR_EFFORT * near_effort, index.max_effort))
        return Tuned(effort, near_sample.recall(near_effort), None)
    far_sample = Sample(index, far, None)
    effort = Effort(near_effort, far_sample.smallest_effort(target_recall))
    return Tuned(effort, near_sample.recall(effort.near), far_sample.recall(effort.far))


def measure(
    index: Sealed,
    effort: Effort,
    near: Matrix | None,
    far: Matrix | None,
    near_slots: Slots | None,
    selected: Mask | None,
) -> Tuned:
    """Returns the recalls that an effort has now, among the slots that are selected (all if None)."""
    return Tuned(
        effort,
        None if near is None or not len(near) else Sample(index, near, near_slots, selected).recall(effort.near),
        None if far is None or not len(far) else Sample(index, far, None, selected).recall(effort.far),
    )


def faster(index: Sealed, exact: Sealed, queries: Matrix, effort: Effort) -> bool:
    """Whether the index, at the effort for far queries, takes less time than the exact one for a lone query and for a batch."""
    return all(
        seconds(index, queries[:batch], effort.far) < seconds(exact, queries[:batch], 0) for batch in TIMED_BATCHES
    )


def seconds(index: Sealed, queries: Matrix, effort: int) -> float:
    """Returns the median time of a search by all queries at once, of several."""
    times = []
    for _ in range(TIMED_ROUNDS):
        started = time.perf_counter()
        index.search(queries, RECALL_AT, None, index.count, effort)
        times.append(time.perf_counter() - started)
    return median(times)


class Sample:
    """Queries with the scores of their true nearest items, by an exact search of the same index.

    A graph finds the neighbours of one of its own nodes far more easily than those of a new item. So a query that is an item,
    `own`, is moved off it by noise, as far as items are from their nearest, and the item is left out of what is found.
    """

    def __init__(self, index: Sealed, queries: Matrix, own: Slots | None, selected: Mask | None = None) -> None:
        self._index = index
        self._queries = np.ascontiguousarray(queries)
        self._own = np.full(len(queries), -1) if own is None else own
        self._selected = selected
        self._match_count = index.count if selected is None else int(np.count_nonzero(selected))
        if (self._own >= 0).any():
            self._move_off_items()
        # Some searches round queries to float16 and others do not; of these all give the same scores.
        self._queries = self._queries.astype(np.float16).astype(np.float32)
        self._worst_true = self._scores(0).min(axis=1, initial=np.inf, keepdims=True)

    def recall(self, effort: int) -> float:
        """The mean over the queries of the share of the true nearest that is found."""
        return float(self._recalls(effort).mean())

    def smallest_effort(self, target_recall: float) -> int:
        """Doubles the effort until the recall is reached, then halves the step between; recall grows with effort."""
        effort, most = 1, self._index.max_effort
        while effort < most and not self._reaches(effort, target_recall):
            effort = min(2 * effort, most)
        too_small = effort // 2
        while effort - too_small > 1:
            middle = (effort + too_small) // 2
            if self._reaches(middle, target_recall):
                effort = middle
            else:
                too_small = middle
        return effort

    def _move_off_items(self) -> None:
        items = np.flatnonzero(self._own >= 0)
        nearest = self._scores(0)[items].max(axis=1, initial=-1.0)
        cosine = np.clip(np.median(nearest), 0.0, 1.0)
        queries = self._queries[items]
        noise = np.random.default_rng(SEED).standard_normal(queries.shape)
        noise -= (noise * queries).sum(axis=1, keepdims=True) * queries
        noise /= np.linalg.norm(noise, axis=1, keepdims=True)
        self._queries = self._queries.copy()
        self._queries[items] = cosine * queries + np.sqrt(1 - cosine**2) * noise

    def _reaches(self, effort: int, target_recall: float) -> bool:
        recalls = self._recalls(effort)
        return bool(recalls.mean() - MARGIN * recalls.std() / np.sqrt(len(recalls)) >= target_recall)

    def _recalls(self, effort: int) -> NDArray[np.float64]:
        found = self._scores(effort)
        if not found.shape[1]:
            return np.ones(len(found))
        as_near: NDArray[np.float64] = (found >= self._worst_true - SAME_SCORE).mean(axis=1)
        return as_near

    def _scores(self, effort: int) -> Matrix:
        """Returns the scores [m, <= 10] of what a search finds, best first, without the item that a query is."""
        answer = self._index.search(self._queries, RECALL_AT + 1, self._selected, self._match_count, effort)
        scores = np.where(answer.slots == self._own[:, None], -np.inf, answer.scores)
        return -np.sort(-scores, axis=1)[:, : min(RECALL_AT, max(self._match_count - 1, 0))]
