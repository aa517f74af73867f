"""The speed of images, from JPEG to vector: fp32 and int8, against decoding and the graph in one process without a server.

The encoders are ViT-B-32-quickgelu with random weights (`make build/models/vit-b-32`), the images are photographs of 320 to
2,000 pixels (`make build/bench/photographs`). Servers, the process that asks them and that of the bare loop are up at once
and work in turn. The bare loop may use all cores in the way that it is fastest.
"""

import os
import statistics
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from benchmarks.bare import BareProcess
from benchmarks.bare.pytorch import PyTorch
from benchmarks.load.calls import embed_images
from benchmarks.load.load import Load
from benchmarks.load.photographs import read
from benchmarks.report import Figure, Report
from lookwire import Client
from lookwire.local import LocalServer

MODELS = Path("build/models/vit-b-32")
COMPARED = 16
IN_FLIGHT = 16
ROUNDS = 5
SECONDS = 6.0
PROBE_SECONDS = 3.0
BATCHES = (1, 4, 8)
CORES = len(os.sched_getaffinity(0))


def run(report: Report) -> None:
    """Adds the figures of one run to the report."""
    images = read()
    with ExitStack() as stack:
        load = stack.enter_context(Load())
        bare = stack.enter_context(BareProcess())
        pytorch = stack.enter_context(PyTorch())
        # One session with a thread for each core, or a session that the workers run side by side.
        loops = {threads: bare.images(MODELS / "fp32", threads, images) for threads in {1, CORES}}
        calls = {}
        for precision in ("fp32", "int8"):
            server = LocalServer(MODELS, model_control_mode="explicit", load_model=precision)
            address = stack.enter_context(server).address
            calls[precision] = embed_images(address, images)
            if precision == "fp32":
                with Client(address) as client:
                    served = client.embed(images=images[:COMPARED]).vectors
                cosine = float((served * loops[1].vectors(COMPARED)).sum(axis=1).min())
                how = f"smallest of {COMPARED}"
                report.add(Figure("cosine of served and bare, fp32", cosine, "cosine", how, at_least=0.99999))
        batches = {
            threads: max(BATCHES, key=lambda batch: loop.per_second(batch, CORES, PROBE_SECONDS))
            for threads, loop in loops.items()
        }
        sides: dict[str, Callable[[], float]] = {
            "bare fp32": lambda: max(loops[each].per_second(batches[each], CORES, SECONDS) for each in loops),
            "served fp32": lambda: load.throughput(calls["fp32"], IN_FLIGHT, SECONDS),
            "served int8": lambda: load.throughput(calls["int8"], IN_FLIGHT, SECONDS),
            "open_clip in PyTorch": lambda: pytorch.per_second("images", SECONDS),
        }
        rounds = [{name: side() for name, side in sides.items()} for _ in range(ROUNDS)]
        decoding = loops[1].decoded_per_second(PROBE_SECONDS)
    of_rounds = f"median of {ROUNDS} alternating rounds of {SECONDS:g} s"
    layouts = " or ".join(f"{batch} in a session of {threads} threads" for threads, batch in batches.items())
    limit = f"{CORES} workers decode and run batches of {layouts}, the faster in each round; {of_rounds}"
    for name, above, below, how, bound in (
        ("fp32 / limit", "served fp32", "bare fp32", limit, 0.9),
        ("int8 / fp32", "served int8", "served fp32", of_rounds, 2.2),
        ("fp32 / open_clip in PyTorch", "served fp32", "open_clip in PyTorch", of_rounds, None),
    ):
        ratio = statistics.median(one[above] / one[below] for one in rounds)
        report.add(Figure(name, ratio, "ratio", how, at_least=bound))
    for name in sides:
        report.add(Figure(name, statistics.median(one[name] for one in rounds), "images/s", of_rounds))
    report.add(Figure("decoding and resizing alone", decoding, "images/s", "one thread"))
