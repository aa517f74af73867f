"""What a server has used and done so far, as Linux and its metrics tell it."""

import os
import re
import urllib.request
from pathlib import Path

from lookwire.local import LocalServer

TICKS = os.sysconf("SC_CLK_TCK")


def cpu_seconds(server: LocalServer) -> float:
    """Processor seconds of all threads of its process."""
    # The name may have blanks and brackets; the fields that follow it have none: utime and stime are the 14th and 15th.
    fields = Path(f"/proc/{server.process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def resident_bytes(server: LocalServer) -> int:
    """The resident set of its process."""
    found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{server.process.pid}/status").read_text())
    if found is None:
        raise LookupError("the kernel tells no VmRSS of the server's process: it has ended")
    return int(found[1]) * 1024


def executed_rows(server: LocalServer, model: str) -> int:
    """Rows that the model has executed."""
    page = urllib.request.urlopen(f"http://{server.metrics_address}/metrics").read().decode()
    series = re.search(rf'^lookwire_batch_rows_sum{{model="{model}",version="1"}} (\S+)', page, re.MULTILINE)
    if series is None:
        raise LookupError(f"/metrics has no batch histogram of {model}")
    return int(float(series[1]))
