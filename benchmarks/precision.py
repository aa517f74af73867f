"""What the exports of one checkpoint in each precision cost and give: bytes, memory, and rows a second of both towers.

The encoders are ViT-B-32-quickgelu with random weights, exported by `make build/models/vit-b-32`. One server a precision,
all up at once and asked in turn, so that the machine's moods fall on all alike; one caller each, over loopback. bf16 is
measured where it has been exported: only CPUs with instructions for bfloat16 can do that.
"""

import statistics
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tritonclient.grpc import InferenceServerClient, InferInput
from tritonclient.utils import np_to_triton_dtype

from benchmarks.report import Figure, Report
from lookwire import Client
from lookwire.local import LocalServer

MODELS = Path("build/models/vit-b-32")
PRECISIONS = ("fp32", "fp16", "bf16", "int8")
"""fp32 first: all others are compared with it."""
TOWERS = ("image", "text")
BATCHES = (1, 16)
ROUNDS = 7
SECONDS = 1.0
TOKENS = 16
"""A product search of 3 to 12 words; the bucket that it is padded to."""

Array = NDArray[np.generic]


@dataclass(frozen=True, slots=True)
class Tower:
    """One tower of one precision, and the server that has it."""

    client: InferenceServerClient
    model: str

    def rows_per_second(self, rows: Array) -> float:
        """Asks for the rows in one request, again and again for SECONDS."""
        name = "pixels" if rows.dtype == np.uint8 else "input_ids"
        request = InferInput(name, rows.shape, np_to_triton_dtype(rows.dtype))
        request.set_data_from_numpy(rows)
        asked = 0
        started = time.perf_counter()
        while time.perf_counter() < started + SECONDS:
            self.client.infer(self.model, [request])
            asked += len(rows)
        return asked / (time.perf_counter() - started)


def run(report: Report) -> None:
    """Adds the figures of one run to the report."""
    inputs = {"image": pixels(max(BATCHES)), "text": tokens(max(BATCHES))}
    precisions = [precision for precision in PRECISIONS if precision != "bf16" or (MODELS / precision).is_dir()]
    with ExitStack() as stack:
        towers, servers = {}, {}
        for precision in precisions:
            server = LocalServer(MODELS, model_control_mode="explicit", load_model=precision)
            servers[precision] = stack.enter_context(server)
            client = stack.enter_context(InferenceServerClient(server.address))
            towers[precision] = {tower: Tower(client, f"{precision}-{tower}") for tower in TOWERS}
        for tower in TOWERS:
            for batch in BATCHES:
                add_speed(report, tower, batch, {p: towers[p][tower] for p in precisions}, inputs[tower][:batch])
        resident = {precision: resident_bytes(server) for precision, server in servers.items()}
        add_agreement(report, servers)
    for tower in TOWERS:
        add_sizes(report, f"{tower} tower on disk", {p: disk_bytes(MODELS / f"{p}-{tower}") for p in precisions})
    add_sizes(report, "resident memory of the server after all calls", resident)


def add_speed(report: Report, tower: str, batch: int, towers: dict[str, Tower], rows: Array) -> None:
    """Measures one tower at one batch size in all precisions, in alternating rounds."""
    for each in towers.values():
        each.rows_per_second(rows)
    speeds = [{precision: each.rows_per_second(rows) for precision, each in towers.items()} for _ in range(ROUNDS)]
    of_rounds = f"median of {ROUNDS} alternating rounds of {SECONDS:g} s, one caller"
    for precision in towers:
        absolute = statistics.median(speed[precision] for speed in speeds)
        report.add(Figure(f"{tower}, batch {batch}, {precision}", absolute, "rows/s", of_rounds))
    for precision in list(towers)[1:]:
        ratio = statistics.median(speed[precision] / speed["fp32"] for speed in speeds)
        bound = 2.2 if precision == "int8" and has_vnni() else None
        report.add(Figure(f"{tower}, batch {batch}, {precision} / fp32", ratio, "ratio", of_rounds, at_least=bound))


def add_sizes(report: Report, name: str, sizes: dict[str, int]) -> None:
    for precision, size in sizes.items():
        report.add(Figure(f"{name}, {precision}", size / 1e6, "MB", f"{size / sizes['fp32']:.2f} of fp32"))


def add_agreement(report: Report, servers: dict[str, LocalServer]) -> None:
    """How near the vectors of some texts are to those of fp32."""
    texts = [f"a {colour} {kind}" for colour in ("red", "green", "blue", "black") for kind in ("shirt", "dress", "hat")]
    vectors = {}
    for precision, server in servers.items():
        with Client(server.address) as client:
            vectors[precision] = client.embed(texts=texts).vectors
    for precision in list(servers)[1:]:
        cosine = float((vectors[precision] * vectors["fp32"]).sum(axis=1).min())
        report.add(Figure(f"cosine of {precision} and fp32", cosine, "cosine", f"smallest of {len(texts)} texts"))


def pixels(count: int) -> Array:
    return np.random.default_rng(0).integers(0, 256, (count, 224, 224, 3), dtype=np.uint8)


def tokens(count: int) -> Array:
    """Texts of TOKENS tokens between the begin (49406) and the end (49407) of CLIP's vocabulary."""
    ids = np.random.default_rng(0).integers(320, 40_000, (count, TOKENS), dtype=np.int32)
    ids[:, 0], ids[:, -1] = 49406, 49407
    return ids


def disk_bytes(model: Path) -> int:
    return sum(file.stat().st_size for file in model.rglob("*") if file.is_file())


def resident_bytes(server: LocalServer) -> int:
    """The server's resident set, as Linux tells it."""
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmRSS:"))


def has_vnni() -> bool:
    """Whether the processor multiplies bytes by AVX512-VNNI, for which the bound of int8 is meant."""
    return "avx512_vnni" in Path("/proc/cpuinfo").read_text()
