"""One search: from a query vector to ranked items with their payloads."""

import asyncio
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from time import perf_counter
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from lookwire_server.search.candidates import Candidates
from lookwire_server.search.dispatcher import Dispatcher
from lookwire_server.search.engine import Engine
from lookwire_server.search.fields import Value
from lookwire_server.search.filters import AllOf
from lookwire_server.search.index.live import VectorIndex
from lookwire_server.search.index.view import Hits, Scope, View, Wanted
from lookwire_server.search.latest import latest
from lookwire_server.search.payloads import selected
from lookwire_server.search.plan import Method, Plan
from lookwire_server.search.ranking.diversity import diverse
from lookwire_server.search.ranking.fusion import Hybrid, Legs, fused
from lookwire_server.search.ranking.groups import missing
from lookwire_server.search.ranking.selection import choose
from lookwire_server.search.search_options import MAX_TOP_K, Calibrate, SearchOptions
from lookwire_server.search.store.collections import CollectionRow
from lookwire_server.search.store.items import ItemTable
from lookwire_server.search.vectors import Matrix, Vector
from lookwire_server.search.word_leg import WordLeg, word_leg

# A search is done again if an item was replaced between its score and its payload. Once is nearly always enough; under
# constant replacement of the best items the last try goes without those that are gone.
ATTEMPTS = 4
# Where groups or near-duplicates leave too few of the nearest items, those beyond are looked at too, so many times at most.
FURTHER_ROUNDS = 4
# Ranking so few items takes less time than another thread needs to begin.
RANKED_INLINE = 64
# What a cosine of float16 vectors may be off by: each element of both by half of the distance between float16 numbers, 2 ** -11.
HALF_PRECISION = 2**-10

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True, eq=False)
class SearchResult:
    """Hits as parallel lists, best first; `sequence` is the last write that the search saw.

    `candidate_count` is the number of items whose float32 vectors were compared.
    `calibrated_scores`, `vectors`, `legs` and `group_values` are None unless they were asked for.
    """

    ids: list[str]
    scores: Vector
    payloads: list[bytes]
    vectors: Matrix | None
    calibrated_scores: Vector | None
    legs: Legs | None
    group_values: list[Value] | None
    plan: Plan
    candidate_count: int
    sequence: int
    search_seconds: float
    fetch_seconds: float


@dataclass(frozen=True, slots=True, eq=False)
class Found:
    """What one batch found for one search in a view, at a time of perf_counter."""

    wanted: Wanted
    view: View
    hits: Hits
    at: float


@dataclass(frozen=True, slots=True, eq=False)
class Ranked:
    """Candidates, and which of them are the hits: positions, best first. `values` has the value of each hit's group.

    `further` is the scope of items that could complete the hits; None if they are complete.
    """

    candidates: Candidates
    calibrated: Vector | None
    legs: Legs | None
    positions: NDArray[np.int64]
    values: list[Value] | None
    further: Scope | None


def most_items(options: SearchOptions) -> int:
    """Returns the largest number of items that a search holds at once, each with its payload."""
    # Of both legs, and those that are equal to the words.
    found = options.candidate_count * (3 if options.hybrid else 1)
    further = options.group_by is not None or options.collapse_cosine is not None
    return found + (FURTHER_ROUNDS * MAX_TOP_K if further else 0)


