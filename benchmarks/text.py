"""The speed of texts: single-text and batched RPCs, fp32 and int8, against the bare loop of onnxruntime.

The encoders are ViT-B-32-quickgelu with random weights (`make build/models/vit-b-32`). Two servers, the process that asks
them, and the one of the bare loops are up at once and work in turn, so that the machine's moods fall on all alike. The
bare loops have as many threads as a server's session; nothing is kept between requests, and no two texts in flight are
equal.
"""

import statistics
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from benchmarks.bare import BareProcess
from benchmarks.bare.pytorch import PyTorch
from benchmarks.bare.session import SERVER_THREADS
from benchmarks.bare.texts import BareTexts
from benchmarks.load.calls import Calls, embed_texts
from benchmarks.load.load import Load
from benchmarks.load.queries import product_searches
from benchmarks.report import Figure, Report
from lookwire import Client
from lookwire.local import LocalServer

MODELS = Path("build/models/vit-b-32")
TEXTS = 4096
COMPARED = 64
ROUNDS = 5
SECONDS = 4.0
PROBE_SECONDS = 1.0
BATCHES = (1, 4, 8, 16, 32, 64)
EACH = 64
"""Texts of a batched RPC."""
BATCHED_IN_FLIGHT = 4


def run(report: Report) -> None:
    """Adds the figures of one run to the report."""
    texts = product_searches(TEXTS)
    with ExitStack() as stack:
        load = stack.enter_context(Load())
        bare = stack.enter_context(BareProcess())
        pytorch = stack.enter_context(PyTorch())
        addresses, loops = {}, {}
        for precision in ("fp32", "int8"):
            server = LocalServer(MODELS, model_control_mode="explicit", load_model=precision, embedding_cache_bytes=0)
            addresses[precision] = stack.enter_context(server).address
            loops[precision] = bare.texts(MODELS / precision, SERVER_THREADS, texts)
            add_agreement(report, precision, addresses[precision], loops[precision], texts[:COMPARED])
        measure(report, load, addresses, loops, pytorch, texts)


def add_agreement(report: Report, precision: str, address: str, loop: BareTexts, texts: list[str]) -> None:
    """How near the served vectors are to those of the bare loop padded to 77 tokens."""
    bare = loop.vectors(COMPARED)
    with Client(address) as client:
        served = client.embed(texts=texts).vectors
    cosine = float((served * bare).sum(axis=1).min())
    bound = 0.99999 if precision == "fp32" else None
    report.add(Figure(f"cosine of served and bare, {precision}", cosine, "cosine", f"smallest of {len(bare)}", bound))


def measure(
    report: Report,
    load: Load,
    addresses: dict[str, str],
    loops: dict[str, BareTexts],
    pytorch: PyTorch,
    texts: list[str],
) -> None:
    """Finds the bare loops' best batches, and alternates them with the servers."""
    fp32, int8 = loops["fp32"], loops["int8"]
    padded_batch = best(lambda batch: fp32.padded_per_second(batch, PROBE_SECONDS))
    cut_batch = best(lambda batch: fp32.cut_per_second(batch, PROBE_SECONDS))
    int8_batch = best(lambda batch: int8.cut_per_second(batch, PROBE_SECONDS))
    single = {precision: embed_texts(address, texts) for precision, address in addresses.items()}
    batched = embed_texts(addresses["fp32"], texts, each=EACH)

    def served(calls: Calls, in_flight: int, each: int = 1) -> Callable[[], float]:
        return lambda: each * load.throughput(calls, in_flight, SECONDS)

    sides: dict[str, Callable[[], float]] = {
        "bare fp32 padded to 77": lambda: fp32.padded_per_second(padded_batch, SECONDS),
        "served fp32, 32 in flight": served(single["fp32"], 32),
        "bare fp32 cut": lambda: fp32.cut_per_second(cut_batch, SECONDS),
        "served int8, 32 in flight": served(single["int8"], 32),
        "bare int8 cut": lambda: int8.cut_per_second(int8_batch, SECONDS),
        "served fp32, 64 in flight": served(single["fp32"], 64),
        f"served fp32, {EACH} a request": served(batched, BATCHED_IN_FLIGHT, EACH),
        "open_clip in PyTorch": lambda: pytorch.per_second("texts", SECONDS),
    }
    rounds = [{name: side() for name, side in sides.items()} for _ in range(ROUNDS)]
    of_rounds = f"median of {ROUNDS} alternating rounds of {SECONDS:g} s"

    def add_ratio(name: str, above: str, below: str, how: str, at_least: float | None = None) -> None:
        ratio = statistics.median(one[above] / one[below] for one in rounds)
        report.add(Figure(name, ratio, "ratio", f"{how}; {of_rounds}", at_least))

    padded = "bare fp32 padded to 77"
    add_ratio("fp32 / bare loop", "served fp32, 32 in flight", padded, f"padded to 77, batch {padded_batch}", 6.5)
    add_ratio("int8 / bare fp32 loop", "served int8, 32 in flight", padded, f"padded to 77, batch {padded_batch}", 14)
    add_ratio("fp32 / limit", "served fp32, 32 in flight", "bare fp32 cut", f"sorted, cut, batch {cut_batch}", 0.85)
    add_ratio("int8 / limit", "served int8, 32 in flight", "bare int8 cut", f"sorted, cut, batch {int8_batch}")
    add_ratio(
        "fp32 / open_clip in PyTorch",
        "served fp32, 32 in flight",
        "open_clip in PyTorch",
        "strings to vectors, batches of 32",
    )
    add_ratio(
        "batched / single RPCs",
        f"served fp32, {EACH} a request",
        "served fp32, 64 in flight",
        f"{BATCHED_IN_FLIGHT} requests of {EACH} in flight / 64 of one",
        1.1,
    )
    for name in sides:
        report.add(Figure(name, statistics.median(one[name] for one in rounds), "texts/s", of_rounds))


def best(speed: Callable[[int], float]) -> int:
    """The batch with the highest speed."""
    return max(BATCHES, key=speed)
