"""TLS on gRPC: plain, mutual, and certificates that are replaced while the server runs."""

import os
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tritonclient import grpc as triton

from lookwire.local import LocalServer
from tests.conftest import MODEL_REPOSITORY

SERVING = health_pb2.HealthCheckResponse.SERVING


class Files:
    """Certificates that vouch for themselves, for `localhost` and 127.0.0.1."""

    def __init__(self, folder: Path) -> None:
        self.server, self.server_key = folder / "server.pem", folder / "server.key"
        self.client, self.client_key = folder / "client.pem", folder / "client.key"
        self.make(self.server, self.server_key)
        self.make(self.client, self.client_key)

    def make(self, certificate: Path, key: Path) -> None:
        """Writes a new pair in place of the old one, each file in one step."""
        new = [path.with_suffix(".new") for path in (certificate, key)]
        new[1] = key.with_suffix(".newkey")
        subprocess.run(
            [
                *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"),
                *("-days", "2", "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"),
                *("-out", str(new[0]), "-keyout", str(new[1])),
            ],
            check=True,
            capture_output=True,
        )
        os.replace(new[1], key)
        os.replace(new[0], certificate)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    return Files(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="module")
def mutual(files: Files) -> Iterator[LocalServer]:
    with LocalServer(
        MODEL_REPOSITORY,
        grpc_use_ssl_mutual=True,
        grpc_server_cert=files.server,
        grpc_server_key=files.server_key,
        grpc_root_cert=files.client,
    ) as server:
        yield server


def health(address: str, credentials: grpc.ChannelCredentials) -> int:
    """The server's health by a connection of its own."""
    with grpc.secure_channel(address, credentials, [("grpc.use_local_subchannel_pool", 1)]) as channel:
        reply = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=10)
    status: int = reply.status
    return status


def test_mutual_tls_asks_for_a_certificate(mutual: LocalServer, files: Files) -> None:
    """Under mutual TLS a client with a known certificate is served; without one, with another or in plain it is not."""
    root, key, chain = files.server.read_bytes(), files.client_key.read_bytes(), files.client.read_bytes()

    assert health(mutual.address, grpc.ssl_channel_credentials(root, key, chain)) == SERVING
    with triton.InferenceServerClient(
        mutual.address,
        ssl=True,
        root_certificates=str(files.server),
        private_key=str(files.client_key),
        certificate_chain=str(files.client),
    ) as client:
        assert client.is_server_ready()
    strangers = [
        grpc.ssl_channel_credentials(root),
        grpc.ssl_channel_credentials(root, files.server_key.read_bytes(), files.server.read_bytes()),
        grpc.local_channel_credentials(),
    ]
    for credentials in strangers:
        with pytest.raises(grpc.RpcError) as failure:
            health(mutual.address, credentials)
        assert failure.value.code() is grpc.StatusCode.UNAVAILABLE


def test_replaced_certificates_are_taken(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """New connections meet the new certificate, old ones go on; files that are unusable leave the last one in use."""
    files = Files(tmp_path)
    with LocalServer(
        MODEL_REPOSITORY,
        show_log=True,
        grpc_use_ssl=True,
        grpc_server_cert=files.server,
        grpc_server_key=files.server_key,
    ) as server:
        host, port = server.address.split(":")
        old = files.server.read_text()
        with grpc.secure_channel(server.address, grpc.ssl_channel_credentials(old.encode())) as channel:
            check = health_pb2_grpc.HealthStub(channel).Check
            assert check(health_pb2.HealthCheckRequest()).status == SERVING

            files.make(files.server, files.server_key)
            new = files.server.read_text()

            assert health(server.address, grpc.ssl_channel_credentials(new.encode())) == SERVING
            assert ssl.get_server_certificate((host, int(port))).strip() == new.strip() != old.strip()
            files.server.write_text("no certificate")
            assert health(server.address, grpc.ssl_channel_credentials(new.encode())) == SERVING
            files.server.unlink()
            assert health(server.address, grpc.ssl_channel_credentials(new.encode())) == SERVING
            assert check(health_pb2.HealthCheckRequest()).status == SERVING
        assert server.stop() == 0
    assert "the last ones stay in use" in capfd.readouterr().err


@pytest.mark.parametrize("damage", ["missing", "no certificate"])
def test_unusable_certificates_end_the_start(tmp_path: Path, damage: str) -> None:
    """A start with certificates that cannot be used ends with a sentence that says which."""
    files = Files(tmp_path)
    files.server.unlink() if damage == "missing" else files.server.write_text(damage)

    with pytest.raises(RuntimeError, match="TLS") as failure:
        LocalServer(
            MODEL_REPOSITORY, grpc_use_ssl=True, grpc_server_cert=files.server, grpc_server_key=files.server_key
        ).start()

    assert "server.pem" in str(failure.value)
    assert "Traceback" not in str(failure.value)
