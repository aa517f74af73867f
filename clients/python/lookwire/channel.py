"""How the clients set up their connection."""

import json
from typing import Any

import grpc

from lookwire.v1.collection_service_pb2_grpc import CollectionServiceStub
from lookwire.v1.encoder_service_pb2_grpc import EncoderServiceStub
from lookwire.v1.item_service_pb2_grpc import ItemServiceStub
from lookwire.v1.search_service_pb2_grpc import SearchServiceStub
from lookwire.v1.snapshot_service_pb2_grpc import SnapshotServiceStub

_MAX_SEND_BYTES = 64 * 1024 * 1024
_RETRIES = {
    "methodConfig": [
        {
            "name": [{}],  # every method
            "retryPolicy": {
                "maxAttempts": 4,
                "initialBackoff": "0.1s",
                "maxBackoff": "2s",
                "backoffMultiplier": 3,
                "retryableStatusCodes": ["UNAVAILABLE"],
            },
        }
    ]
}
OPTIONS: tuple[tuple[str, Any], ...] = (
    ("grpc.max_send_message_length", _MAX_SEND_BYTES),
    ("grpc.max_receive_message_length", -1),
    ("grpc.service_config", json.dumps(_RETRIES)),
    # gRPC keeps 256 KiB for repeating a request, and does not retry a larger one.
    ("grpc.per_rpc_retry_buffer_size", _MAX_SEND_BYTES),
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 5_000),
    # Pings go out during a call only: a server that vanished is noticed before the next call waits for it in vain.
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
)

# The health protocol in bytes, so that the client does without its package: a request about the whole server, and
# the answer SERVING.
HEALTH_WATCH = "/grpc.health.v1.Health/Watch"
HEALTH_REQUEST = b""
HEALTH_SERVING = b"\x08\x01"


def methods(channel: grpc.Channel | grpc.aio.Channel) -> dict[str, Any]:
    """Returns every method of the five services by its name, which is unique among them."""
    stubs = (
        EncoderServiceStub(channel),
        CollectionServiceStub(channel),
        ItemServiceStub(channel),
        SearchServiceStub(channel),
        SnapshotServiceStub(channel),
    )
    return {name: method for stub in stubs for name, method in vars(stub).items()}
