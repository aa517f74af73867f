"""SearchService: from a query of any kind to ranked items, in one call."""

import asyncio
import time
from dataclasses import replace
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
from lookwire_server.search.collection import Collection
from lookwire_server.search.collections import Collections
from lookwire_server.search.plan import Method, Plan
from lookwire_server.search.ranking.diversity import Diversity
from lookwire_server.search.ranking.fusion import Hybrid, Legs
from lookwire_server.search.ranking.groups import GroupBy
from lookwire_server.search.search_options import SearchOptions
from lookwire_server.search.searcher import SearchResult

DEFAULT_TOP_K = 10
MAX_REQUESTS = 256
# Of all searches of a batch together: ten of the largest. A reply holds their payloads, of up to 64 KiB each.
MAX_HITS = 10_000
METHODS = {
    Method.EXACT: pb.Plan.METHOD_EXACT,
    Method.GATHER: pb.Plan.METHOD_GATHER,
    Method.IVF: pb.Plan.METHOD_IVF,
    Method.HNSW: pb.Plan.METHOD_HNSW,
}

Context = grpc.aio.ServicerContext[Any, Any]
log = structlog.get_logger()


class SearchServicer(search_service_pb2_grpc.SearchServiceServicer):
    """Encodes the query, then searches the collection."""

    def __init__(self, collections: Collections, encoders: Encoders) -> None:
        self._collections = collections
        self._encoders = encoders
        self._queries = Queries(encoders)

    async def Search(self, request: pb.SearchRequest, context: Context) -> pb.SearchResponse:
        return await self._search(request, convert.deadline(context))

    async def BatchSearch(self, request: pb.BatchSearchRequest, context: Context) -> pb.BatchSearchResponse:
        if not 1 <= len(request.requests) <= MAX_REQUESTS:
            raise InvalidArgument(
                f"expected 1 to {MAX_REQUESTS} requests, got {len(request.requests)}", field="requests"
            )
        hits = sum(largest_count(each) for each in request.requests)
        if hits > MAX_HITS:
            raise InvalidArgument(
                f"all searches together ask for up to {hits} hits; at most {MAX_HITS}. Send fewer at a time",
                field="requests",
                hits=hits,
                limit=MAX_HITS,
            )
        deadline = convert.deadline(context)
        return pb.BatchSearchResponse(
            results=await asyncio.gather(*(self._outcome(each, deadline) for each in request.requests))
        )

    async def _outcome(self, request: pb.SearchRequest, deadline: float | None) -> pb.BatchSearchResult:
        try:
            return pb.BatchSearchResult(response=await self._search(request, deadline))
        except LookwireError as error:
            return pb.BatchSearchResult(error=to_status(error))
        except Exception:
            log.exception("a search of a batch failed")
            return pb.BatchSearchResult(error=status_pb2.Status(code=code_pb2.INTERNAL, message=INTERNAL))

    async def _search(self, request: pb.SearchRequest, deadline: float | None) -> pb.SearchResponse:
        started = time.monotonic()
        member = convert.vector_format(request.vector_format)
        collection = self._collections.get(request.collection)
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
        result = await collection.search(
            vector, options, min_sequence=request.min_sequence if request.HasField("min_sequence") else None
        )
        return reply(collection, request, result, member, resolution.times, started)

    def _sigmoid(self, collection: Collection, query: pb.Query) -> ScoreRule | None:
        """The rule of an encoder that was trained to give a text and an image a probability, if the query is a text."""
        if query.WhichOneof("kind") != "text":
            return None
        encoder = self._encoders.of_fingerprint(collection.row.encoder, collection.row.fingerprint)
        rule = ScoreRule.of(encoder.manifest)
        return rule if rule.kind == "sigmoid" else None


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


def reply(
    collection: Collection, request: pb.SearchRequest, result: SearchResult, member: str, times: Times, started: float
) -> pb.SearchResponse:
    """The message of a result."""
    return pb.SearchResponse(
        ids=result.ids,
        scores=result.scores,
        payloads=result.payloads,
        vectors=None if result.vectors is None else convert.matrix(result.vectors, member),
        plan=plan(result.plan, explain=request.explain),
        sequence=result.sequence,
        fingerprint=collection.row.fingerprint,
        times=convert.stage_times(
            started,
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


def plan(found: Plan, *, explain: bool) -> pb.Plan:
    """The message of a plan; without `explain` its first three fields. A recall that was not measured is 0."""
    message = pb.Plan(method=METHODS[found.method], item_count=found.item_count, match_count=found.match_count)
    if explain:
        message.generation = found.generation
        message.indexed_count = found.indexed_count
        message.cells = found.cells
        message.probes = found.probes
        message.ef_search = found.ef_search
        message.candidate_count = found.candidate_count
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
