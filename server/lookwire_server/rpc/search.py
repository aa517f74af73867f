"""SearchService: from a query of any kind to ranked items, in one call."""

import asyncio
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import grpc
import numpy as np
import structlog
from google.rpc import code_pb2, status_pb2

from lookwire.v1 import search_service_pb2 as pb
from lookwire.v1 import search_service_pb2_grpc
from lookwire_server.encoding.encoder import Times
from lookwire_server.encoding.encoders import Encoders
from lookwire_server.encoding.scores import Floats, ScoreRule
from lookwire_server.errors import InvalidArgument, LookwireError
from lookwire_server.rpc import convert, filters
from lookwire_server.rpc.guard import INTERNAL, to_status
from lookwire_server.rpc.probes import give_probes
from lookwire_server.rpc.queries import Queries, Resolution
from lookwire_server.rpc.reply_room import MAX_REPLY_BYTES, ReplyRoom
from lookwire_server.search.collection import Collection
from lookwire_server.search.collections import Collections
from lookwire_server.search.fields import MAX_PAYLOAD_BYTES
from lookwire_server.search.plan import Method
from lookwire_server.search.ranking.diversity import Diversity
from lookwire_server.search.ranking.fusion import Hybrid, Legs
from lookwire_server.search.ranking.groups import GroupBy
from lookwire_server.search.search_options import MAX_TOP_K, SearchOptions
from lookwire_server.search.searcher import SearchResult, most_items

DEFAULT_TOP_K = 10
MAX_REQUESTS = 256
# Of all searches of a batch together: ten of the largest.
MAX_HITS = 10_000
# Of the searches of a batch that are carried out at once: with the largest payloads they are as large as a reply may be.
MAX_ITEMS_AT_ONCE = MAX_REPLY_BYTES // MAX_PAYLOAD_BYTES
METHODS = {
    Method.EXACT: pb.Plan.METHOD_EXACT,
    Method.GATHER: pb.Plan.METHOD_GATHER,
    Method.IVF: pb.Plan.METHOD_IVF,
    Method.HNSW: pb.Plan.METHOD_HNSW,
}

Context = grpc.aio.ServicerContext[Any, Any]
log = structlog.get_logger()


@dataclass(frozen=True, slots=True, eq=False)
class Prepared:
    """A search whose query has become a vector; `member` is that of Matrix in which vectors are wanted."""

    request: pb.SearchRequest
    collection: Collection
    vector: convert.Vectors
    options: SearchOptions
    member: str
    times: Times
    started: float

    async def found(self) -> SearchResult:
        """Searches the collection."""
        sequence = self.request.min_sequence if self.request.HasField("min_sequence") else None
        return await self.collection.search(self.vector, self.options, min_sequence=sequence)


class SearchServicer(search_service_pb2_grpc.SearchServiceServicer):
    """Encodes the query, then searches the collection."""

    def __init__(self, collections: Collections, encoders: Encoders) -> None:
        self._collections = collections
        self._encoders = encoders
        self._queries = Queries(encoders)

    async def Search(self, request: pb.SearchRequest, context: Context) -> pb.SearchResponse:
        search = await self._prepared(request, convert.deadline(context))
        return reply(search, await search.found(), ReplyRoom())

    async def BatchSearch(self, request: pb.BatchSearchRequest, context: Context) -> pb.BatchSearchResponse:
        if not 1 <= len(request.requests) <= MAX_REQUESTS:
            raise InvalidArgument(
                f"expected 1 to {MAX_REQUESTS} requests, got {len(request.requests)}", field="requests"
            )
        # One that asks for too many by itself fails in its place.
        hits = sum(count for each in request.requests if (count := largest_count(each)) <= MAX_TOP_K)
        if hits > MAX_HITS:
            raise InvalidArgument(
                f"all searches together ask for up to {hits} hits; at most {MAX_HITS}. Send fewer at a time",
                field="requests",
                hits=hits,
                limit=MAX_HITS,
            )
        deadline = convert.deadline(context)
        searches = await asyncio.gather(
            *(self._prepared(each, deadline) for each in request.requests), return_exceptions=True
        )
        response, room = pb.BatchSearchResponse(), ReplyRoom()
        for part in parts(searches):
            results = await asyncio.gather(*map(found, part), return_exceptions=True)
            for search in part:
                # Taken out, so that nothing of it is kept while the next part is carried out.
                response.results.append(outcome(search, results.pop(0), room))
        return response

    async def _prepared(self, request: pb.SearchRequest, deadline: float | None) -> Prepared:
        started = time.monotonic()
        member = convert.vector_format(request.vector_format)
        collection = self._collections.get(request.collection, "collection")
        options = options_of(request)
        resolution = Resolution(deadline)
        options.check(collection.row.fields)  # before anything is spent on encoding
        vector = await self._queries.vector(collection, request.query, "query", resolution)
        options = replace(options, far=resolution.far, excluded_ids=resolution.excluded_ids)
        if options.calibrated:
            rule = self._sigmoid(collection, request.query)
            options = replace(options, probability=None if rule is None else partial(probability, rule))
            if rule is None and options.far:
                await give_probes(collection, self._encoders, deadline)
        return Prepared(request, collection, vector, options, member, resolution.times, started)

    def _sigmoid(self, collection: Collection, query: pb.Query) -> ScoreRule | None:
        """The rule of an encoder that was trained to give a text and an image a probability, if the query is a text."""
        if query.WhichOneof("kind") != "text":
            return None
        encoder = self._encoders.of_fingerprint(collection.row.encoder, collection.row.fingerprint, "query.text")
        rule = ScoreRule.of(encoder.manifest)
        return rule if rule.kind == "sigmoid" else None


