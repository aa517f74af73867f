"""From a query of any kind to a vector."""

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lookwire.v1 import search_service_pb2 as pb
from lookwire_server.encoding.encoder import Times
from lookwire_server.encoding.encoders import Encoders
from lookwire_server.errors import InvalidArgument, InvalidVector
from lookwire_server.rpc import convert
from lookwire_server.search.collection import Collection

MAX_PARTS = 16
MAX_RECOMMEND_IDS = 1024
# More than a float32 vector of length 1 is off by.
ROUNDING = 1e-6


@dataclass(slots=True)
class Resolution:
    """What resolving a query has found out besides its vector.

    `far` says that it is of another kind than the items, as a text is among images: no image, and no item. What kind a vector is
    of is not known, so it counts as such.
    """

    deadline: float | None
    excluded_ids: set[str] = field(default_factory=set)
    times: Times = field(default_factory=Times)
    far: bool = False


class Queries:
    """Resolves queries, by the encoder of the collection where they need one."""

    def __init__(self, encoders: Encoders) -> None:
        self._encoders = encoders

    async def vector(
        self, collection: Collection, query: pb.Query, path: str, resolution: Resolution
    ) -> convert.Vectors:
        """The vector that a query stands for, not 0, of shape [dimension]; errors name fields below `path`.

        A vector that the caller gave is as it was given.
        """
        kind = query.WhichOneof("kind")
        at = f"{path}.{kind}"
        resolution.far |= kind in ("text", "vector")
        match kind:
            case "text" | "image":
                encoder = self._encoders.of_fingerprint(collection.row.encoder, collection.row.fingerprint, at)
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
                return convert.vector(query.vector, at)
            case "item_id":
                resolution.excluded_ids.add(query.item_id)
                stored: convert.Vectors = (await collection.vectors_of([query.item_id], at))[0]
                return stored
            case "mix":
                return await self._mix(collection, query.mix, at, resolution)
            case "recommend":
                return await self._recommend(collection, query.recommend, at, resolution)
            case _:
                raise InvalidArgument("set text, image, vector, item_id, mix or recommend", field=path)

    async def _mix(
        self, collection: Collection, mix: pb.MixQuery, path: str, resolution: Resolution
    ) -> convert.Vectors:
        if not 1 <= len(mix.parts) <= MAX_PARTS:
            raise InvalidArgument(f"expected 1 to {MAX_PARTS} parts, got {len(mix.parts)}", field=f"{path}.parts")
        total = np.zeros(collection.row.dimension, np.float64)
        for index, part in enumerate(mix.parts):
            at = f"{path}.parts[{index}]"
            if part.query.WhichOneof("kind") == "mix":
                raise InvalidArgument("a part of a mix may not be a mix", field=f"{at}.query")
            if part.weight == 0 or not math.isfinite(part.weight):
                raise InvalidArgument(f"weight must be finite and not 0, got {part.weight}", field=f"{at}.weight")
            vector = await self.vector(collection, part.query, f"{at}.query", resolution)
            if part.query.WhichOneof("kind") == "vector":
                vector = collection.normalised(vector, f"{at}.query.vector")
            # In float64, in which every weight of float32 times an element is a number.
            total += part.weight * vector.astype(np.float64)
        return direction(total, sum(abs(part.weight) for part in mix.parts), path)

    async def _recommend(
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
        liking = await collection.vectors_of(liked, f"{path}.liked_ids")
        total = liking.mean(axis=0, dtype=np.float64)
        if disliked:
            disliking = await collection.vectors_of(disliked, f"{path}.disliked_ids")
            total -= disliking.mean(axis=0, dtype=np.float64)
        return direction(total, 2.0, path)


def direction(total: np.ndarray[Any, np.dtype[np.float64]], weight: float, path: str) -> convert.Vectors:
    """The unit vector along a sum of vectors of length up to 1, whose weights without their signs add up to `weight`.

    A sum that is zero but for the rounding of its float32 parts has no direction.
    """
    length = float(np.linalg.norm(total))
    if length <= ROUNDING * weight:
        raise InvalidVector("the parts cancel each other out: their sum has no direction", field=path)
    return (total / length).astype(np.float32)
