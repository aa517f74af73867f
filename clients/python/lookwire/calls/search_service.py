"""The call of SearchService."""

import json

from lookwire.calls.call import Call, stage_times
from lookwire.filters import Filter, filter_message
from lookwire.queries import Query, query_message
from lookwire.types import Hit, Image, Plan, SearchResult, VectorLike
from lookwire.v1 import search_service_pb2 as pb
from lookwire.vectors import matrix_array


def search(
    collection: str,
    *,
    text: str | None,
    image: Image | None,
    vector: VectorLike | None,
    item_id: str | None,
    query: Query | None,
    filter: Filter | None,
    top_k: int,
    score_threshold: float | None,
    ids_only: bool,
    include_vectors: bool,
    min_sequence: int | None,
) -> Call[SearchResult]:
    """Asks for the items nearest to a query. Raises ValueError unless one kind of query is given."""
    given = [
        Query.text(text) if text is not None else None,
        Query.image(image) if image is not None else None,
        Query.vector(vector) if vector is not None else None,
        Query.item(item_id) if item_id is not None else None,
        query,
    ]
    queries = [each for each in given if each is not None]
    if len(queries) != 1:
        raise ValueError(f"a search needs exactly one of text, image, vector, item_id and query, not {len(queries)}")
    if top_k < 1:
        raise ValueError(f"top_k is at least 1, not {top_k}")
    request = pb.SearchRequest(
        collection=collection,
        query=query_message(queries[0]),
        filter=filter_message(filter),
        top_k=top_k,
        score_threshold=score_threshold,
        ids_only=ids_only,
        include_vectors=include_vectors,
        min_sequence=min_sequence,
    )

    def parse(response: pb.SearchResponse) -> SearchResult:
        count = len(response.ids)
        payloads = [{}] * count if ids_only else [json.loads(payload) for payload in response.payloads]
        vectors = matrix_array(response.vectors) if include_vectors else [None] * count
        hits = zip(response.ids, response.scores, payloads, vectors, strict=True)
        return SearchResult(
            hits=tuple(Hit(id, score, payload, row) for id, score, payload, row in hits),
            plan=_plan(response.plan),
            sequence=response.sequence,
            fingerprint=response.fingerprint,
            times=stage_times(response.times),
        )

    return Call("Search", request, parse)


def _plan(message: pb.Plan) -> Plan:
    value = pb.Plan.Method.DESCRIPTOR.values_by_number.get(message.method)
    # A newer server may know methods that this client does not.
    method = value.name.removeprefix("METHOD_").lower() if value else str(message.method)
    return Plan(method=method, item_count=message.item_count, match_count=message.match_count)
