"""Searches during an import: text searches at a steady rate, alone and while images are imported at full speed.

The encoder is ViT-B-32-quickgelu with random weights (`make build/models/vit-b-32`), the images are photographs of 320 to
2,000 pixels (`make build/bench/photographs`). Searches and import come from a process each; no query is asked twice.
"""

import statistics
import time
from dataclasses import dataclass
from pathlib import Path

from benchmarks.load import collection
from benchmarks.load.arrivals import poisson
from benchmarks.load.calls import Calls, search_texts, upsert_images
from benchmarks.load.load import WARM_UP, Load
from benchmarks.load.photographs import read
from benchmarks.load.queries import product_searches
from benchmarks.load.result import Result, Seconds
from benchmarks.load.usage import cpu_seconds
from benchmarks.report import Figure, Report
from lookwire.local import LocalServer

MODELS = Path("build/models/vit-b-32")
ENCODER = "fp32"
DIMENSION = 512
ROUNDS = 5
SECONDS = 12.0
SEARCHES_A_SECOND = 15.0
IMAGES_OF_A_REQUEST = 16
IMPORTS_IN_FLIGHT = 4


@dataclass(frozen=True, slots=True)
class Round:
    """One round: p99 of the searches in seconds and images a second, each alone and both at once.

    `import_without_searches` is the speed alone less what the searches cost: their share of the processor time that the
    import takes.
    """

    search_alone: float
    search_beside: float
    import_alone: float
    import_beside: float
    import_without_searches: float
    failures: int


def run(report: Report) -> None:
    """Adds the figures of one run to the report."""
    images = read()
    searches = product_searches(int(SEARCHES_A_SECOND * SECONDS * 2))
    server = LocalServer(MODELS, model_control_mode="explicit", load_model=ENCODER, embedding_cache_bytes=0)
    with Load() as searching, Load() as importing, server:
        collection.fill(server.address, DIMENSION)
        search = search_texts(server.address, collection.NAME, searches)
        imports = upsert_images(server.address, collection.NAME, images, each=IMAGES_OF_A_REQUEST)
        searching.closed(search, 1, WARM_UP)
        importing.closed(imports, 1, WARM_UP)
        rounds = [
            measure(server, searching, importing, search, imports, poisson(SEARCHES_A_SECOND, SECONDS, number))
            for number in range(ROUNDS)
        ]
    of_rounds = f"median of {ROUNDS} alternating rounds of {SECONDS:g} s"
    rate = f"{SEARCHES_A_SECOND:g} searches a second; {of_rounds}"
    kept = f"images a second beside the searches / alone less their processor time; {of_rounds}"

    def add(name: str, values: list[float], unit: str, how: str, least: float | None, most: float | None) -> None:
        report.add(Figure(name, statistics.median(values), unit, how, at_least=least, at_most=most))

    add("search p99, during / alone", [one.search_beside / one.search_alone for one in rounds], "ratio", rate, None, 3)
    shares = [one.import_beside / one.import_without_searches for one in rounds]
    add("import, share of its speed kept", shares, "ratio", kept, 0.8, None)
    add("failures", [sum(one.failures for one in rounds)], "requests", "all rounds", None, 0)
    add("search p99 alone", [one.search_alone * 1e3 for one in rounds], "ms", rate, None, None)
    add("search p99 during the import", [one.search_beside * 1e3 for one in rounds], "ms", rate, None, None)
    add("import alone", [one.import_alone for one in rounds], "images/s", of_rounds, None, None)
    add("import beside the searches", [one.import_beside for one in rounds], "images/s", of_rounds, None, None)


def measure(
    server: LocalServer, searching: Load, importing: Load, search: Calls, imports: Calls, arrivals: Seconds
) -> Round:
    """Searches alone, the import alone, and both."""
    usage = cpu_seconds(server)
    search_alone = searching.open(search, arrivals)
    search_cpu = (cpu_seconds(server) - usage) / SECONDS

    usage = cpu_seconds(server)
    import_alone = importing.closed(imports, IMPORTS_IN_FLIGHT, WARM_UP + SECONDS)
    import_cpu = (cpu_seconds(server) - usage) / import_alone.finished.max()

    importing_now = importing.start_closed(imports, IMPORTS_IN_FLIGHT, WARM_UP + SECONDS)
    time.sleep(WARM_UP)
    search_beside = searching.open(search, arrivals)
    import_beside = importing_now.result()
    return Round(
        search_alone.latency(99),
        search_beside.latency(99),
        images_per_second(import_alone),
        images_per_second(import_beside),
        images_per_second(import_alone) * (1 - search_cpu / import_cpu),
        sum(result.failures for result in (search_alone, search_beside, import_alone, import_beside)),
    )


def images_per_second(imported: Result) -> float:
    """From the first request to the end of the last: requests end many at once, and a window has a batch more or less."""
    return IMAGES_OF_A_REQUEST * len(imported.codes) / float(imported.finished.max())
