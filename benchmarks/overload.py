"""Three times the capacity for a minute: what is answered, what the refusals cost, and how soon all is as before.

The encoder is ViT-B-32-quickgelu with random weights (`make build/models/vit-b-32`). One open load: half the capacity, three
times the capacity, and half of it again. Each request has a deadline, after which its caller is gone. The capacity is measured
before and after: the machine is faster in some minutes than in others, and the answers are compared with the mean of the two.
"""

from concurrent.futures import Future, wait
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.load.arrivals import poisson
from benchmarks.load.calls import Calls, embed_texts
from benchmarks.load.load import Load
from benchmarks.load.queries import product_searches
from benchmarks.load.result import Result
from benchmarks.load.usage import cpu_seconds, executed_rows, resident_bytes
from benchmarks.report import Figure, Report
from lookwire.local import LocalServer

MODELS = Path("build/models/vit-b-32")
ENCODER = "fp32"
TOWER = f"{ENCODER}-text"
TEXTS = 8192
IN_FLIGHT = 32
CAPACITY_SECONDS = 10.0
DEADLINE = 1.0
TIMES = 3.0
NORMAL = 0.5
BEFORE, DURING, AFTER = 15.0, 60.0, 15.0
RECOVERY = 2.0
SETTLED = 2.0
"""Seconds after which the overload's queue is as long as it stays."""
LOOK_EVERY = 0.5


@dataclass(frozen=True, slots=True)
class Capacity:
    """What the server does with 32 in flight: requests a second, and its processor seconds for each."""

    rate: float
    cpu: float

    def mean(self, other: "Capacity") -> "Capacity":
        """That of two measurements."""
        return Capacity((self.rate + other.rate) / 2, (self.cpu + other.cpu) / 2)


@dataclass(frozen=True, slots=True)
class Usage:
    """Of the server's process while a load ran: the largest resident set in bytes, and all processor seconds."""

    resident: int
    cpu: float


def run(report: Report) -> None:
    """Adds the figures of one run to the report."""
    texts = product_searches(TEXTS)
    server = LocalServer(MODELS, model_control_mode="explicit", load_model=ENCODER, embedding_cache_bytes=0)
    with Load() as load, server:
        calls = embed_texts(server.address, texts, timeout=DEADLINE)
        capacity = measure_capacity(load, server, calls)
        normal = NORMAL * capacity.rate
        before = load.open(calls, poisson(normal, BEFORE, 0))
        resident = resident_bytes(server)
        executed = executed_rows(server, TOWER)
        # Without a pause between: what is slow after the overload is its fault.
        over = poisson(TIMES * capacity.rate, DURING, 1)
        arrivals = np.concatenate([over, DURING + poisson(normal, AFTER, 2)])
        result, usage = watch(server, load.start_open(calls, arrivals))
        executed = executed_rows(server, TOWER) - executed
        capacity = capacity.mean(measure_capacity(load, server, calls))
    add_figures(report, capacity, before, result, usage, resident, executed)


def measure_capacity(load: Load, server: LocalServer, calls: Calls) -> Capacity:
    """The rate with so many in flight."""
    load.throughput(calls, IN_FLIGHT, 1.0)
    before = cpu_seconds(server)
    result = load.closed(calls, IN_FLIGHT, CAPACITY_SECONDS)
    used = cpu_seconds(server) - before
    return Capacity(result.throughput(1.0, CAPACITY_SECONDS), used / len(result.codes))


def watch(server: LocalServer, load: "Future[Result]") -> tuple[Result, Usage]:
    """Looks at the server until the load has ended."""
    began, largest = cpu_seconds(server), 0
    while not load.done():
        largest = max(largest, resident_bytes(server))
        wait([load], LOOK_EVERY)
    return load.result(), Usage(largest, cpu_seconds(server) - began)


def add_figures(
    report: Report,
    capacity: Capacity,
    before: Result,
    result: Result,
    usage: Usage,
    resident: int,
    executed: int,
) -> None:
    over = result.scheduled_within(0, DURING)
    rate = len(over.codes) / DURING
    offered = (
        f"{rate:.0f} requests a second, {TIMES:g} times the first capacity, for {DURING:g} s, deadline {DEADLINE:g} s"
    )
    counts = ", ".join(f"{count} {code}" for code, count in sorted(over.counts.items()))
    goodput = result.goodput(SETTLED, DURING) / capacity.rate
    report.add(Figure("goodput / capacity", goodput, "ratio", f"{offered}: {counts}", at_least=0.9))
    refused = ~np.isin(over.codes, ("OK", "DEADLINE_EXCEEDED"))
    proper = refused & (over.codes == "RESOURCE_EXHAUSTED") & over.retry_told
    improper = int(refused.sum() - proper.sum())
    how = "neither answered, nor late, nor RESOURCE_EXHAUSTED with RetryInfo"
    report.add(Figure("refused otherwise than told", improper, "requests", how, at_most=0))
    report.add(Figure("proper refusals", int(proper.sum()), "requests", "RESOURCE_EXHAUSTED with RetryInfo"))
    late = over.counts.get("DEADLINE_EXCEEDED", 0)
    report.add(Figure("ended by their deadline", late / len(over.codes), "ratio", "of the requests offered"))
    answered = len(result.answered.codes)
    turned_away = result.failures
    cost = (usage.cpu - answered * capacity.cpu) / max(1, turned_away)
    how = "the server's less what its answers cost at capacity; of each request not answered"
    report.add(Figure("processor time of a refusal", cost * 1e3, "ms", how, at_most=1))
    how = "texts executed less those answered in time / executed"
    report.add(Figure("executed for nobody", (executed - answered) / executed, "ratio", how, at_most=0.01))
    how = f"largest resident set during the overload / {resident >> 20} MiB before"
    report.add(Figure("memory", usage.resident / resident, "ratio", how, at_most=1.2))
    settled = result.scheduled_within(DURING + RECOVERY, DURING + AFTER)
    how = f"{NORMAL:.0%} of capacity: p99 from {RECOVERY:g} s after the overload / before it"
    report.add(Figure("latency after", settled.latency(99) / before.latency(99), "ratio", how, at_most=1.5))
    report.add(Figure("failures after", settled.failures, "requests", how.partition(":")[0], at_most=0))
    for name, part in (("before", before), ("during", over), ("after", settled)):
        report.add(Figure(f"p50 {name}", part.latency(50) * 1e3, "ms", "of those answered"))
        report.add(Figure(f"p99 {name}", part.latency(99) * 1e3, "ms", "of those answered"))
    report.add(
        Figure("capacity", capacity.rate, "1/s", f"{IN_FLIGHT} in flight for {CAPACITY_SECONDS:g} s, before and after")
    )
