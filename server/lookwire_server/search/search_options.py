"""What a search is asked for, besides its query."""

import math
from collections.abc import Callable, Sequence
from collections.abc import Collection as Container
from dataclasses import dataclass

from lookwire_server.errors import InvalidArgument
from lookwire_server.search.fields import Field
from lookwire_server.search.filters import Filter
from lookwire_server.search.ranking.calibration import check_calibrated_threshold
from lookwire_server.search.ranking.diversity import Diversity
from lookwire_server.search.ranking.fusion import Hybrid
from lookwire_server.search.ranking.groups import GroupBy
from lookwire_server.search.ranking.selection import check_collapse
from lookwire_server.search.vectors import Vector

MAX_TOP_K = 1_000
MAX_PAYLOAD_FIELDS = 64
# The index compares float16 vectors; so many more items than wanted are compared again by their float32 vectors, because items
# whose cosines differ by less than 1e-4 may have changed places.
SPARE_CANDIDATES = 8
# So many times more candidates than hits, where some will be dropped.
SURPLUS = 4
# A leg that ranks fewer items misses some that the other leg would bring to the front: an item that both legs have at rank
# 60 + 2 x top_k scores as much as one that a single leg has at rank top_k.
LEG_CANDIDATES = 60
# Up to so many hits the legs are equally deep, so that the first hits are the same however many are asked for.
LEG_TOP_K = 50

# Makes calibrated scores in [0, 1] of cosines, [n] of [n].
Calibrate = Callable[[Vector], Vector]


@dataclass(frozen=True, slots=True)
class SearchOptions:
    """What a search is to return besides the nearest items; the fields are those of the message SearchRequest.

    `far` says that the query is of another kind than the items, such as a text among images: it then takes more effort to find
    the true nearest. `probability` is the encoder's own rule for calibrated scores, where it has one for this query.
    """

    filter: Filter | None = None
    far: bool = True
    excluded_ids: Container[str] = ()
    top_k: int = 10
    score_threshold: float | None = None
    include_payloads: bool = True
    payload_fields: Sequence[str] = ()
    include_vectors: bool = False
    exact: bool = False
    hybrid: Hybrid | None = None
    calibrated_threshold: float | None = None
    include_calibrated_scores: bool = False
    probability: Calibrate | None = None
    diversity: Diversity | None = None
    group_by: GroupBy | None = None
    collapse_cosine: float | None = None

    def check(self, fields: Sequence[Field]) -> None:
        """Raises InvalidArgument, with the path of what is at fault; `fields` are those that the collection declares."""
        if not 1 <= self.top_k <= MAX_TOP_K:
            raise InvalidArgument(
                f"a search has 1 to {MAX_TOP_K} hits, not {self.top_k}", field="top_k", limit=MAX_TOP_K
            )
        threshold = self.score_threshold
        if threshold is not None and not (math.isfinite(threshold) and -1 <= threshold <= 1):
            raise InvalidArgument(
                f"a score threshold is a cosine, in [-1, 1], got {threshold:g}", field="score_threshold"
            )
        if len(self.payload_fields) > MAX_PAYLOAD_FIELDS:
            raise InvalidArgument(
                f"{len(self.payload_fields)} payload fields: at most {MAX_PAYLOAD_FIELDS}",
                field="payload_fields",
                limit=MAX_PAYLOAD_FIELDS,
            )
        if self.calibrated_threshold is not None:
            check_calibrated_threshold(self.calibrated_threshold)
        if self.collapse_cosine is not None:
            check_collapse(self.collapse_cosine)
        if self.diversity is not None:
            self.diversity.check(self.top_k, MAX_TOP_K)
        if self.group_by is not None:
            self.group_by.check(fields, self.top_k, MAX_TOP_K)
        if self.hybrid is not None:
            self.hybrid.check(fields)

    @property
    def calibrated(self) -> bool:
        """Whether calibrated scores are needed."""
        return self.include_calibrated_scores or self.calibrated_threshold is not None

    @property
    def choices(self) -> int:
        """How many items, or groups of them, the hits are chosen from."""
        return self.diversity.candidate_count(self.top_k, MAX_TOP_K) if self.diversity else self.top_k

    @property
    def candidate_count(self) -> int:
        """How many of the nearest items to look at first."""
        count = self.choices
        if self.group_by:
            count *= self.group_by.size
        if self.group_by or self.collapse_cosine is not None:
            count *= SURPLUS
        if self.hybrid:
            count = max(count, 2 * max(self.top_k, LEG_TOP_K) + LEG_CANDIDATES)
        return min(count, MAX_TOP_K) + SPARE_CANDIDATES
