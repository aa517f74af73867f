"""Dynamic batching: concurrent single-text calls share executions, and nobody's vector changes by it.

Calls come from this process over loopback to a server of its own with the bundled encoder.
"""

import asyncio
import re
import statistics
import time
import urllib.request

import numpy as np
from numpy.typing import NDArray
from tritonclient.grpc import InferenceServerClient

from benchmarks.report import Figure, Report
from lookwire import AsyncClient
from lookwire.local import LocalServer

CALLS = 32
ROUNDS = 7
MODEL = "garments-text"
TEXTS = [
    f"a {colour} {kind} number {number}"
    for number in range(8)
    for colour in ("red", "blue")
    for kind in ("hat", "coat")
]


def run(report: Report) -> None:
    """Adds the figures of one run to the report."""
    with LocalServer("model_repo") as server:
        one_by_one, together, executions, histogram, alone, batched = asyncio.run(measure(server))
    report.add(
        Figure(
            f"model executions for {CALLS} concurrent calls",
            statistics.median(executions),
            "executions",
            f"ModelStatistics, median of {ROUNDS} rounds",
            at_most=CALLS / 2,
        )
    )
    report.add(
        Figure(
            "executions by histogram less by statistics",
            float(np.abs(np.subtract(histogram, executions)).max()),
            "executions",
            "lookwire_batch_rows_count, largest of all rounds",
            at_most=0,
        )
    )
    report.add(
        Figure(
            "difference of a vector from the same text one by one",
            float(np.abs(together - one_by_one).max()),
            "absolute",
            "largest element of all calls and rounds",
            at_most=1e-5,
        )
    )
    report.add(
        Figure(
            "calls a second, concurrent / one by one",
            statistics.median(np.divide(alone, batched).tolist()),
            "ratio",
            f"median of {ROUNDS} alternating rounds",
        )
    )
    report.add(Figure("calls a second, concurrent", CALLS / statistics.median(batched), "1/s", "median"))


async def measure(
    server: LocalServer,
) -> tuple[NDArray[np.float32], NDArray[np.float32], list[int], list[int], list[float], list[float]]:
    """Vectors one by one and together, executions a round by statistics and by histogram, seconds alone and together."""
    executions, histogram, alone, batched = [], [], [], []
    async with AsyncClient(server.address) as client:
        await client.embed(TEXTS)
        for _ in range(ROUNDS):
            started = time.perf_counter()
            one_by_one = [(await client.embed([text])).vectors[0] for text in TEXTS]
            alone.append(time.perf_counter() - started)
            before = counts(server)
            started = time.perf_counter()
            answers = await asyncio.gather(*(client.embed([text]) for text in TEXTS))
            batched.append(time.perf_counter() - started)
            after = counts(server)
            executions.append(after[0] - before[0])
            histogram.append(after[1] - before[1])
    together = np.array([answer.vectors[0] for answer in answers])
    return np.array(one_by_one), together, executions, histogram, alone, batched


def counts(server: LocalServer) -> tuple[int, int]:
    """Executions of the text tower so far, by ModelStatistics and by the histogram of batch sizes."""
    with InferenceServerClient(server.address) as triton:
        executed = int(triton.get_inference_statistics(MODEL).model_stats[0].execution_count)
    page = urllib.request.urlopen(f"http://{server.metrics_address}/metrics").read().decode()
    series = re.search(rf'lookwire_batch_rows_count{{model="{MODEL}",version="1"}} (\S+)', page)
    if series is None:
        raise LookupError(f"/metrics has no batch histogram of {MODEL}")
    return executed, int(float(series[1]))
