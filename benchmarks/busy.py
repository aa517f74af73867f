"""Searches while an index is built, and while items are written: by vector at a steady rate, against the same with nothing else.

The vectors are shaped like those of CLIP, 512 dimensions. Searches and writes come from a process each.
"""

import statistics
import threading
import time
from pathlib import Path

from benchmarks.load.arrivals import poisson
from benchmarks.load.calls import search_vectors, upsert_vectors
from benchmarks.load.embeddings import Embeddings
from benchmarks.load.load import WARM_UP, Load
from benchmarks.report import Figure, Report
from benchmarks.search import FIELDS, payloads, wait_for_index, write
from lookwire import Client, IndexSettings
from lookwire.local import LocalServer

REPOSITORY = Path("build/models/vit-b-32")
ENCODER = "fp32"
NAME = "busy"
DIMENSION = 512
ITEMS = 100_000
ROUNDS = 5
SECONDS = 10.0
SEARCHES_A_SECOND = 100.0
WRITES_A_SECOND = 20.0
ITEMS_OF_A_WRITE = 100
# The writes begin earlier than the searches, because reading their requests takes the process that sends them a while.
AHEAD = 1.5
# More than are written in a round.
WRITTEN = 30_000


def run(report: Report) -> None:
    """Adds the figures of one run to the report."""
    world = Embeddings(DIMENSION)
    vectors = world.items(ITEMS).vectors
    server = LocalServer(REPOSITORY, model_control_mode="explicit", load_model=ENCODER)
    with Load() as searching, Load() as writing, server, Client(server.address) as client:
        client.create_collection(NAME, FIELDS, index=IndexSettings("ivf"))
        write(searching, server.address, NAME, vectors)
        searches = search_vectors(server.address, NAME, world.far_queries(2_048))
        searching.closed(searches, 8, WARM_UP)
        wait_for_index(client, NAME)
        writes = upsert_vectors(server.address, NAME, vectors[:WRITTEN], payloads(WRITTEN), each=ITEMS_OF_A_WRITE)
        rounds = []
        failures = 0
        for number in range(ROUNDS):
            arrivals = poisson(SEARCHES_A_SECOND, SECONDS, number)
            alone = searching.open(searches, arrivals)
            building = Building(client)
            built = searching.open(searches, arrivals)
            builds = building.stop()
            wait_for_index(client, NAME)
            written = writing.start_open(writes, poisson(WRITES_A_SECOND, SECONDS + AHEAD, number))
            time.sleep(AHEAD)
            beside = searching.open(searches, arrivals)
            failures += alone.failures + built.failures + beside.failures + written.result().failures
            wait_for_index(client, NAME)
            rounds.append((alone.latency(99), built.latency(99), beside.latency(99), builds))
    how = f"{ITEMS} items, {SEARCHES_A_SECOND:g} searches a second; median of {ROUNDS} alternating rounds of {SECONDS:g} s"
    for name, column, most in (("during a build", 1, 3), ("during upserts of 2,000 items a second", 2, 2)):
        ratio = statistics.median(row[column] / row[0] for row in rounds)
        report.add(Figure(f"search p99, {name} / alone", ratio, "ratio", how, at_most=most))
    report.add(Figure("failures", failures, "requests", "all rounds", at_most=0))
    for name, column in (("alone", 0), ("during a build", 1), ("during upserts", 2)):
        report.add(Figure(f"search p99, {name}", statistics.median(row[column] for row in rounds) * 1e3, "ms", how))
    report.add(Figure("builds in a round", statistics.median(row[3] for row in rounds), "builds", how))


class Building:
    """Has the index built over and over, by asking for another recall each time, until it is told to stop."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._stopping = threading.Event()
        self._builds = 0
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def stop(self) -> int:
        """Returns how many builds were begun."""
        self._stopping.set()
        self._thread.join()
        return self._builds

    def _run(self) -> None:
        while not self._stopping.is_set():
            recall = 0.98 + 0.0001 * (self._builds % 2 + 1)
            self._client.update_collection(NAME, index=IndexSettings("ivf", recall))
            self._builds += 1
            while self._client.collection_statistics(NAME).building and not self._stopping.wait(0.1):
                pass
