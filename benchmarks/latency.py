"""How long a request takes: alone, at 70 % of the capacity, and with a query that the server has seen before.

The encoder is ViT-B-32-quickgelu with random weights (`make build/models/vit-b-32`). Latencies at 70 % count from when a
request was due, whether or not it could be sent then.
"""

import statistics
from pathlib import Path

from benchmarks.bare import BareProcess
from benchmarks.bare.session import SERVER_THREADS
from benchmarks.load import collection
from benchmarks.load.arrivals import poisson
from benchmarks.load.calls import embed_texts, search_texts
from benchmarks.load.load import Load
from benchmarks.load.queries import product_searches, zipf_repeated
from benchmarks.report import Figure, Report
from lookwire import Client
from lookwire.local import LocalServer

MODELS = Path("build/models/vit-b-32")
ENCODER = "fp32"
DIMENSION = 512
TEXTS = 4096
ROUNDS = 5
LONE_SECONDS = 3.0
CAPACITY_SECONDS = 4.0
OPEN_SECONDS = 12.0
SHARE = 0.7
KNOWN = 512


def run(report: Report) -> None:
    """Adds the figures of one run to the report."""
    texts = product_searches(TEXTS)
    with Load() as load:
        server = LocalServer(MODELS, model_control_mode="explicit", load_model=ENCODER, embedding_cache_bytes=0)
        with BareProcess() as bare, server:
            add_lone(report, load, bare, server.address, texts)
            add_open(report, load, server.address, texts)
        with LocalServer(MODELS, model_control_mode="explicit", load_model=ENCODER) as caching:
            collection.fill(caching.address, DIMENSION)
            add_cached(report, load, caching.address)


def add_lone(report: Report, load: Load, bare: BareProcess, address: str, texts: list[str]) -> None:
    """One text RPC at a time, against tokenising and the session alone."""
    loop = bare.texts(MODELS / ENCODER, SERVER_THREADS, texts)
    calls = embed_texts(address, texts)
    rounds = []
    for _ in range(ROUNDS):
        served = load.closed(calls, 1, LONE_SECONDS)
        rounds.append((statistics.median(loop.lone_seconds(LONE_SECONDS)), served.latency(50)))
    how = f"median of {ROUNDS} alternating rounds of {LONE_SECONDS:g} s"
    ratio = statistics.median(served / alone for alone, served in rounds)
    report.add(Figure("lone text, p50 / tokenise + session", ratio, "ratio", how, at_most=1.2))
    for name, side in zip(("tokenise + session", "lone text"), zip(*rounds, strict=True), strict=True):
        report.add(Figure(f"{name}, p50", statistics.median(side) * 1e3, "ms", how))


def add_open(report: Report, load: Load, address: str, texts: list[str]) -> None:
    """Poisson arrivals at a share of what the server answered just before with 32 in flight."""
    calls = embed_texts(address, texts)
    ratios, capacities, p50, p99, late = [], [], [], [], []
    failures = 0
    for number in range(ROUNDS):
        capacities.append(load.throughput(calls, 32, CAPACITY_SECONDS))
        result = load.open(calls, poisson(SHARE * capacities[-1], OPEN_SECONDS, number))
        failures += result.failures
        p50.append(result.latency(50) * 1e3)
        p99.append(result.latency(99) * 1e3)
        late.append(result.lateness(99) * 1e3)
        ratios.append(p99[-1] / p50[-1])
    how = f"median of {ROUNDS} rounds of {OPEN_SECONDS:g} s, each after {CAPACITY_SECONDS:g} s at capacity"
    load_name = f"{SHARE:.0%} of capacity"
    report.add(Figure(f"{load_name}, p99 / p50", statistics.median(ratios), "ratio", how, at_most=4))
    report.add(Figure(f"{load_name}, failures", failures, "requests", "all rounds", at_most=0))
    report.add(Figure("capacity, 32 in flight", statistics.median(capacities), "1/s", how))
    report.add(Figure(f"{load_name}, p50", statistics.median(p50), "ms", how))
    report.add(Figure(f"{load_name}, p99", statistics.median(p99), "ms", how))
    report.add(Figure("requests sent late, p99", statistics.median(late), "ms", "the generator's share of the latency"))


def add_cached(report: Report, load: Load, address: str) -> None:
    """Searches that the server has seen before, against new ones; one at a time."""
    searches = product_searches((ROUNDS + 1) * TEXTS, seed=1)
    known = searches[:KNOWN]
    with Client(address) as client:
        client.embed(texts=known)
    cached = search_texts(address, collection.NAME, zipf_repeated(known, TEXTS))
    rounds = []
    for number in range(ROUNDS):
        new = search_texts(address, collection.NAME, searches[(number + 1) * TEXTS : (number + 2) * TEXTS])
        rounds.append((load.closed(cached, 1, LONE_SECONDS).latency(50), load.closed(new, 1, LONE_SECONDS).latency(50)))
    how = f"{collection.ITEMS} items; median of {ROUNDS} alternating rounds of {LONE_SECONDS:g} s"
    ratio = statistics.median(known / unknown for known, unknown in rounds)
    report.add(Figure("search, cached / new query, p50", ratio, "ratio", how, at_most=0.35))
    for name, side in zip(("cached", "new"), zip(*rounds, strict=True), strict=True):
        report.add(Figure(f"search, {name} query, p50", statistics.median(side) * 1e3, "ms", how))
