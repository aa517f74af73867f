import json
import signal
import tempfile
from pathlib import Path

import pytest

from lookwire import local
from lookwire.local import LocalServer

SERVER = """
import json, os, signal, sys, time
mode = os.environ["MODE"]
flags = dict(zip(sys.argv[1::2], sys.argv[2::2]))
os.makedirs(flags["--data-dir"], exist_ok=True)
print(json.dumps(flags), file=sys.stderr, flush=True)
if mode == "fail":
    print("no such model repository", file=sys.stderr)
    sys.exit(3)
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
print("a line that is not it", flush=True)
if mode == "serve":
    print("READY grpc=127.0.0.1:4711 http=127.0.0.1:4713 metrics=127.0.0.1:4712", flush=True)
while True:
    time.sleep(1)
"""


@pytest.fixture(autouse=True)
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package lookwire_server that only plays the part."""
    package = tmp_path / "path/lookwire_server"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "__main__.py").write_text(SERVER)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "path"))
    monkeypatch.setenv("MODE", "serve")
    monkeypatch.setattr(local, "_NEEDED", ())


def test_addresses_and_flags(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The READY line gives the addresses; settings become flags in kebab-case; SIGTERM ends the server."""
    with LocalServer("models", tmp_path / "data", show_log=True, log_level="debug", metrics_port=8002) as server:
        addresses = server.address, server.http_address, server.metrics_address
    status = server.process.returncode

    assert addresses == ("127.0.0.1:4711", "127.0.0.1:4713", "127.0.0.1:4712")
    assert status == 0
    assert json.loads(capfd.readouterr().err) == {
        "--model-repository": "models",
        "--data-dir": str(tmp_path / "data"),
        "--grpc-port": "0",
        "--http-port": "0",
        "--metrics-port": "8002",
        "--log-level": "debug",
    }


def test_temporary_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Data without a directory of its own is gone afterwards, and data with one is not."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    with LocalServer("models"):
        during = list(tmp_path.glob("lookwire-*"))
    with LocalServer("models", tmp_path / "data"):
        pass

    assert len(during) == 1
    assert not during[0].exists()
    assert (tmp_path / "data").exists()


def test_crash_and_restart(tmp_path: Path) -> None:
    """`kill` ends the server as a crash does; after it the server can be started again."""
    with LocalServer("models", tmp_path / "data") as server:
        first = server.process.pid

        status = server.kill()
        server.start()

        assert status == -signal.SIGKILL
        assert server.process.pid != first
        assert server.process.poll() is None


def test_server_that_stops_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that ends before it is ready is an error with its status and the end of its log."""
    monkeypatch.setenv("MODE", "fail")

    with pytest.raises(RuntimeError, match=r"status 3 before it was ready:\n(.*\n)*no such model repository"):
        LocalServer("models", tmp_path / "data").start()


def test_server_that_is_never_ready(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that is not ready in time is ended."""
    monkeypatch.setenv("MODE", "hang")
    server = LocalServer("models", tmp_path / "data")

    with pytest.raises(TimeoutError, match="within 1 seconds"):
        server.start(timeout=1.0)

    assert server.process.returncode == -signal.SIGKILL


def test_server_that_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the server's packages the error says what to install."""
    monkeypatch.setattr(local, "_NEEDED", ("json", "no_such_package"))

    with pytest.raises(ModuleNotFoundError, match=r"needs no_such_package: pip install 'lookwire\[server\]'"):
        LocalServer("models", tmp_path / "data").start()
