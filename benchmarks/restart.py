"""How long a start takes with a million items, from a generation of the index and from the database alone, and what they take in
memory.

    make bench NAME=restart

It writes about 5 GB and takes about 10 minutes. LOOKWIRE_BENCH_ITEMS=100000 makes it smaller.
"""

import os
import shutil
import statistics
import tempfile
import time
from pathlib import Path

from benchmarks.load.embeddings import Embeddings
from benchmarks.load.load import Load
from benchmarks.load.usage import resident_bytes
from benchmarks.report import Figure, Report
from benchmarks.search import FIELDS, wait_for_index, write
from lookwire import Client
from lookwire.local import LocalServer

REPOSITORY = Path("build/models/vit-b-32")
ENCODER = "fp32"
NAME = "large"
DIMENSION = 512
ITEMS = int(os.environ.get("LOOKWIRE_BENCH_ITEMS", "1000000"))


def run(report: Report) -> None:
    """Adds the figures of one run to the report."""
    world = Embeddings(DIMENSION)
    with tempfile.TemporaryDirectory(prefix="lookwire-restart-") as directory:
        server = LocalServer(REPOSITORY, directory, model_control_mode="explicit", load_model=ENCODER, show_log=True)
        server.start(300)
        empty = resident_bytes(server)
        with Load() as load, Client(server.address) as client:
            client.create_collection(NAME, FIELDS)
            rates = [
                write(load, server.address, NAME, part.vectors, prefix=f"part-{number}")
                for number, part in enumerate(world.chunks(ITEMS))
            ]
            built = time.monotonic()
            wait_for_index(client, NAME)
            built = time.monotonic() - built
        server.stop()
        report.add(
            Figure("written", statistics.median(rates), "items/s", "durable, through gRPC; median of parts of 10,000")
        )
        report.add(Figure("index ready after the last write", built, "s", "built at the lowest priority"))
        add_start(report, server, world, empty, "from the index", 10)
        shutil.rmtree(Path(directory) / "indexes")
        add_start(report, server, world, empty, "from the database alone", None)


def add_start(
    report: Report, server: LocalServer, world: Embeddings, empty: int, source: str, most: float | None
) -> None:
    """Starts the server, asks at once for the nearest items to one that there is, and looks at the memory."""
    sought = next(world.chunks(1)).vectors[0]
    started = time.monotonic()
    server.start(600)
    with Client(server.address) as client:
        found = client.search(NAME, vector=sought, top_k=1)
        seconds = time.monotonic() - started
        if found.hits[0].id != "part-0-0" or found.hits[0].score < 1 - 1e-5:
            raise RuntimeError(f"a wrong answer after the start: {found.hits}")
        for query in world.far_queries(64):
            client.search(NAME, vector=query, exact=True)
        figures = client.collection_statistics(NAME)
    if figures.item_count != ITEMS:
        raise RuntimeError(f"{figures.item_count} items after the start, not {ITEMS}")
    resident = (resident_bytes(server) - empty) / ITEMS
    server.stop()
    how = f"{ITEMS} items x {DIMENSION}, index {figures.kind} of generation {figures.generation}"
    report.add(Figure(f"start to first answer, {source}", seconds, "s", how, at_most=most))
    report.add(Figure(f"bytes an item, reported, {source}", figures.bytes_per_item, "bytes", how))
    report.add(Figure(f"bytes an item, resident, {source}", resident, "bytes", f"{how}; after 64 exact searches"))
    ratio = resident / figures.bytes_per_item
    report.add(Figure(f"resident / reported, {source}", ratio, "ratio", how, at_most=1.15))
