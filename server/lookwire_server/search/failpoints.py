"""Places where a test can have the process killed: the steps between which disk and memory differ.

`LOOKWIRE_FAILPOINT=name` kills the process the first time that it comes to the place, `name:3` the third time.
"""

import os
import signal
from itertools import count

VARIABLE = "LOOKWIRE_FAILPOINT"
NAMES = (
    "write.before_commit",
    "write.after_commit",
    "write.before_publish",
    "write.after_publish",
    "build.after_read",
    "build.after_index",
    "build.before_rename",
    "build.after_rename",
    "swap.before_load",
    "swap.before_swap",
    "swap.after_swap",
    "swap.before_removal",
    "snapshot.before_rename",
    "snapshot.after_rename",
    "restore.after_chunk",
    "restore.before_publish",
)

_name, _, _times = os.environ.get(VARIABLE, "").partition(":")
_left = count(int(_times or 1) - 1, -1)


def reach(name: str) -> None:
    """Kills the process with SIGKILL if this is the place, and the time, that the variable names."""
    if name == _name and next(_left) == 0:
        os.kill(os.getpid(), signal.SIGKILL)