class Searcher:
    """Searches one collection: nearest items by the index, then exact scores, payloads and ranking by the store."""

    def __init__(self, engine: Engine, index: VectorIndex) -> None:
        self._engine = engine
        self._search_times = engine.metrics.stage_seconds.labels("search")
        self._fetch_times = engine.metrics.stage_seconds.labels("fetch")
        self._searches = Dispatcher(engine.searching, partial(searched, index), self._read, lambda wanted: wanted.scope)

    async def search(
        self, row: CollectionRow, query: Vector, options: SearchOptions, calibrate: Calibrate | None = None
    ) -> SearchResult:
        """`query` has length 1; the options were checked with the fields of `row`. `calibrate` is given if they ask for it."""
        search = _Search(self._engine, row, query, options, calibrate)
        for attempt in range(ATTEMPTS):
            search.takes_latest = attempt == ATTEMPTS - 1
            started = perf_counter()
            found, nearest = await self._searches.ask(search.wanted)
            search.search_seconds += found.at - started
            search.fetch_seconds += perf_counter() - found.at
            ranked = await search.ranked(found.view, found.hits, nearest)
            if not search.stale:
                break
            # Some items were replaced meanwhile; the next view has what the disk has.
            await asyncio.wrap_future(self._engine.writer.settled())
        result = await search.result(found.view, found.hits.plan, ranked)
        self._search_times.observe(result.search_seconds)
        self._fetch_times.observe(result.fetch_seconds)
        return result

    async def _read(self, batch: Sequence[Found]) -> Sequence[tuple[Found, Candidates]]:
        return await self._engine.reading.run(partial(read, self._engine.store.items, batch))


def searched(index: VectorIndex, searches: Sequence[Wanted]) -> list[Found]:
    """Searches in the newest view."""
    view = index.view
    hits = view.search(searches)
    at = perf_counter()
    return [Found(wanted, view, nearest, at) for wanted, nearest in zip(searches, hits, strict=True)]


def read(items: ItemTable, batch: Sequence[Found]) -> list[tuple[Found, Candidates]]:
    """Reads the items that the searches of a batch found, all at once."""
    stored = items.by_key([key for found in batch for key in found.hits.keys])
    return [(found, Candidates.of(found.wanted.query, found.hits.keys, stored)) for found in batch]


