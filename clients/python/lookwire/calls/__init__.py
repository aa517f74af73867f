"""What each call sends, and how its reply is read; nothing here opens a connection."""

from lookwire.calls.call import Call, Page, Result
from lookwire.calls.collection_service import create_collection, delete_collection, get_collection, list_collections
from lookwire.calls.encoder_service import classify, embed, get_encoder, list_encoders, score
from lookwire.calls.item_service import (
    added,
    count_items,
    delete_items,
    failed_after,
    get_items,
    list_items,
    upsert,
)
from lookwire.calls.search_service import search

__all__ = [
    "Call",
    "Page",
    "Result",
    "added",
    "classify",
    "count_items",
    "create_collection",
    "delete_collection",
    "delete_items",
    "embed",
    "failed_after",
    "get_collection",
    "get_encoder",
    "get_items",
    "list_collections",
    "list_encoders",
    "list_items",
    "score",
    "search",
    "upsert",
]
