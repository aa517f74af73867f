"""The lock that keeps a second process out of a data directory."""

import fcntl
import os
from pathlib import Path

from lookwire_server.errors import FailedPrecondition


class DirectoryLock:
    """Held from construction to `close`; the kernel lets go of it when the process dies, however it dies."""

    def __init__(self, directory: Path) -> None:
        self._file = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._file)
            raise FailedPrecondition(
                f"the data directory {directory} is in use by another server", data_dir=directory
            ) from None

    def close(self) -> None:
        os.close(self._file)