class _Search:
    """One search under way. `stale` says that the disk had no longer, or not yet, what the view has."""

    def __init__(
        self,
        engine: Engine,
        row: CollectionRow,
        query: Vector,
        options: SearchOptions,
        calibrate: Calibrate | None,
    ) -> None:
        self._engine = engine
        self._row = row
        self._options = options
        self._calibrate = calibrate
        scope = Scope(options.filter, options.far, options.exact)
        self.wanted = Wanted(query, options.candidate_count, scope, options.excluded_ids)
        self.stale = False
        # Whether items that are replaced all the time are taken as they are now, other than the view has them.
        self.takes_latest = False
        self.search_seconds = 0.0
        self.fetch_seconds = 0.0

    async def ranked(self, view: View, hits: Hits, nearest: Candidates) -> Ranked:
        """Ranks the nearest items of a view, as they were read, and those beyond as long as they are needed."""
        self.stale = False
        leg, keys, pool = None, hits.keys, nearest
        if self._options.hybrid is not None:
            leg, keys = await self._words(view, hits, self._options.hybrid)
            pool = pool.and_also(await self._read(keys[len(hits.keys) :]))
        rank = partial(self._rank, view=view, first=hits, leg=leg)
        ranked = await self._rank_read(view, keys, pool, rank)
        wanted = self.wanted
        for _ in range(FURTHER_ROUNDS):
            if ranked.further is None or self.stale or self._exhausted(wanted, hits):
                break
            pool = ranked.candidates
            known = {*self.wanted.excluded_ids, *(item.id for item in pool.items)}
            wanted = Wanted(self.wanted.query, MAX_TOP_K, ranked.further, known)
            (hits,) = await self._search(partial(view.search, [wanted]))
            others = await self._read(hits.keys)
            ranked = await self._rank_read(view, hits.keys, others, partial(self._extended, pool, rank, last=hits))
        return ranked

    async def _words(self, view: View, hits: Hits, hybrid: Hybrid) -> tuple[WordLeg, list[int]]:
        """Returns the word leg, and the keys to rank: of both legs, and of the nearest items that are equal to the words."""
        leg = await self._fetch(lambda: word_leg(self._engine.store, self._row, view, self.wanted, hybrid))
        self.stale |= leg.stale
        keys = dict.fromkeys([*hits.keys, *leg.keys.tolist()])
        if leg.equal.any():
            nearest = await self._search(lambda: view.search_among(self.wanted, leg.equal))
            keys.update(dict.fromkeys(nearest.keys))
        return leg, list(keys)

    async def _read(self, keys: Sequence[int]) -> Candidates:
        """Returns what the store still has of the keys."""
        return await self._fetch(lambda: Candidates.of(self.wanted.query, keys, self._engine.store.items.by_key(keys)))

    async def _rank_read(
        self, view: View, keys: Sequence[int], read: Candidates, rank: Callable[[Candidates], Ranked]
    ) -> Ranked:
        """Ranks what was read of the keys."""
        if len(read.keys) < len(keys) and self.takes_latest:
            there = set(read.keys.tolist())
            missing = [key for key in keys if key not in there]
            read = read.and_also(await self._fetch(partial(self._latest, view, missing)))
        self.stale |= len(read.keys) < len(keys)
        if len(keys) <= RANKED_INLINE:
            return rank(read)
        return await self._fetch(partial(rank, read))

    def _latest(self, view: View, keys: list[int]) -> Candidates:
        """Reads the newest versions of items that were replaced, where they still match."""
        ids = view.rows.ids(view.rows.slots_of_keys(np.array(keys), view.count))
        found = latest(self._engine.store, self._row, ids, self._options.filter)
        stored = {key: found[id] for key, id in zip(keys, ids, strict=True) if id in found}
        return Candidates.of(self.wanted.query, keys, stored)

    def _extended(self, pool: Candidates, rank: Callable[..., Ranked], others: Candidates, last: Hits) -> Ranked:
        return rank(pool.and_also(others), last=last)

    def _rank(self, pool: Candidates, view: View, first: Hits, leg: WordLeg | None, last: Hits | None = None) -> Ranked:
        """Thresholds, the best first, less near-duplicates and in groups, made diverse, and cut.

        `first` are the nearest items, and `last` those of the pool that lie furthest.
        """
        options = self._options
        calibrated = None if self._calibrate is None else self._calibrate(pool.scores)
        legs = None if leg is None else self._fused(pool, view, first.keys, leg)
        # Among items that no leg has, and others of equal fused scores, the nearest are first.
        by = (-pool.scores,) if legs is None else (-pool.scores, -legs.fused, ~legs.equal)
        order = np.lexsort(by)
        order = order[self._passes(pool.scores, calibrated, legs)[order]]
        values: list[Value | None] | None = None
        if options.group_by is not None:
            values = [json.loads(item.payload).get(options.group_by.field) for item in pool.items]
        groups = self._chosen(pool, order, values)
        further = self._further(groups, values)
        if further is None and leg is None and self._doubtful(pool.scores, groups, last or first):
            further = self.wanted.scope
        if options.diversity is not None:
            leaders = [group[0] for group in groups]
            places = diverse(
                pool.vectors[leaders],
                pool.scores[leaders] if leg is None or legs is None else legs.fused[leaders] / leg.hybrid.best,
                np.zeros(len(leaders), np.bool_) if legs is None else legs.equal[leaders],
                options.diversity.weight,
                options.top_k,
            )
            groups = [groups[place] for place in places]
        hits = [position for group in groups[: options.top_k] for position in group]
        return Ranked(
            pool,
            calibrated,
            legs,
            np.array(hits, np.int64),
            None if values is None else [value for hit in hits if (value := values[hit]) is not None],
            further,
        )

    def _fused(self, pool: Candidates, view: View, vector_keys: list[int], leg: WordLeg) -> Legs:
        slots = view.rows.slots_of_keys(pool.keys, view.count)
        return fused(
            leg.hybrid,
            pool.keys,
            pool.scores,
            np.isin(pool.keys, vector_keys),
            leg.keys,
            leg.scores,
            leg.equal[slots],
        )

    def _chosen(self, pool: Candidates, order: NDArray[np.int64], values: list[Value | None] | None) -> list[list[int]]:
        """Returns groups of positions, best first; without values each item is a group."""
        options = self._options
        if options.group_by is None and options.collapse_cosine is None:
            return [[position] for position in order[: options.choices].tolist()]
        groups = choose(
            pool.vectors[order],
            None if values is None else [values[position] for position in order],
            size=1 if options.group_by is None else options.group_by.size,
            count=options.choices,
            cosine=options.collapse_cosine,
        )
        return [order[group].tolist() for group in groups]

    def _passes(self, scores: Vector, calibrated: Vector | None, legs: Legs | None) -> NDArray[np.bool_]:
        """Returns which items the thresholds let through."""
        options = self._options
        # Compared in float32, so that a threshold taken from a reply keeps the hit that it was taken from.
        passing = np.ones(len(scores), np.bool_)
        if options.score_threshold is not None:
            passing &= scores >= np.float32(options.score_threshold)
        if options.calibrated_threshold is not None and calibrated is not None:
            passing &= calibrated >= np.float32(options.calibrated_threshold)
        if legs is not None and options.hybrid is not None and options.hybrid.vector_weight == 0:
            # A search for words alone: what has none of them is no hit.
            passing &= (legs.word_ranks > 0) | legs.equal
        return passing

    def _further(self, groups: list[list[int]], values: list[Value | None] | None) -> Scope | None:
        """Returns the scope of items that could complete the groups; None if they are complete."""
        options = self._options
        if options.group_by is None or values is None:
            short = options.collapse_cosine is not None and len(groups) < options.choices
            return self.wanted.scope if short else None
        filter = missing(options.group_by, values, groups, options.choices)
        if filter is None:
            return None
        both = filter if options.filter is None else AllOf((options.filter, filter))
        return replace(self.wanted.scope, filter=both)

    def _doubtful(self, scores: Vector, groups: list[list[int]], last: Hits) -> bool:
        """Whether an item beyond the pool may be nearer than the last hit, though its float16 vector is not."""
        if last.plan.method not in (Method.EXACT, Method.GATHER) or not (groups and len(last.keys)):
            return False
        return bool(last.scores[-1] + HALF_PRECISION > scores[groups[-1][-1]])

    def _exhausted(self, wanted: Wanted, hits: Hits) -> bool:
        """Whether there are no items beyond the hits of a round that could be hits of the search."""
        if len(hits.keys) < wanted.k or (self._options.hybrid is not None and not self._options.hybrid.vector_weight):
            return True
        last = hits.scores[-1:] + np.float32(HALF_PRECISION)
        calibrated = None if self._calibrate is None else self._calibrate(last)
        return not self._passes(last, calibrated, None).all()

    async def result(self, view: View, plan: Plan, ranked: Ranked) -> SearchResult:
        """Returns what was asked for of the hits."""
        options, candidates = self._options, ranked.candidates
        items = [candidates.items[position] for position in ranked.positions]
        payloads: list[bytes] = []
        if options.include_payloads:
            payloads = [item.payload for item in items]
        if payloads and options.payload_fields:
            names = frozenset(options.payload_fields)
            whole = payloads
            payloads = await self._fetch(lambda: [selected(payload, names) for payload in whole])
        return SearchResult(
            ids=[item.id for item in items],
            scores=candidates.scores[ranked.positions],
            payloads=payloads,
            vectors=candidates.vectors[ranked.positions] if options.include_vectors else None,
            calibrated_scores=None if ranked.calibrated is None else ranked.calibrated[ranked.positions],
            legs=None if ranked.legs is None else ranked.legs.at(ranked.positions),
            group_values=ranked.values,
            plan=plan,
            candidate_count=len(candidates.items),
            sequence=view.sequence,
            search_seconds=self.search_seconds,
            fetch_seconds=self.fetch_seconds,
        )

    async def _search(self, work: Callable[[], Result]) -> Result:
        started = perf_counter()
        result = await self._engine.searching.run(work)
        self.search_seconds += perf_counter() - started
        return result

    async def _fetch(self, work: Callable[[], Result]) -> Result:
        started = perf_counter()
        result = await self._engine.reading.run(work)
        self.fetch_seconds += perf_counter() - started
        return result
