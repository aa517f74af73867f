"""Runs Triton's perf_analyzer against this server, with a fixed number of requests in flight and at a fixed rate.

    python -m tests.compatibility.perf_analyzer

The program comes out of the tritonclient 2.50.0 wheel: later wheels want a newer C library than Debian 12 has, or have
no program. It wants libcudart (another wheel; no GPU) and Debian's libb64-0d. Both wheels are fetched into
build/perf_analyzer once, where the output of each run is left too. A run passes if perf_analyzer ends with status 0 and
prints the server's share of the time. An ensemble has no queue of its own: its line has the time of all its steps as
compute, and its log that of each step.
"""

import argparse
import base64
import csv
import ctypes
import io
import json
import re
import shutil
import struct
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from PIL import Image
from rich.console import Console
from rich.table import Table

from lookwire.local import LocalServer

FOLDER = Path("build/perf_analyzer")
WHEELS = {
    "tritonclient==2.50.0": ("manylinux1_x86_64", "tritonclient-2.50.0-*.whl", "/bin/perf_analyzer"),
    "nvidia-cuda-runtime-cu12==12.9.79": ("manylinux2014_x86_64", "nvidia_cuda_runtime_cu12-*.whl", "/libcudart.so.12"),
}
MODES = (
    ("4 in flight", ("--concurrency-range", "4", "--async")),
    ("100 a second", ("--request-rate-range", "100", "--request-distribution", "poisson")),
)
CONFIGS = {
    "identity": """
        backend: "identity"
        max_batch_size: 16
        input [ { name: "INPUT0" data_type: TYPE_INT32 dims: [ 16 ] } ]
        output [ { name: "OUTPUT0" data_type: TYPE_INT32 dims: [ 16 ] } ]
        dynamic_batching { }
        """,
    "ensemble": """
        platform: "ensemble"
        max_batch_size: 16
        input [ { name: "ids" data_type: TYPE_INT32 dims: [ 16 ] } ]
        output [ { name: "embedding" data_type: TYPE_FP32 dims: [ 64 ] } ]
        ensemble_scheduling { step [
          { model_name: "identity" model_version: -1
            input_map { key: "INPUT0" value: "ids" } output_map { key: "OUTPUT0" value: "same" } },
          { model_name: "garments-text" model_version: -1
            input_map { key: "input_ids" value: "same" } output_map { key: "embedding" value: "embedding" } }
        ] }
        """,
}
TOKENS = [49406, 736, 2225, 49407, *[0] * 12]


@dataclass(frozen=True, slots=True)
class Measured:
    """One run's row of perf_analyzer's own table; `fault` says why there is none."""

    model: str
    mode: str
    row: dict[str, str]
    fault: str = ""

    def cells(self) -> list[str]:
        names = ("Inferences/Second", "p50 latency", "p99 latency", "Server Queue", "Server Compute Infer")
        return [self.model, self.mode, *(self.row.get(name, "") for name in names), self.fault or "pass"]


def inputs() -> dict[str, dict[str, object]]:
    """What is sent to each model, as perf_analyzer's --input-data wants it."""
    picture = io.BytesIO()
    Image.effect_mandelbrot((200, 300), (-2, -1.2, 1, 1.2), 50).convert("RGB").save(picture, "JPEG")
    # b64 is a tensor's bytes as they stand: with the length that precedes each element of BYTES.
    element = struct.pack("<I", picture.tell()) + picture.getvalue()
    return {
        "identity": {"INPUT0": {"content": list(range(16)), "shape": [16]}},
        "ensemble": {"ids": {"content": TOKENS, "shape": [16]}},
        "garments-text": {"input_ids": {"content": TOKENS[:4], "shape": [4]}},
        "garments-image": {"pixels": {"content": [7] * (64 * 64 * 3), "shape": [64, 64, 3]}},
        "garments with a text": {"TEXT": {"content": ["a red coat"], "shape": [1]}},
        "garments with an image": {"IMAGE": {"b64": base64.b64encode(element).decode()}},
    }


def program() -> Path:
    """perf_analyzer and the library it wants, fetched unless they are there; exits with what to install otherwise."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    for requirement, (platform, pattern, member) in WHEELS.items():
        if not (FOLDER / Path(member).name).exists():
            pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
            subprocess.run([*pip, "--platform", platform, "--dest", FOLDER, requirement], check=True)
            with zipfile.ZipFile(next(FOLDER.glob(pattern))) as wheel:
                inside = next(name for name in wheel.namelist() if name.endswith(member))
                (FOLDER / Path(member).name).write_bytes(wheel.read(inside))
    try:
        ctypes.CDLL("libb64.so.0d")
    except OSError:
        sys.exit("perf_analyzer wants libb64.so.0d: install Debian's libb64-0d")
    path = (FOLDER / "perf_analyzer").resolve()
    path.chmod(0o755)
    return path


def measure(path: Path, server: LocalServer, name: str, mode: tuple[str, tuple[str, ...]], folder: Path) -> Measured:
    """One run of about four seconds."""
    model = name.split()[0]
    data, table = folder / "data.json", folder / "table.csv"
    data.write_text(json.dumps({"data": [inputs()[name]]}))
    table.unlink(missing_ok=True)
    # Three windows, and no demand that they agree: this is no benchmark.
    command: list[str | Path] = [
        path,
        "-m",
        model,
        "-i",
        "grpc",
        "-u",
        server.address,
        "-b",
        "1",
        "--input-data",
        data,
        "-f",
        table,
    ]
    window = ["--measurement-interval", "1000", "--stability-percentage", "999", "--verbose-csv"]
    done = subprocess.run(
        [*command, *window, *mode[1]],
        env={"LD_LIBRARY_PATH": str(path.parent)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=60,
    )
    (FOLDER / f"{name}, {mode[0]}.log".replace(" ", "_")).write_text(done.stdout)
    if done.returncode:
        last = (done.stdout.strip().splitlines() or ["no output"])[-1]
        return Measured(name, mode[0], {}, f"status {done.returncode}: {last}")
    with table.open(newline="") as lines:
        row = next(csv.DictReader(lines))
    share = re.search(r"Avg request latency: \d+ usec \(overhead .*queue \d+ usec \+ compute", done.stdout)
    return Measured(name, mode[0], row, "" if share else "no share of the server in the output")


def main() -> int:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    path = program()
    with tempfile.TemporaryDirectory(prefix="lookwire-perf-analyzer-") as directory:
        repository = Path(directory, "models")
        shutil.copytree("model_repo", repository)
        for name, config in CONFIGS.items():
            (repository / name / "1").mkdir(parents=True)
            (repository / name / "config.pbtxt").write_text(config)
        with LocalServer(repository) as server:
            results = [measure(path, server, name, mode, Path(directory)) for name in inputs() for mode in MODES]
    table = Table(
        "model",
        "mode",
        "infer/s",
        "p50 us",
        "p99 us",
        "server queue us",
        "server compute us",
        "verdict",
        title="perf_analyzer",
    )
    for result in results:
        table.add_row(*result.cells())
    Console(width=None if sys.stdout.isatty() else 200).print(table)
    return int(any(result.fault for result in results))


if __name__ == "__main__":
    sys.exit(main())