def parts(searches: Sequence[Prepared | BaseException]) -> Iterator[list[Prepared | BaseException]]:
    """The searches in their order, as many at a time as may be carried out at once."""
    part: list[Prepared | BaseException] = []
    items = 0
    for search in searches:
        more = most_items(search.options) if isinstance(search, Prepared) else 0
        if part and items + more > MAX_ITEMS_AT_ONCE:
            yield part
            part, items = [], 0
        part.append(search)
        items += more
    if part:
        yield part


async def found(search: Prepared | BaseException) -> SearchResult:
    """The result of a search; raises what kept it from being prepared."""
    if isinstance(search, BaseException):
        raise search
    return await search.found()


def outcome(
    search: Prepared | BaseException, result: SearchResult | BaseException, room: ReplyRoom
) -> pb.BatchSearchResult:
    """The message of a search of a batch."""
    try:
        if isinstance(search, BaseException):
            raise search
        if isinstance(result, BaseException):
            raise result
        return pb.BatchSearchResult(response=reply(search, result, room))
    except LookwireError as error:
        return pb.BatchSearchResult(error=to_status(error))
    except Exception:
        log.exception("a search of a batch failed")
        return pb.BatchSearchResult(error=status_pb2.Status(code=code_pb2.INTERNAL, message=INTERNAL))


def probability(rule: ScoreRule, cosines: Floats) -> Floats:
    """Probabilities of pairs with these cosines, of shape [n], by the sigmoid."""
    return rule.probabilities(rule.logits(cosines)).astype(np.float32)


def top_k(request: pb.SearchRequest) -> int:
    """How many hits, or groups of them, a search asks for."""
    return request.top_k or DEFAULT_TOP_K


def largest_count(request: pb.SearchRequest) -> int:
    """How many hits a search can have."""
    return top_k(request) * (request.group_by.group_size or 1)


def options_of(request: pb.SearchRequest) -> SearchOptions:
    """The options of a request that do not depend on its query's vector."""
    return SearchOptions(
        filter=filters.from_message(request.filter) if request.HasField("filter") else None,
        top_k=top_k(request),
        score_threshold=request.score_threshold if request.HasField("score_threshold") else None,
        include_payloads=not request.ids_only,
        payload_fields=request.payload_fields,
        include_vectors=request.include_vectors,
        exact=request.exact,
        hybrid=hybrid(request) if request.HasField("hybrid") else None,
        calibrated_threshold=request.calibrated_threshold if request.HasField("calibrated_threshold") else None,
        include_calibrated_scores=request.include_calibrated_scores,
        diversity=Diversity(request.diversity.weight, request.diversity.candidates)
        if request.HasField("diversity")
        else None,
        group_by=GroupBy(request.group_by.field, request.group_by.group_size or 1)
        if request.HasField("group_by")
        else None,
        collapse_cosine=request.collapse_cosine if request.HasField("collapse_cosine") else None,
    )


def hybrid(request: pb.SearchRequest) -> Hybrid:
    """The words to look for: those of the message, or else those of the query."""
    message = request.hybrid
    if not message.words and request.query.WhichOneof("kind") != "text":
        raise InvalidArgument("give words to look for: the query is no text", field="hybrid.words")
    return Hybrid(
        message.words or request.query.text,
        tuple(message.fields),
        message.vector_weight if message.HasField("vector_weight") else 1.0,
        message.word_weight if message.HasField("word_weight") else 1.0,
    )


def reply(search: Prepared, result: SearchResult, room: ReplyRoom) -> pb.SearchResponse:
    """The message of a result; raises ReplyTooLarge if there is no room for it."""
    room.take(result, search.member)
    times = search.times
    return pb.SearchResponse(
        ids=result.ids,
        scores=result.scores,
        payloads=result.payloads,
        vectors=None if result.vectors is None else convert.matrix(result.vectors, search.member),
        plan=plan(result, explain=search.request.explain),
        sequence=result.sequence,
        fingerprint=search.collection.row.fingerprint,
        times=convert.stage_times(
            search.started,
            decode=times.decode,
            tokenise=times.tokenise,
            queue=times.queue,
            infer=times.infer,
            search=result.search_seconds,
            fetch=result.fetch_seconds,
        ),
        calibrated_scores=result.calibrated_scores,
        legs=None if result.legs is None else legs(result.legs),
        group_values=None if result.group_values is None else map(filters.value_message, result.group_values),
    )


def plan(result: SearchResult, *, explain: bool) -> pb.Plan:
    """The message of a search's plan; without `explain` its first three fields. A recall that was not measured is 0."""
    found = result.plan
    message = pb.Plan(method=METHODS[found.method], item_count=found.item_count, match_count=found.match_count)
    if explain:
        message.generation = found.generation
        message.indexed_count = found.indexed_count
        message.cells = found.cells
        message.probes = found.probes
        message.ef_search = found.ef_search
        message.candidate_count = result.candidate_count
        message.measured_recall = found.measured_recall or 0.0
        message.batch_size = found.batch_size
        message.reason = found.reason
    return message


def legs(found: Legs) -> pb.HybridLegs:
    """The message of the legs of a hybrid search."""
    return pb.HybridLegs(
        vector_ranks=found.vector_ranks,
        word_ranks=found.word_ranks,
        word_scores=found.word_scores,
        fused_scores=found.fused,
        equal=found.equal,
    )
