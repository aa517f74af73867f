"""A server of one's own, for programs and tests that bring theirs along."""

import importlib.util
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import weakref
from collections import deque
from concurrent.futures import Future
from pathlib import Path
from types import TracebackType
from typing import IO, Self

_LISTENING = re.compile(r"(\w+)=(\S+)")
_NEEDED = ("lookwire_server", "onnxruntime", "faiss", "apsw", "tokenizers")
_LOG_LINES = 40
_STOP_SECONDS = 40.0


class LocalServer:
    """A Lookwire server in a process of its own, on ports that the system picks.

        with LocalServer("model_repo") as server, Client(server.address) as client:
            client.embed(["a red dress"])

    Without `data_dir` the collections live in a temporary directory, which is removed at the end. Further settings of
    the server are keyword arguments: `LocalServer("model_repo", grpc_port=8001, log_format="json")` starts it with
    `--grpc-port 8001 --log-format json`, and a list repeats its flag. `show_log` passes the server's log on to this
    process's standard error.

    Once started, `address` (gRPC), `http_address` and `metrics_address` say where it listens ("host:port"; empty where it
    does not, as with `allow_http=False`), and `process` is its process.
    After `stop` or `kill` it may be started again, with the same data.
    """

    address: str
    http_address: str
    metrics_address: str
    process: subprocess.Popen[str]

    def __init__(
        self,
        model_repository: Path | str,
        data_dir: Path | str | None = None,
        *,
        show_log: bool = False,
        **settings: object,
    ) -> None:
        self._remove_data: weakref.finalize[..., LocalServer] | None = None
        if data_dir is None:
            data_dir = tempfile.mkdtemp(prefix="lookwire-")
            self._remove_data = weakref.finalize(self, shutil.rmtree, data_dir, ignore_errors=True)
        own = {
            "model_repository": model_repository,
            "data_dir": data_dir,
            "grpc_port": 0,
            "http_port": 0,
            "metrics_port": 0,
        }
        self._command = [sys.executable, "-m", "lookwire_server"]
        for name, value in (own | settings).items():
            for each in value if isinstance(value, list | tuple) else [value]:
                self._command += [f"--{name.replace('_', '-')}", str(each)]
        self._show_log = show_log

    def start(self, timeout: float = 60.0) -> None:
        """Returns when the server is ready to serve.

        Raises ModuleNotFoundError if the server is not installed, RuntimeError with the end of its log if it stops
        before it is ready, and TimeoutError likewise if it is not ready within `timeout` seconds.
        """
        missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
        if missing:
            raise ModuleNotFoundError(f"the server needs {', '.join(missing)}: pip install 'lookwire[server]'")
        # In a session of its own, so that Ctrl-C in a terminal reaches this process only, which then stops the server.
        self.process = subprocess.Popen(  # noqa: S603 - this interpreter, and flags that the caller wrote
            self._command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        ready: Future[dict[str, str]] = Future()
        log: deque[str] = deque(maxlen=_LOG_LINES)
        threading.Thread(target=_find_ready_line, args=(self.process.stdout, ready), daemon=True).start()
        logging = threading.Thread(target=_read_log, args=(self.process.stderr, log, self._show_log), daemon=True)
        logging.start()
        try:
            listening = ready.result(timeout)
            self.address, self.http_address, self.metrics_address = (
                listening.get(name, "") for name in ("grpc", "http", "metrics")
            )
        except EOFError:
            status = self.process.wait()
            logging.join()
            raise RuntimeError(
                f"the server stopped with status {status} before it was ready:\n{''.join(log)}"
            ) from None
        except TimeoutError:
            self.kill()
            logging.join()
            raise TimeoutError(f"the server was not ready within {timeout:g} seconds:\n{''.join(log)}") from None
        except BaseException:
            self.kill()
            raise

    def stop(self) -> int:
        """Ends the server in order, and by force if that takes longer than 40 seconds; returns its exit status."""
        self.process.terminate()
        try:
            return self.process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            return self.kill()

    def kill(self) -> int:
        """Ends the server at once, as a crash would; returns its exit status."""
        self.process.kill()
        return self.process.wait()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        if self._remove_data:
            self._remove_data()


def _find_ready_line(output: IO[str], ready: "Future[dict[str, str]]") -> None:
    """Reads the output to its end; completes `ready` with the line that says where the server listens, or EOFError."""
    with output:
        for line in output:
            if line.startswith("READY") and not ready.done():
                ready.set_result(dict(_LISTENING.findall(line)))
    if not ready.done():
        ready.set_exception(EOFError())


def _read_log(errors: IO[str], log: deque[str], show: bool) -> None:
    """Reads the log to its end and keeps the last lines."""
    with errors:
        for line in errors:
            log.append(line)
            if show:
                sys.stderr.write(line)
