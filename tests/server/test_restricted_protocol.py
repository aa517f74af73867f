"""RPCs that --grpc-restricted-protocol keeps for callers with a certain metadata entry."""

from collections.abc import Callable, Iterator

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tritonclient import grpc as triton
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.utils import InferenceServerException

from lookwire import Client, errors
from lookwire.local import LocalServer
from tests.conftest import MODEL_REPOSITORY

WORDS = "This protocol is restricted, expecting header 'triton-grpc-protocol-{}'"


@pytest.fixture(scope="module")
def server() -> Iterator[LocalServer]:
    restrictions = ["health,model-repository:Admin=secret", "inference:infer-key=other"]
    with LocalServer(MODEL_REPOSITORY, grpc_restricted_protocol=restrictions) as server:
        yield server


@pytest.mark.parametrize(
    "headers", [None, {"triton-grpc-protocol-admin": "wrong"}, {"triton-grpc-protocol-infer-key": "secret"}]
)
def test_callers_without_the_entry_are_refused(server: LocalServer, headers: dict[str, str] | None) -> None:
    """A restricted RPC is UNAVAILABLE with Triton's words unless the very entry of its group is sent."""
    with triton.InferenceServerClient(server.address) as client:
        for call in (client.is_server_ready, client.get_model_repository_index):
            with pytest.raises(InferenceServerException, match=WORDS.format("admin")) as failure:
                call(headers=headers)
            assert failure.value.status() == "StatusCode.UNAVAILABLE"


def test_callers_with_the_entry_are_served(server: LocalServer) -> None:
    """With its entry an RPC answers, each time; RPCs of other groups need none."""
    with triton.InferenceServerClient(server.address) as client:
        for _ in range(3):
            assert client.is_server_ready(headers={"triton-grpc-protocol-admin": "secret"})
            with pytest.raises(InferenceServerException):
                client.is_server_ready()
        assert client.get_model_config("garments-text").config.name == "garments-text"
        assert client.get_inference_statistics().model_stats


def test_every_way_of_a_group_is_restricted(server: LocalServer) -> None:
    """`health` covers the standard service, `inference` streams and Lookwire's own RPCs."""
    with grpc.insecure_channel(server.address) as channel, Client(server.address) as client:
        check = health_pb2_grpc.HealthStub(channel)
        stream = service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelStreamInfer
        calls: list[Callable[[], object]] = [
            lambda: check.Check(health_pb2.HealthCheckRequest()),
            lambda: next(check.Watch(health_pb2.HealthCheckRequest())),
            lambda: next(stream(iter([service_pb2.ModelInferRequest(model_name="garments-text")]))),
        ]
        for call in calls:
            with pytest.raises(grpc.RpcError) as failure:
                call()
            assert failure.value.code() is grpc.StatusCode.UNAVAILABLE
            assert "This protocol is restricted" in str(failure.value.details())
        with pytest.raises(errors.LookwireError, match="infer-key"):
            client.embed(["a hat"])
        admitted = [("triton-grpc-protocol-admin", "secret")]
        reply = check.Check(health_pb2.HealthCheckRequest(), metadata=admitted)
        assert reply.status == health_pb2.HealthCheckResponse.SERVING
