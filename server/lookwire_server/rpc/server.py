"""The gRPC server: which servicers it has, and under which limits."""

import grpc
from google.protobuf.descriptor import ServiceDescriptor
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2
from tritonclient.grpc import service_pb2

from lookwire.v1 import (
    collection_service_pb2,
    encoder_service_pb2,
    item_service_pb2,
    search_service_pb2,
    snapshot_service_pb2,
)
from lookwire_server.encoding.encoders import Encoders
from lookwire_server.errors import Unavailable
from lookwire_server.metrics import Metrics
from lookwire_server.rpc.collections import CollectionServicer
from lookwire_server.rpc.encoders import EncoderServicer
from lookwire_server.rpc.guard import Guard
from lookwire_server.rpc.handlers import Handlers
from lookwire_server.rpc.health import HealthServicer
from lookwire_server.rpc.imports import Imports
from lookwire_server.rpc.items import ItemServicer
from lookwire_server.rpc.reflection import ReflectionServicer
from lookwire_server.rpc.restricted import RestrictedProtocols
from lookwire_server.rpc.search import SearchServicer
from lookwire_server.rpc.snapshots import SnapshotServicer
from lookwire_server.rpc.tls import Certificates
from lookwire_server.rpc.v2.servicer import InferenceServicer
from lookwire_server.search.collections import Collections
from lookwire_server.settings import Settings

SERVICES: tuple[ServiceDescriptor, ...] = (
    encoder_service_pb2.DESCRIPTOR.services_by_name["EncoderService"],
    collection_service_pb2.DESCRIPTOR.services_by_name["CollectionService"],
    item_service_pb2.DESCRIPTOR.services_by_name["ItemService"],
    search_service_pb2.DESCRIPTOR.services_by_name["SearchService"],
    snapshot_service_pb2.DESCRIPTOR.services_by_name["SnapshotService"],
    service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"],
)
HEALTH: ServiceDescriptor = health_pb2.DESCRIPTOR.services_by_name["Health"]
REFLECTION: ServiceDescriptor = reflection_pb2.DESCRIPTOR.services_by_name["ServerReflection"]


class Server:
    """The servicers on one port; raises Unavailable if it cannot listen. `address` is where it listens, "host:port"."""

    def __init__(
        self,
        settings: Settings,
        health: HealthServicer,
        inference: InferenceServicer,
        encoders: Encoders,
        collections: Collections,
        metrics: Metrics,
    ) -> None:
        self._health = health
        self._inference = inference
        restrictions = settings.grpc_restricted_protocol
        self._server = grpc.aio.server(
            interceptors=[RestrictedProtocols(restrictions, metrics)] if restrictions else [],
            maximum_concurrent_rpcs=settings.max_concurrent_rpcs,
            options=options(settings),
        )
        self._guard = guard = Guard(metrics, settings.max_inflight_bytes)
        self._imports = Imports(collections, encoders, guard)
        handlers = Handlers()
        servicers = (
            EncoderServicer(encoders),
            CollectionServicer(collections, encoders),
            ItemServicer(collections, encoders, self._imports),
            SearchServicer(collections, encoders),
            SnapshotServicer(collections.snapshots),
            inference,
        )
        for service, servicer in zip(SERVICES, servicers, strict=True):
            handlers.add(service, servicer, guard)
        handlers.add(HEALTH, health)
        self._reflection = ReflectionServicer(service.full_name for service in (*SERVICES, HEALTH, REFLECTION))
        handlers.add(REFLECTION, self._reflection)
        self._server.add_generic_rpc_handlers((handlers,))
        self.address = f"{settings.grpc_address}:{self._listen(settings)}"

    def _listen(self, settings: Settings) -> int:
        """Takes the port, and returns its number."""
        target = f"{settings.grpc_address}:{settings.grpc_port}"
        try:
            if settings.grpc_use_ssl or settings.grpc_use_ssl_mutual:
                return self._server.add_secure_port(target, Certificates(settings).credentials())
            return self._server.add_insecure_port(target)
        except RuntimeError as error:
            raise Unavailable(
                f"cannot listen on {target} for gRPC: {error}; give a free port with --grpc-port, or none with "
                "--allow-grpc false"
            ) from error

    async def start(self) -> None:
        """Takes requests."""
        await self._server.start()

    async def stop(self, timeout: float) -> None:
        """Refuses new requests, waits for those in flight, at most `timeout` seconds."""
        self._health.end_watches()
        self._inference.end_streams()
        self._guard.end_streams()
        self._imports.stop()
        self._reflection.end_streams()
        await self._server.stop(timeout)


def options(settings: Settings) -> list[tuple[str, int]]:
    """The settings as channel arguments of gRPC."""
    ages = {
        "grpc.max_connection_age_ms": settings.grpc_max_connection_age,
        "grpc.max_connection_age_grace_ms": settings.grpc_max_connection_age_grace,
    }
    return [
        ("grpc.max_receive_message_length", settings.max_message_bytes),
        ("grpc.max_send_message_length", -1),  # replies are bounded by the limits on what is asked for
        ("grpc.so_reuseport", 0),  # a port that is taken is an error, not a share of the calls
        ("grpc.keepalive_time_ms", settings.grpc_keepalive_time),
        ("grpc.keepalive_timeout_ms", settings.grpc_keepalive_timeout),
        ("grpc.keepalive_permit_without_calls", int(settings.grpc_keepalive_permit_without_calls)),
        ("grpc.http2.max_pings_without_data", settings.grpc_http2_max_pings_without_data),
        (
            "grpc.http2.min_recv_ping_interval_without_data_ms",
            settings.grpc_http2_min_recv_ping_interval_without_data,
        ),
        ("grpc.http2.max_ping_strikes", settings.grpc_http2_max_ping_strikes),
        *((name, age) for name, age in ages.items() if age),
    ]
