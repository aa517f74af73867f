"""The gRPC server: which servicers it has, under which limits, and its health."""

from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from tritonclient.grpc import service_pb2, service_pb2_grpc

from lookwire.v1 import (
    collection_service_pb2,
    collection_service_pb2_grpc,
    encoder_service_pb2,
    encoder_service_pb2_grpc,
    item_service_pb2,
    item_service_pb2_grpc,
    search_service_pb2,
    search_service_pb2_grpc,
)
from lookwire_server.encoding.encoders import Encoders
from lookwire_server.metrics import Metrics
from lookwire_server.models.repository import Repository
from lookwire_server.rpc.collections import CollectionServicer
from lookwire_server.rpc.encoders import EncoderServicer
from lookwire_server.rpc.health import HealthServicer
from lookwire_server.rpc.inference import InferenceServicer
from lookwire_server.rpc.interceptor import Interceptor
from lookwire_server.rpc.items import ItemServicer
from lookwire_server.rpc.search import SearchServicer
from lookwire_server.search.collections import Collections
from lookwire_server.settings import Settings

SERVICES = (
    encoder_service_pb2.DESCRIPTOR.services_by_name["EncoderService"].full_name,
    collection_service_pb2.DESCRIPTOR.services_by_name["CollectionService"].full_name,
    item_service_pb2.DESCRIPTOR.services_by_name["ItemService"].full_name,
    search_service_pb2.DESCRIPTOR.services_by_name["SearchService"].full_name,
    service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"].full_name,
)


class Server:
    """The servicers on one port. Health answers for the whole (the empty name), each service and each model."""

    def __init__(
        self, settings: Settings, repository: Repository, encoders: Encoders, collections: Collections, metrics: Metrics
    ) -> None:
        self._names = ("", *SERVICES, *{model.config.name for model in repository.models()})
        self._health = HealthServicer()
        self._server = grpc.aio.server(
            interceptors=[Interceptor(metrics, settings.max_inflight_bytes)],
            maximum_concurrent_rpcs=settings.max_concurrent_rpcs,
            options=[
                ("grpc.max_receive_message_length", settings.max_message_bytes),
                ("grpc.max_send_message_length", -1),  # replies are bounded by the limits on what is asked for
                # Clients ping every 30 s during a call; gRPC's default takes that for an attack after a few minutes.
                ("grpc.http2.min_recv_ping_interval_without_data_ms", 20_000),
                ("grpc.so_reuseport", 0),  # a port that is taken is an error, not a share of the calls
            ],
        )
        server: Any = self._server  # the generated functions of other packages are typed for grpc.Server only
        encoder_service_pb2_grpc.add_EncoderServiceServicer_to_server(EncoderServicer(encoders), server)
        collection_service_pb2_grpc.add_CollectionServiceServicer_to_server(
            CollectionServicer(collections, encoders), server
        )
        item_service_pb2_grpc.add_ItemServiceServicer_to_server(ItemServicer(collections, encoders), server)
        search_service_pb2_grpc.add_SearchServiceServicer_to_server(SearchServicer(collections, encoders), server)
        service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(InferenceServicer(repository), server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        reflection.enable_server_reflection((*SERVICES, health.SERVICE_NAME, reflection.SERVICE_NAME), server)
        self.address = f"{settings.grpc_address}:{self._server.add_insecure_port(self._target(settings))}"

    @staticmethod
    def _target(settings: Settings) -> str:
        return f"{settings.grpc_address}:{settings.grpc_port}"

    async def start(self) -> None:
        """Takes requests, and says so."""
        await self._server.start()
        await self._health.set_all(self._names, serving=True)

    async def not_serving(self) -> None:
        """Tells all who ask or watch that requests should go elsewhere; those that come are still answered."""
        await self._health.set_all(self._names, serving=False)

    async def stop(self, timeout: float) -> None:
        """Refuses new requests, waits for those in flight, at most `timeout` seconds."""
        self._health.end_watches()
        await self._server.stop(timeout)
