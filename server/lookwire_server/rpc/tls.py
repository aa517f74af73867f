"""TLS credentials from files, which may be replaced while the server runs."""

import ssl
from pathlib import Path
from typing import Any

import grpc
import structlog

from lookwire_server.errors import Unavailable
from lookwire_server.settings import Settings

log = structlog.get_logger()


class Certificates:
    """The files of the server's certificate, its key, and for mutual TLS of those that vouch for clients."""

    def __init__(self, settings: Settings) -> None:
        assert settings.grpc_server_cert, "Settings demands it"  # noqa: S101
        assert settings.grpc_server_key, "Settings demands it"  # noqa: S101
        self._files = [settings.grpc_server_cert, settings.grpc_server_key]
        self._mutual = settings.grpc_use_ssl_mutual
        if self._mutual and settings.grpc_root_cert:
            self._files.append(settings.grpc_root_cert)
        self._seen: list[tuple[int, int]] = []

    def credentials(self) -> grpc.ServerCredentials:
        """Credentials that follow the files; raises Unavailable if they cannot be used."""
        try:
            self._seen = self._marks()
            first = self._read()
        except OSError as error:
            raise Unavailable(f"cannot use the TLS files {self._names()}: {error}") from error
        renewed: Any = self._renewed  # it may return None, which the stubs do not know
        return grpc.dynamic_ssl_server_credentials(first, renewed, self._mutual)

    def _renewed(self) -> "grpc.ServerCertificateConfiguration | None":
        """What the files hold now, if they have changed; gRPC asks at each handshake."""
        try:
            marks = self._marks()
            if marks == self._seen:
                return None
            renewed = self._read()
        except OSError as error:
            log.error("the TLS files cannot be used, the last ones stay in use", files=self._names(), error=str(error))
            return None
        self._seen = marks
        log.info("the TLS files were read again")
        return renewed

    def _marks(self) -> list[tuple[int, int]]:
        return [(stat.st_mtime_ns, stat.st_ino) for stat in map(Path.stat, self._files)]

    def _names(self) -> str:
        return ", ".join(map(str, self._files))

    def _read(self) -> grpc.ServerCertificateConfiguration:
        """The contents; raises OSError if a file is missing, is no PEM, or if key and certificate are no pair."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self._files[0], self._files[1], password="")  # the terminal is never asked for one
        for path in self._files[2:]:
            context.load_verify_locations(path)
        chain, key, *roots = (path.read_bytes() for path in self._files)
        return grpc.ssl_server_certificate_configuration([(key, chain)], roots[0] if roots else None)
