"""How fast searches and writes are, against FAISS alone, the server's dispatcher alone, and encoding alone.

The vectors are shaped like those of CLIP (`benchmarks/load/embeddings.py`), 512 dimensions. The encoder is ViT-B-32-quickgelu
with random weights (`make build/models/vit-b-32`); no query is asked twice.
"""

import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.bare.vectors import BareDispatcher, DirectFaiss
from benchmarks.load.calls import embed_texts, search_texts, search_vectors, upsert_vectors
from benchmarks.load.embeddings import Embeddings
from benchmarks.load.load import WARM_UP, Load
from benchmarks.load.queries import product_searches
from benchmarks.report import Figure, Report
from lookwire import Client, IndexSettings
from lookwire.local import LocalServer
from lookwire.v1 import filter_pb2

MODELS = Path("build/models/vit-b-32")
ENCODER = "fp32"
DIMENSION = 512
ITEMS = 100_000
FEW_ITEMS = 10_000
CLIENTS = 32
ROUNDS = 5
SECONDS = 4.0
ITEMS_OF_A_REQUEST = 500
WRITERS = 4
FIELDS = {"number": "int64", "tenth": "int64"}
# As many as the server gives a search where it is told nothing.
SEARCH_THREADS = len(os.sched_getaffinity(0))

Vectors = NDArray[np.float32]


def run(report: Report) -> None:
    """Adds the figures of one run to the report."""
    world = Embeddings(DIMENSION)
    vectors = world.items(ITEMS).vectors
    queries = world.far_queries(2_048)
    server = LocalServer(MODELS, model_control_mode="explicit", load_model=ENCODER, embedding_cache_bytes=0)
    with Load() as load, server, Client(server.address) as client:
        add_writes(report, load, client, server.address, vectors)
        client.create_collection("exact", FIELDS, index=IndexSettings("exact"))
        write(load, server.address, "exact", vectors)
        wait_for_index(client, "exact")
        add_exact(report, load, server.address, vectors, queries)
        client.create_collection("few", FIELDS)
        write(load, server.address, "few", vectors[:FEW_ITEMS])
        client.create_collection("planned", FIELDS)
        write(load, server.address, "planned", vectors)
        load.closed(search_vectors(server.address, "planned", queries), CLIENTS, WARM_UP)
        for name in ("few", "planned"):
            wait_for_index(client, name)
        add_texts(report, load, client, server.address)


def write(load: Load, address: str, collection: str, vectors: Vectors, *, prefix: str = "item") -> float:
    """Writes all vectors once with the values of FIELDS; returns items a second."""
    return write_items(load, address, collection, vectors, payloads(len(vectors)), prefix=prefix)


def write_items(
    load: Load,
    address: str,
    collection: str,
    vectors: Vectors,
    payloads: Sequence[Mapping[str, object]],
    *,
    prefix: str = "item",
) -> float:
    """Writes all vectors once with their payloads; returns items a second."""
    calls = upsert_vectors(address, collection, vectors, payloads, each=ITEMS_OF_A_REQUEST, prefix=prefix)
    started = time.monotonic()
    result = load.each_once(calls, WRITERS)
    if result.failures:
        raise RuntimeError(f"writes failed: {result.counts}")
    return len(vectors) / (time.monotonic() - started)


def payloads(count: int) -> list[dict[str, int]]:
    """Values of FIELDS."""
    return [{"number": number, "tenth": number % 10} for number in range(count)]


def wait_for_index(client: Client, collection: str) -> None:
    """Returns when nothing is being built and nearly all items are indexed."""
    while True:
        statistics = client.collection_statistics(collection)
        if not statistics.building and statistics.indexed_count >= 0.8 * statistics.item_count:
            return
        time.sleep(0.2)


def add_writes(report: Report, load: Load, client: Client, address: str, vectors: Vectors) -> None:
    """Vectors through gRPC, on disk and visible before the reply."""
    rates = []
    for number in range(3):
        client.create_collection(f"written-{number}", FIELDS, index=IndexSettings("exact"))
        rates.append(write(load, address, f"written-{number}", vectors[:20_000]))
        client.delete_collection(f"written-{number}")
    how = f"{ITEMS_OF_A_REQUEST} items a request, {WRITERS} in flight, two declared fields; median of 3"
    report.add(Figure("vectors written", statistics.median(rates), "items/s", how, at_least=10_000))


