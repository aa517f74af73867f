"""Queries: what a search looks for."""

from collections.abc import Sequence
from dataclasses import dataclass

from lookwire.filters import Filter
from lookwire.images import image_bytes
from lookwire.types import Image, VectorLike
from lookwire.v1 import search_service_pb2 as pb
from lookwire.vectors import vector_message


@dataclass(frozen=True, slots=True)
class Query:
    """What a search looks for, made by one of the methods below.

    Query.mix((Query.text("red dress"), 1.0), (Query.item("d-17"), -0.5))
    """

    message: pb.Query

    @classmethod
    def text(cls, text: str) -> "Query":
        """Looks for what `text` describes."""
        if not isinstance(text, str):
            raise TypeError(f"a text is a string, not {type(text).__name__}")
        return cls(pb.Query(text=text))

    @classmethod
    def image(cls, image: Image) -> "Query":
        """Looks for what is like an image: encoded bytes, or the path of a file."""
        return cls(pb.Query(image=image_bytes(image)))

    @classmethod
    def vector(cls, vector: VectorLike) -> "Query":
        """Looks for what is near a vector [d] of real numbers, of any length but 0."""
        return cls(pb.Query(vector=vector_message(vector)))

    @classmethod
    def item(cls, id: str) -> "Query":
        """Looks for what is near an item of the collection; that item is not among the hits."""
        if not isinstance(id, str):
            raise TypeError(f"an item id is a string, not {type(id).__name__}")
        return cls(pb.Query(item_id=id))

    @classmethod
    def mix(cls, *parts: tuple["Query", float]) -> "Query":
        """Looks for a weighted sum of 1 to 16 queries, none of them a mix itself; a negative weight moves away.

        Items that parts name are not among the hits.
        """
        weighted = [pb.WeightedQuery(query=query_message(query), weight=weight) for query, weight in parts]
        return cls(pb.Query(mix=pb.MixQuery(parts=weighted)))

    @classmethod
    def recommend(cls, liked: Sequence[str], disliked: Sequence[str] = ()) -> "Query":
        """Looks for what is like some items, by id, and unlike others; the items named are not among the hits."""
        if isinstance(liked, str) or isinstance(disliked, str):
            raise TypeError("liked and disliked are lists of item ids, not one string")
        return cls(pb.Query(recommend=pb.RecommendQuery(liked_ids=liked, disliked_ids=disliked)))


@dataclass(frozen=True, slots=True)
class Hybrid:
    """A search for words beside that for vectors: the hits are those with the largest sum of weight / (60 + rank) over both.

    An item with a text or string field equal to the words, but for case and spaces, comes before all others, whatever the
    weights. `words` are 1 to 1,024 characters, or None for the text of the query. `fields` are the text fields to look in, none
    for all. The weights are 0 or more, one of them above 0.
    """

    words: str | None = None
    fields: Sequence[str] = ()
    vector_weight: float = 1.0
    word_weight: float = 1.0


@dataclass(frozen=True, slots=True)
class Diversity:
    """Hits that differ: each is the candidate of the largest (1 - weight) x score - weight x largest cosine with those before.

    `weight` is in [0, 1]; 0 changes nothing. `candidates` is how many of the nearest items to choose from, at most 1,000; 0 means
    four times `top_k`.
    """

    weight: float
    candidates: int = 0


@dataclass(frozen=True, slots=True)
class GroupBy:
    """The best `size` hits of each value of a string, int64 or bool field; `top_k` then counts values.

    Items without a value are left out. `size` times `top_k` is at most 1,000.
    """

    field: str
    size: int = 1


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Search:
    """One of the searches of `Client.batch_search`; the fields are the arguments of `Client.search`."""

    text: str | None = None
    image: Image | None = None
    vector: VectorLike | None = None
    item_id: str | None = None
    query: Query | None = None
    filter: Filter | None = None
    top_k: int = 10
    score_threshold: float | None = None
    calibrated_threshold: float | None = None
    include_calibrated_scores: bool = False
    hybrid: Hybrid | None = None
    diversity: Diversity | None = None
    group_by: GroupBy | None = None
    collapse_cosine: float | None = None
    ids_only: bool = False
    payload_fields: Sequence[str] = ()
    include_vectors: bool = False
    exact: bool = False
    explain: bool = False
    min_sequence: int | None = None


def query_message(query: Query) -> pb.Query:
    """Returns the message of a query. Raises TypeError for anything else."""
    if not isinstance(query, Query):
        raise TypeError(f"a query is made with a method of lookwire.Query, not {type(query).__name__}")
    return query.message
