"""The requests of a load, as they go over the wire."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lookwire.v1 import encoder_service_pb2, filter_pb2, item_service_pb2, search_service_pb2, vector_pb2

EMBED = "/lookwire.v1.EncoderService/Embed"
SEARCH = "/lookwire.v1.SearchService/Search"
UPSERT = "/lookwire.v1.ItemService/UpsertItems"
TIMEOUT = 60.0


@dataclass(frozen=True, slots=True)
class Calls:
    """Requests of one method, which a load sends in turn and from the first again; each has `timeout` seconds."""

    address: str
    method: str
    requests: Sequence[bytes]
    timeout: float = TIMEOUT


def embed_texts(address: str, texts: Sequence[str], *, each: int = 1, timeout: float = TIMEOUT) -> Calls:
    """Embed with `each` texts a request."""
    requests = [
        encoder_service_pb2.EmbedRequest(
            inputs=[encoder_service_pb2.Input(text=text) for text in texts[first : first + each]]
        )
        for first in range(0, len(texts) - each + 1, each)
    ]
    return Calls(address, EMBED, [request.SerializeToString() for request in requests], timeout)


def embed_images(address: str, images: Sequence[bytes]) -> Calls:
    """Embed with one image a request."""
    requests = [
        encoder_service_pb2.EmbedRequest(inputs=[encoder_service_pb2.Input(image=image)]).SerializeToString()
        for image in images
    ]
    return Calls(address, EMBED, requests)


def search_texts(address: str, collection: str, texts: Sequence[str]) -> Calls:
    """Search for the ten items nearest to a text."""
    requests = [
        search_service_pb2.SearchRequest(collection=collection, query=search_service_pb2.Query(text=text))
        for text in texts
    ]
    return Calls(address, SEARCH, [request.SerializeToString() for request in requests])


def search_vectors(
    address: str, collection: str, vectors: NDArray[np.float32], filter: filter_pb2.Filter | None = None
) -> Calls:
    """Search for the ten items nearest to each row of `vectors` [n, d]."""
    requests = [
        search_service_pb2.SearchRequest(
            collection=collection,
            query=search_service_pb2.Query(vector=vector_pb2.Vector(f32=vector.astype("<f4").tobytes())),
            filter=filter,
        ).SerializeToString()
        for vector in vectors
    ]
    return Calls(address, SEARCH, requests)


def upsert_vectors(
    address: str,
    collection: str,
    vectors: NDArray[np.float32],
    payloads: Sequence[Mapping[str, object]],
    *,
    each: int,
    prefix: str = "item",
) -> Calls:
    """UpsertItems with `each` rows of `vectors` [n, d] and their payloads a request; ids are the rows' numbers."""
    items = [
        item_service_pb2.Item(
            id=f"{prefix}-{number}",
            payload=json.dumps(payload).encode(),
            vector=vector_pb2.Vector(f32=vector.astype("<f4").tobytes()),
        )
        for number, (vector, payload) in enumerate(zip(vectors, payloads, strict=True))
    ]
    requests = [
        item_service_pb2.UpsertItemsRequest(collection=collection, items=items[first : first + each])
        for first in range(0, len(items), each)
    ]
    return Calls(address, UPSERT, [request.SerializeToString() for request in requests])


def upsert_images(address: str, collection: str, images: Sequence[bytes], *, each: int) -> Calls:
    """UpsertItems with `each` images a request; ids are the images' numbers."""
    items = [item_service_pb2.Item(id=f"image-{number}", image=image) for number, image in enumerate(images)]
    requests = [
        item_service_pb2.UpsertItemsRequest(collection=collection, items=items[first : first + each])
        for first in range(0, len(items) - each + 1, each)
    ]
    return Calls(address, UPSERT, [request.SerializeToString() for request in requests])
