"""The calls of SearchService."""

import json
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from lookwire.calls.call import Call, stage_times
from lookwire.errors import FieldViolation, LookwireError, from_status
from lookwire.filters import filter_message
from lookwire.queries import Diversity, GroupBy, Hybrid, Query, Search, query_message
from lookwire.types import BatchSearchResult, Hit, Legs, Plan, SearchResult
from lookwire.v1 import search_service_pb2 as pb
from lookwire.v1.filter_pb2 import FieldValue
from lookwire.vectors import matrix_array


def search(collection: str, search: Search) -> Call[SearchResult]:
    """Asks for the items nearest to a query. Raises ValueError unless one kind of query is given."""
    return Call("Search", _request(collection, search), _result)


def batch_search(collection: str, searches: Sequence[Search], *, partial: bool) -> Call[BatchSearchResult]:
    """Asks for the results of several searches at once."""
    requests = []
    for search in searches:
        if not isinstance(search, Search):
            raise TypeError(f"a search of a batch is a lookwire.Search, not {type(search).__name__}")
        requests.append(_request(collection, search))
    if not requests:
        raise ValueError("there is nothing to search for: give searches")

    def parse(response: pb.BatchSearchResponse) -> BatchSearchResult:
        failed = {
            index: from_status(outcome.error)
            for index, outcome in enumerate(response.results)
            if outcome.HasField("error")
        }
        if failed and not partial:
            raise _of_search(*min(failed.items()))
        results = (None if index in failed else _result(each.response) for index, each in enumerate(response.results))
        return BatchSearchResult(tuple(results), failed)

    return Call("BatchSearch", pb.BatchSearchRequest(requests=requests), parse)


def _request(collection: str, search: Search) -> pb.SearchRequest:
    given = [
        Query.text(search.text) if search.text is not None else None,
        Query.image(search.image) if search.image is not None else None,
        Query.vector(search.vector) if search.vector is not None else None,
        Query.item(search.item_id) if search.item_id is not None else None,
        search.query,
    ]
    queries = [each for each in given if each is not None]
    if len(queries) != 1:
        raise ValueError(f"a search needs exactly one of text, image, vector, item_id and query, not {len(queries)}")
    if search.top_k < 1:
        raise ValueError(f"top_k is at least 1, not {search.top_k}")
    if isinstance(search.payload_fields, str):
        raise TypeError("payload_fields are a list of names, not one string")
    return pb.SearchRequest(
        collection=collection,
        query=query_message(queries[0]),
        filter=filter_message(search.filter),
        top_k=search.top_k,
        score_threshold=search.score_threshold,
        ids_only=search.ids_only,
        include_vectors=search.include_vectors,
        min_sequence=search.min_sequence,
        hybrid=_hybrid(search),
        calibrated_threshold=search.calibrated_threshold,
        include_calibrated_scores=search.include_calibrated_scores,
        diversity=_diversity(search),
        group_by=_group_by(search),
        collapse_cosine=search.collapse_cosine,
        payload_fields=search.payload_fields,
        exact=search.exact,
        explain=search.explain,
    )


def _check(option: object, wanted: type, name: str) -> None:
    if not isinstance(option, wanted):
        raise TypeError(f"{name} is a lookwire.{wanted.__name__}, not {type(option).__name__}")


def _hybrid(search: Search) -> pb.Hybrid | None:
    hybrid = search.hybrid
    if hybrid is None:
        return None
    _check(hybrid, Hybrid, "hybrid")
    if not isinstance(hybrid.words, str | None):
        raise TypeError(f"the words of a hybrid search are a string, not {type(hybrid.words).__name__}")
    if isinstance(hybrid.fields, str):
        raise TypeError("the fields of a hybrid search are a list of names, not one string")
    if hybrid.words == "":
        raise ValueError("the words of a hybrid search are empty; leave them out to search for the text of the query")
    return pb.Hybrid(
        words=hybrid.words or "",
        fields=hybrid.fields,
        vector_weight=hybrid.vector_weight,
        word_weight=hybrid.word_weight,
    )


def _diversity(search: Search) -> pb.Diversity | None:
    diversity = search.diversity
    if diversity is None:
        return None
    _check(diversity, Diversity, "diversity")
    return pb.Diversity(weight=diversity.weight, candidates=diversity.candidates)


def _group_by(search: Search) -> pb.GroupBy | None:
    group_by = search.group_by
    if group_by is None:
        return None
    _check(group_by, GroupBy, "group_by")
    if group_by.size < 1:
        raise ValueError(f"the size of a group is at least 1, not {group_by.size}")
    return pb.GroupBy(field=group_by.field, group_size=group_by.size)


def _result(response: pb.SearchResponse) -> SearchResult:
    vectors = matrix_array(response.vectors) if response.HasField("vectors") else None
    return SearchResult(
        hits=tuple(_hit(response, place, vectors) for place in range(len(response.ids))),
        plan=_plan(response.plan),
        sequence=response.sequence,
        fingerprint=response.fingerprint,
        times=stage_times(response.times),
    )


def _hit(response: pb.SearchResponse, place: int, vectors: NDArray[np.float32] | None) -> Hit:
    return Hit(
        id=response.ids[place],
        score=response.scores[place],
        payload=json.loads(response.payloads[place]) if response.payloads else {},
        vector=None if vectors is None else vectors[place],
        calibrated_score=response.calibrated_scores[place] if response.calibrated_scores else None,
        legs=_legs(response.legs, place) if response.HasField("legs") else None,
        group_value=_value(response.group_values[place]) if response.group_values else None,
    )


def _legs(message: pb.HybridLegs, place: int) -> Legs:
    return Legs(
        vector_rank=message.vector_ranks[place],
        word_rank=message.word_ranks[place],
        word_score=message.word_scores[place],
        fused_score=message.fused_scores[place],
        equal=message.equal[place],
    )


def _value(message: FieldValue) -> str | int | bool | None:
    kind = message.WhichOneof("kind")
    value: str | int | bool | None = None if kind is None else getattr(message, kind)
    return value


def _plan(message: pb.Plan) -> Plan:
    value = pb.Plan.Method.DESCRIPTOR.values_by_number.get(message.method)
    return Plan(
        # A newer server may know methods that this client does not.
        method=value.name.removeprefix("METHOD_").lower() if value else str(message.method),
        item_count=message.item_count,
        match_count=message.match_count,
        generation=message.generation,
        indexed_count=message.indexed_count,
        cells=message.cells,
        probes=message.probes,
        ef_search=message.ef_search,
        candidate_count=message.candidate_count,
        measured_recall=message.measured_recall,
        batch_size=message.batch_size,
        reason=message.reason,
    )


def _of_search(index: int, error: LookwireError) -> LookwireError:
    """Returns the error of a search as that of the batch."""
    at = f"searches[{index}]"
    violations = tuple(FieldViolation(f"{at}.{each.field}", each.description) for each in error.violations)
    return type(error)(
        f"{at}: {error.message}", error.code, error.reason, error.metadata, violations, error.retry_after
    )
