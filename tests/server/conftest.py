from collections.abc import Iterator

import pytest

from lookwire import Client
from lookwire.local import LocalServer
from tests.server.encoders import write_encoders


@pytest.fixture(scope="session")
def encoders_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalServer]:
    """Serves the encoders of `write_encoders`."""
    root = write_encoders(tmp_path_factory.mktemp("encoders") / "models")
    with LocalServer(root, allow_ungated=True) as server:
        yield server


@pytest.fixture(scope="session")
def encoders_client(encoders_server: LocalServer) -> Iterator[Client]:
    with Client(encoders_server.address) as client:
        yield client
