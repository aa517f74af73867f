"""SearchService: from a query of any kind to ranked items, in one call."""

import math
import time
from dataclasses import dataclass, field
from typing import Any

import grpc
import numpy as np

from lookwire.v1 import search_service_pb2 as pb
from lookwire.v1 import search_service_pb2_grpc
from lookwire_server.encoding.encoder import Times
from lookwire_server.encoding.encoders import Encoders
from lookwire_server.errors import InvalidArgument, InvalidVector
from lookwire_server.rpc import convert, filters
from lookwire_server.search.collection import Collection, SearchResult
from lookwire_server.search.collections import Collections
from lookwire_server.search.plan import Method

DEFAULT_TOP_K = 10
MAX_PARTS = 16
MAX_RECOMMEND_IDS = 1024
METHODS = {Method.EXACT: pb.Plan.METHOD_EXACT, Method.GATHER: pb.Plan.METHOD_GATHER}

Context = grpc.aio.ServicerContext[Any, Any]


@dataclass(slots=True)
class Resolution:
    """What resolving a query has found out besides its vector: items that must not be hits, and stage times."""

    deadline: float | None
    excluded_ids: set[str] = field(default_factory=set)
    times: Times = field(default_factory=Times)


class SearchServicer(search_service_pb2_grpc.SearchServiceServicer):
    """Encodes the query, then searches the collection."""

    def __init__(self, collections: Collections, encoders: Encoders) -> None:
        self._collections = collections
        self._encoders = encoders

    async def Search(self, request: pb.SearchRequest, context: Context) -> pb.SearchResponse:
        started = time.monotonic()
        member = convert.vector_format(request.vector_format)
        collection = self._collections.get(request.collection)
        selected = filters.from_message(request.filter) if request.HasField("filter") else None
        resolution = Resolution(convert.deadline(context))
        vector = await self._vector(collection, request.query, "query", resolution)
        result = await collection.search(
            vector,
            filter=selected,
            excluded_ids=resolution.excluded_ids,
            top_k=request.top_k or DEFAULT_TOP_K,
            score_threshold=request.score_threshold if request.HasField("score_threshold") else None,
            include_payloads=not request.ids_only,
            include_vectors=request.include_vectors,
            min_sequence=request.min_sequence if request.HasField("min_sequence") else None,
        )
        return reply(collection, result, member, resolution.times, started)

    async def _vector(
        self, collection: Collection, query: pb.Query, path: str, resolution: Resolution
    ) -> convert.Vectors:
        """The float32 vector that a query stands for, of shape [dimension]."""
        kind = query.WhichOneof("kind")
        at = f"{path}.{kind}"
        match kind:
            case "text" | "image":
                encoder = self._encoders.of_fingerprint(collection.encoder, collection.fingerprint)
                content = query.text if kind == "text" else query.image
                embedded = await encoder.embed([content], deadline=resolution.deadline)
                for error in embedded.errors.values():
                    raise error.at(at)
                for stage in ("decode", "tokenise", "queue", "infer"):
                    slowest = max(getattr(resolution.times, stage), getattr(embedded.times, stage))
                    setattr(resolution.times, stage, slowest)
                encoded: convert.Vectors = embedded.vectors[0]
                return encoded
            case "vector":
                return collection.normalised(convert.vector(query.vector, at), at)
            case "item_id":
                resolution.excluded_ids.add(query.item_id)
                stored: convert.Vectors = collection.vectors_of([query.item_id], at)[0]
                return stored
            case "mix":
                return await self._mix(collection, query.mix, at, resolution)
            case "recommend":
                return self._recommend(collection, query.recommend, at, resolution)
            case _:
                raise InvalidArgument("set text, image, vector, item_id, mix or recommend", field=path)

    async def _mix(
        self, collection: Collection, mix: pb.MixQuery, path: str, resolution: Resolution
    ) -> convert.Vectors:
        if not 1 <= len(mix.parts) <= MAX_PARTS:
            raise InvalidArgument(f"expected 1 to {MAX_PARTS} parts, got {len(mix.parts)}", field=f"{path}.parts")
        total = np.zeros(collection.dimension, np.float64)
        for index, part in enumerate(mix.parts):
            at = f"{path}.parts[{index}]"
            if part.query.WhichOneof("kind") == "mix":
                raise InvalidArgument("a part of a mix may not be a mix", field=f"{at}.query")
            if part.weight == 0 or not math.isfinite(part.weight):
                raise InvalidArgument(f"weight must be finite and not 0, got {part.weight}", field=f"{at}.weight")
            total += part.weight * await self._vector(collection, part.query, f"{at}.query", resolution)
        return direction(total, path)

    def _recommend(
        self, collection: Collection, query: pb.RecommendQuery, path: str, resolution: Resolution
    ) -> convert.Vectors:
        liked, disliked = list(query.liked_ids), list(query.disliked_ids)
        if not liked:
            raise InvalidArgument("name at least one liked item", field=f"{path}.liked_ids")
        if len(liked) + len(disliked) > MAX_RECOMMEND_IDS:
            raise InvalidArgument(
                f"at most {MAX_RECOMMEND_IDS} items in all, got {len(liked) + len(disliked)}", field=f"{path}.liked_ids"
            )
        resolution.excluded_ids.update(liked, disliked)
        total = collection.vectors_of(liked, f"{path}.liked_ids").mean(axis=0, dtype=np.float64)
        if disliked:
            total -= collection.vectors_of(disliked, f"{path}.disliked_ids").mean(axis=0, dtype=np.float64)
        return direction(total, path)


def direction(total: np.ndarray[Any, np.dtype[np.float64]], path: str) -> convert.Vectors:
    """The unit vector along a sum of unit vectors; a sum that is zero but for rounding has no direction."""
    length = float(np.linalg.norm(total))
    if length < 1e-6:
        raise InvalidVector("the parts cancel each other out: their sum has no direction", field=path)
    return (total / length).astype(np.float32)


def reply(collection: Collection, result: SearchResult, member: str, times: Times, started: float) -> pb.SearchResponse:
    """The message of a result."""
    return pb.SearchResponse(
        ids=result.ids,
        scores=result.scores,
        payloads=result.payloads,
        vectors=None if result.vectors is None else convert.matrix(result.vectors, member),
        plan=pb.Plan(
            method=METHODS[result.plan.method],
            item_count=result.plan.item_count,
            match_count=result.plan.match_count,
        ),
        sequence=result.sequence,
        fingerprint=collection.fingerprint,
        times=convert.stage_times(
            started,
            decode=times.decode,
            tokenise=times.tokenise,
            queue=times.queue,
            infer=times.infer,
            search=result.search_seconds,
            fetch=result.fetch_seconds,
        ),
    )
