"""Queries: what a search looks for."""

from collections.abc import Sequence
from dataclasses import dataclass

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


def query_message(query: Query) -> pb.Query:
    """Returns the message of a query. Raises TypeError for anything else."""
    if not isinstance(query, Query):
        raise TypeError(f"a query is made with a method of lookwire.Query, not {type(query).__name__}")
    return query.message
