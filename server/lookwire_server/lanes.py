"""The two classes of work, and the priority of the threads that do it."""

import os
import sys
import threading
from contextlib import suppress
from enum import StrEnum


class Lane(StrEnum):
    """A priority class of work: interactive goes first, bulk fills what is left."""

    INTERACTIVE = "interactive"
    BULK = "bulk"


# What a lane's threads add to the nice value of the process (1.25 times the processor time a step, where cores are short).
# Interactive: the loop takes requests in before another small batch runs. Measured at 32 calls in flight on 2 cores with the
# client beside (bundled text tower): 5.5 rows an execution instead of 2.1, a quarter more calls a second.
# Bulk: the system takes a core away from bulk work whenever interactive work wants it. Measured on 2 cores (ViT-B/32): texts at
# 15/s take as long beside batches of images as alone (p99 20 ms; 38 to 90 ms at equal values), and bulk loses nothing else.
NICENESS = {Lane.INTERACTIVE: 10, Lane.BULK: 19}


def lower_priority(lane: Lane) -> None:
    """Lowers the priority of the calling thread to that of the lane, where the system has one for each thread and allows it."""
    if sys.platform == "linux":
        with suppress(OSError):
            own = os.getpriority(os.PRIO_PROCESS, 0)
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), own + NICENESS[lane])
