"""Lookwire's client: embeddings and vector search over gRPC.

    from lookwire import Client, Item, Query, field

    with Client("localhost:8001") as client:
        client.create_collection("shop", {"colour": "string", "price": "double"})
        client.upsert("shop", [Item("d-17", {"colour": "red", "price": 39.5}, text="a red dress")])
        client.search("shop", text="something red", filter=field("price") < 50)
        client.search("shop", query=Query.recommend(liked=["d-17"]))

`AsyncClient` is the same for asyncio, `lookwire.local.LocalServer` starts a server of one's own, `lookwire.resize` makes
images small before they are sent, `lookwire.v1` holds the generated messages.
"""

from importlib.metadata import version

from lookwire import errors
from lookwire.aio import AsyncClient
from lookwire.client import Client
from lookwire.errors import FieldViolation, LookwireError
from lookwire.filters import Filter, all_of, any_of, field, ids, none_of
from lookwire.queries import Diversity, GroupBy, Hybrid, Query, Search
from lookwire.types import (
    BatchSearchResult,
    Classifications,
    Collection,
    CollectionStatistics,
    Deleted,
    Embeddings,
    Encoder,
    Facet,
    Facets,
    FieldType,
    Hit,
    ImageRules,
    Imported,
    IndexKind,
    IndexSettings,
    Item,
    LabelGroup,
    LabelScore,
    Legs,
    ParityFigure,
    ParityRecord,
    PayloadUpdate,
    Plan,
    ReembedProgress,
    Scores,
    SearchResult,
    Snapshot,
    StageTimes,
    StoredItem,
    Upserted,
)

__version__ = version("lookwire")

__all__ = [
    "AsyncClient",
    "BatchSearchResult",
    "Classifications",
    "Client",
    "Collection",
    "CollectionStatistics",
    "Deleted",
    "Diversity",
    "Embeddings",
    "Encoder",
    "Facet",
    "Facets",
    "FieldType",
    "FieldViolation",
    "Filter",
    "GroupBy",
    "Hit",
    "Hybrid",
    "ImageRules",
    "Imported",
    "IndexKind",
    "IndexSettings",
    "Item",
    "LabelGroup",
    "LabelScore",
    "Legs",
    "LookwireError",
    "ParityFigure",
    "ParityRecord",
    "PayloadUpdate",
    "Plan",
    "Query",
    "ReembedProgress",
    "Scores",
    "Search",
    "SearchResult",
    "Snapshot",
    "StageTimes",
    "StoredItem",
    "Upserted",
    "__version__",
    "all_of",
    "any_of",
    "errors",
    "field",
    "ids",
    "none_of",
]