def add_exact(report: Report, load: Load, address: str, vectors: Vectors, queries: Vectors) -> None:
    """An exact index, by vector, with 32 clients."""
    calls = search_vectors(address, "exact", queries)
    tenth = filter_pb2.Filter(
        equals=filter_pb2.EqualsCondition(field="tenth", value=filter_pb2.FieldValue(int64_value=3))
    )
    filtered = search_vectors(address, "exact", queries, tenth)
    faiss = DirectFaiss(vectors)
    dispatcher = BareDispatcher(vectors, SEARCH_THREADS)
    rounds = []
    for _ in range(ROUNDS):
        result = load.closed(calls, CLIENTS, WARM_UP + SECONDS)
        if result.failures:
            raise RuntimeError(f"searches failed: {result.counts}")
        served = result.throughput(WARM_UP, WARM_UP + SECONDS)
        p99 = result.scheduled_within(WARM_UP, WARM_UP + SECONDS).latency(99)
        rounds.append(
            (
                served,
                p99,
                faiss.run(queries, CLIENTS, SECONDS),
                dispatcher.run(queries, CLIENTS, SECONDS),
                load.throughput(filtered, CLIENTS, SECONDS),
            )
        )
    how = f"{ITEMS} items, exact, {CLIENTS} clients; median of {ROUNDS} alternating rounds of {SECONDS:g} s"

    def add(
        name: str, values: Sequence[float], unit: str, least: float | None = None, most: float | None = None
    ) -> None:
        report.add(Figure(name, statistics.median(values), unit, how, at_least=least, at_most=most))

    add("p99 / direct FAISS calls", [p99 / direct.p99 for _, p99, direct, _, _ in rounds], "ratio", most=1 / 3)
    add("throughput / bare dispatcher", [served / bare.throughput for served, _, _, bare, _ in rounds], "ratio", 0.7)
    add("throughput / direct FAISS calls", [served / direct.throughput for served, _, direct, _, _ in rounds], "ratio")
    add("filtered (10 %) / unfiltered", [filtered / served for served, _, _, _, filtered in rounds], "ratio", 0.5)
    add("exact, served", [served for served, *_ in rounds], "1/s")
    add("exact, served, p99", [p99 * 1e3 for _, p99, *_ in rounds], "ms")
    add("direct FAISS calls", [direct.throughput for _, _, direct, _, _ in rounds], "1/s")
    add("direct FAISS calls, p99", [direct.p99 * 1e3 for _, _, direct, _, _ in rounds], "ms")
    add("bare dispatcher", [bare.throughput for _, _, _, bare, _ in rounds], "1/s")


def add_texts(report: Report, load: Load, client: Client, address: str) -> None:
    """From a text to results with payloads, against embedding the text alone."""
    texts = product_searches(20_000)
    measured: list[Callable[[], float]] = [
        lambda: load.throughput(embed_texts(address, texts), CLIENTS, SECONDS),
        lambda: load.throughput(search_texts(address, "few", texts), CLIENTS, SECONDS),
        lambda: load.throughput(search_texts(address, "planned", texts), CLIENTS, SECONDS),
    ]
    rounds = [[measure() for measure in measured] for _ in range(ROUNDS)]
    kind = client.collection_statistics("planned").kind
    how = f"{CLIENTS} clients; median of {ROUNDS} alternating rounds of {SECONDS:g} s"
    for name, column, least in ((f"{FEW_ITEMS} items", 1, 0.9), (f"{ITEMS} items, {kind}", 2, 0.75)):
        ratio = statistics.median(row[column] / row[0] for row in rounds)
        report.add(Figure(f"text to results / embedding, {name}", ratio, "ratio", how, at_least=least))
    report.add(Figure("embedding alone", statistics.median(row[0] for row in rounds), "texts/s", how))
