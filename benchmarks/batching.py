"""Dynamic batching: concurrent single-text calls share executions, and nobody's vector changes by it.

Calls come from this process over loopback to a server of its own with the bundled encoder.
"""

import asyncio
import re
import statistics
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from tritonclient.grpc import InferenceServerClient

from benchmarks.report import Figure, Report
from lookwire import AsyncClient
from lookwire.local import LocalServer

CALLS = 32
ROUNDS = 7
SECONDS = 1.0
MODEL = "garments-text"
TEXTS = [
    f"a {colour} {kind} number {number}"
    for number in range(8)
    for colour in ("red", "blue")
    for kind in ("hat", "coat")
]


@dataclass(slots=True)
class Round:
    """One round: the calls one by one, then all at once, then 32 callers that each ask again and again."""

    seconds_alone: float
    seconds_together: float
    executions_together: int
    histogram_together: int
    difference: float
    calls_sustained: int
    executions_sustained: int


def run(report: Report) -> None:
    """Adds the figures of one run to the report."""
    with LocalServer("model_repo", embedding_cache_bytes=0) as server:
        rounds = asyncio.run(measure(server))

    def median(figure: Callable[[Round], float]) -> float:
        return statistics.median(map(figure, rounds))

    of_rounds = f"median of {ROUNDS} rounds"
    report.add(
        Figure(
            f"model executions for {CALLS} calls, {CALLS} always in flight",
            median(lambda one: CALLS * one.executions_sustained / one.calls_sustained),
            "executions",
            f"ModelStatistics, {of_rounds} of {SECONDS:g} s",
            at_most=CALLS / 2,
        )
    )
    report.add(
        Figure(
            f"model executions for a burst of {CALLS} calls to an idle server",
            median(lambda one: one.executions_together),
            "executions",
            f"ModelStatistics, {of_rounds}",
            at_most=CALLS / 2,
        )
    )
    report.add(
        Figure(
            "executions by histogram less by statistics",
            max(abs(one.histogram_together - one.executions_together) for one in rounds),
            "executions",
            "lookwire_batch_rows_count, largest of all rounds",
            at_most=0,
        )
    )
    report.add(
        Figure(
            "difference of a vector from the same text one by one",
            max(one.difference for one in rounds),
            "absolute",
            "largest element of all calls and rounds",
            at_most=1e-5,
        )
    )
    report.add(
        Figure(
            "calls a second, burst / one by one",
            median(lambda one: one.seconds_alone / one.seconds_together),
            "ratio",
            of_rounds,
        )
    )
    report.add(
        Figure(
            f"calls a second, {CALLS} always in flight",
            median(lambda one: one.calls_sustained / SECONDS),
            "1/s",
            of_rounds,
        )
    )


async def measure(server: LocalServer) -> list[Round]:
    """Alternates the three ways of calling."""
    rounds = []
    async with AsyncClient(server.address) as client:
        await client.embed(TEXTS)
        for _ in range(ROUNDS):
            started = time.perf_counter()
            one_by_one = [(await client.embed([text])).vectors[0] for text in TEXTS]
            alone = time.perf_counter() - started
            before = counts(server)
            started = time.perf_counter()
            answers = await asyncio.gather(*(client.embed([text]) for text in TEXTS))
            together = time.perf_counter() - started
            between = counts(server)
            calls = sum(await asyncio.gather(*(ask(client, text) for text in TEXTS)))
            after = counts(server)
            rounds.append(
                Round(
                    alone,
                    together,
                    between[0] - before[0],
                    between[1] - before[1],
                    float(np.abs(np.array([answer.vectors[0] for answer in answers]) - one_by_one).max()),
                    calls,
                    after[0] - between[0],
                )
            )
    return rounds


async def ask(client: AsyncClient, text: str) -> int:
    """Asks for one text again and again for SECONDS; returns how often."""
    calls = 0
    end = time.perf_counter() + SECONDS
    while time.perf_counter() < end:
        await client.embed([text])
        calls += 1
    return calls


def counts(server: LocalServer) -> tuple[int, int]:
    """Executions of the text tower so far, by ModelStatistics and by the histogram of batch sizes."""
    with InferenceServerClient(server.address) as triton:
        executed = int(triton.get_inference_statistics(MODEL).model_stats[0].execution_count)
    page = urllib.request.urlopen(f"http://{server.metrics_address}/metrics").read().decode()
    series = re.search(rf'lookwire_batch_rows_count{{model="{MODEL}",version="1"}} (\S+)', page)
    if series is None:
        raise LookupError(f"/metrics has no batch histogram of {MODEL}")
    return executed, int(float(series[1]))
