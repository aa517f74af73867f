"""One consistent state of a collection in memory, and the search in it."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from math import ceil

import numpy as np
from numpy.typing import NDArray

from lookwire_server.search.filters import Filter, check_filter, matching
from lookwire_server.search.index import exact
from lookwire_server.search.index.columns import Columns, Mask
from lookwire_server.search.index.generation import Generation, Manifest
from lookwire_server.search.index.rows import Rows
from lookwire_server.search.plan import Method, Plan
from lookwire_server.search.vectors import Matrix, Vector

# The effort is tuned for the nearest 10, of which a search asks for a few to spare. More results lie further out and need more of
# it: so that recall stays, their number to this power (measured on 100,000 vectors like those of CLIP, up to 1,000 results).
TUNED_RESULTS = 18
EFFORT_EXPONENT = 0.75
# Where fewer of the sealed slots match, be it by a filter or because items were replaced or removed, what a query resembles may
# be gone.
NEARLY_ALL = 0.95


@dataclass(frozen=True, slots=True)
class Scope:
    """Which items a search is among, and how it may go about it; searches of an equal scope are carried out together.

    `far` says that the query is of another kind than the items, such as a text among images; `exact` that no approximation is
    wanted.
    """

    filter: Filter | None = None
    far: bool = True
    exact: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Wanted:
    """One search: a query of length 1, the number of nearest items, and items that must not be among them."""

    query: Vector
    k: int
    scope: Scope
    excluded_ids: Collection[str] = ()


@dataclass(frozen=True, slots=True, eq=False)
class Hits:
    """Nearest items, best first; the scores are off by at most 1e-3, as float16 vectors and queries give them."""

    ids: list[str]
    keys: list[int]
    scores: Vector
    slots: NDArray[np.int64]
    plan: Plan


@dataclass(frozen=True, slots=True, eq=False)
class View:
    """The first `count` slots of some rows, and which of them are alive. Never changes; any thread may read it."""

    rows: Rows
    generation: Generation | None
    count: int
    alive: Mask
    item_count: int
    sequence: int

    @property
    def columns(self) -> Columns:
        return self.rows.columns

    def slot_of(self, id: str) -> int | None:
        """Returns the slot of a living item."""
        slot = self.rows.slot_of(id, self.count)
        return slot if slot is not None and self.alive[slot] else None

    def matching(self, filter: Filter | None) -> Mask:
        """Returns which slots hold items that match. Not to be written to.

        Raises InvalidArgument if the filter does not fit the fields, which may have changed since it was checked.
        """
        if filter is None:
            return self.alive
        check_filter(filter, {field.name: field for field in self.columns.fields})
        return matching(filter, self) & self.alive

    def search(self, searches: Sequence[Wanted]) -> list[Hits]:
        """Returns the nearest items of each search; all of them must have an equal scope."""
        scope = searches[0].scope
        mask = self.matching(scope.filter)
        match_count = self.item_count if scope.filter is None else int(np.count_nonzero(mask))
        queries = np.stack([search.query for search in searches])
        # So many that enough are left when those that are excluded have gone.
        k = min(max(search.k + len(search.excluded_ids) for search in searches), match_count)
        selected = None if match_count == self.count else mask
        scores, slots, plan = self._nearest(queries, k, selected, match_count, scope)
        return [
            self._hits(search, row_scores, row_slots, plan)
            for search, row_scores, row_slots in zip(searches, scores, slots, strict=True)
        ]

    def search_among(self, search: Wanted, mask: Mask) -> Hits:
        """Returns the nearest of the items in the slots of a mask, which must hold items that match the search's filter."""
        match_count = int(np.count_nonzero(mask))
        queries = search.query[np.newaxis]
        scores, slots, plan = self._nearest(queries, min(search.k, match_count), mask, match_count, search.scope)
        return self._hits(search, scores[0], slots[0], plan)

    def _nearest(
        self, queries: Matrix, k: int, selected: Mask | None, match_count: int, scope: Scope
    ) -> tuple[Matrix, NDArray[np.int64], Plan]:
        """Returns scores and slots [queries, <= k], -1 where there is none, from the sealed index and the slots beyond it."""
        sealed = self.rows.sealed_count
        gathered = match_count * 2 <= self.count
        plan = Plan(Method.GATHER if gathered else Method.EXACT, self.item_count, match_count, batch_size=len(queries))
        parts = []
        if self.generation is not None:
            manifest = self.generation.manifest
            inside = None if selected is None else selected[:sealed]
            inside_count = sealed if inside is None else int(np.count_nonzero(inside))
            effort = effort_of(manifest, inside_count, far=scope.far)
            effort = 0 if scope.exact else ceil(effort * max(1.0, k / TUNED_RESULTS) ** EFFORT_EXPONENT)
            answer = self.generation.index.search(queries, k, inside, inside_count, effort)
            parts.append((answer.scores, answer.slots))
            recall = manifest.far_recall if scope.far else manifest.near_recall
            plan = replace(
                plan,
                method=plan.method if answer.method is Method.EXACT else answer.method,
                generation=manifest.generation,
                indexed_count=sealed,
                cells=answer.cells if answer.method is Method.IVF else 0,
                probes=answer.probes if answer.method is Method.IVF else 0,
                ef_search=answer.ef_search,
                measured_recall=1.0 if answer.method is Method.EXACT else recall,
                reason=answer.reason,
            )
        if self.count > sealed:
            beyond = None if selected is None else selected[sealed:]
            scores, rows = exact.nearest(queries, self.rows.tail(self.count), k, beyond)
            parts.append((scores, rows + sealed))
        if len(parts) == 1:
            return *parts[0], plan
        scores = (
            np.concatenate([part[0] for part in parts], axis=1) if parts else np.empty((len(queries), 0), np.float32)
        )
        slots = np.concatenate([part[1] for part in parts], axis=1) if parts else np.empty((len(queries), 0), np.int64)
        order = np.argsort(-np.where(slots < 0, -np.inf, scores), axis=1, kind="stable")[:, :k]
        return np.take_along_axis(scores, order, axis=1), np.take_along_axis(slots, order, axis=1), plan

    def _hits(self, search: Wanted, scores: Vector, slots: NDArray[np.int64], plan: Plan) -> Hits:
        kept = slots >= 0
        excluded = [slot for id in search.excluded_ids if (slot := self.slot_of(id)) is not None]
        if excluded:
            kept &= ~np.isin(slots, excluded)
        slots, scores = slots[kept][: search.k], scores[kept][: search.k]
        return Hits(self.rows.ids(slots), self.rows.keys(self.count)[slots].tolist(), scores, slots, plan)


def effort_of(manifest: Manifest, match_count: int, *, far: bool) -> int:
    """Returns the effort for a few nearest among so many of the sealed slots."""
    return manifest.effort.of(far=far, filtered=match_count < NEARLY_ALL * manifest.count)
