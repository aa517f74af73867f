"""What each call sends, and how its reply is read; nothing here opens a connection."""

from lookwire.calls.call import Call, Page, Result
from lookwire.calls.collection_service import (
    collection_statistics,
    create_collection,
    delete_alias,
    delete_collection,
    get_collection,
    list_collections,
    reembed_collection,
    set_alias,
    update_collection,
)
from lookwire.calls.encoder_service import classify, embed, get_encoder, list_encoders, score
from lookwire.calls.imports import Import
from lookwire.calls.item_service import (
    added,
    count_items,
    delete_items,
    facet_items,
    failed_after,
    get_items,
    list_items,
    update_payloads,
    upsert,
)
from lookwire.calls.search_service import batch_search, search
from lookwire.calls.snapshot_service import create_snapshot, delete_snapshot, list_snapshots, restore_snapshot

__all__ = [
    "Call",
    "Import",
    "Page",
    "Result",
    "added",
    "batch_search",
    "classify",
    "collection_statistics",
    "count_items",
    "create_collection",
    "create_snapshot",
    "delete_alias",
    "delete_collection",
    "delete_items",
    "delete_snapshot",
    "embed",
    "facet_items",
    "failed_after",
    "get_collection",
    "get_encoder",
    "get_items",
    "list_collections",
    "list_encoders",
    "list_items",
    "list_snapshots",
    "reembed_collection",
    "restore_snapshot",
    "score",
    "search",
    "set_alias",
    "update_collection",
    "update_payloads",
    "upsert",
]
