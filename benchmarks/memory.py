"""The server's memory under mixed load: it may not grow after the first 20,000 of 200,000 requests.

Two processes of eight callers each ask for tensors of random shapes and sizes, texts, images, ensembles, and things that
are refused. Every answer and every refusal is checked.
"""

import asyncio
import multiprocessing
import random
import re
import shutil
import tempfile
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tritonclient.grpc import InferInput
from tritonclient.grpc.aio import InferenceServerClient
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from benchmarks.report import Figure, Report
from lookwire.local import LocalServer

FIRST = 20_000
REST = 180_000
PROCESSES = 2
CALLERS = 8
MODELS = {
    "numbers": """
        backend: "identity"
        max_batch_size: 16
        input [ { name: "INPUT0" data_type: TYPE_FP32 dims: [ -1 ] } ]
        output [ { name: "OUTPUT0" data_type: TYPE_FP32 dims: [ -1 ] } ]
        dynamic_batching { }
        """,
    "words": """
        backend: "identity"
        max_batch_size: 16
        input [ { name: "INPUT0" data_type: TYPE_STRING dims: [ -1 ] } ]
        output [ { name: "OUTPUT0" data_type: TYPE_STRING dims: [ -1 ] } ]
        dynamic_batching { }
        """,
    "twice": """
        platform: "ensemble"
        max_batch_size: 16
        input [ { name: "IN" data_type: TYPE_FP32 dims: [ -1 ] } ]
        output [ { name: "OUT" data_type: TYPE_FP32 dims: [ -1 ] } ]
        ensemble_scheduling { step [
          { model_name: "numbers" model_version: -1
            input_map { key: "INPUT0" value: "IN" } output_map { key: "OUTPUT0" value: "between" } },
          { model_name: "numbers" model_version: -1
            input_map { key: "INPUT0" value: "between" } output_map { key: "OUTPUT0" value: "OUT" } }
        ] }
        """,
}
Array = NDArray[np.generic]


@dataclass(frozen=True, slots=True)
class Call:
    """One request and its answer: the status that refuses it, or the output, or the shape of one that is not known."""

    model: str
    inputs: dict[str, Array]
    output: str = ""
    expected: Array | tuple[int, ...] = ()
    refusal: str = ""


def run(report: Report) -> None:
    """Adds the figures of one run to the report."""
    with tempfile.TemporaryDirectory(prefix="lookwire-memory-") as directory:
        repository = Path(directory, "models")
        shutil.copytree("model_repo", repository)
        for name, config in MODELS.items():
            (repository / name / "1").mkdir(parents=True)
            (repository / name / "config.pbtxt").write_text(config)
        # A cache of vectors fills, and would be taken for a leak.
        with LocalServer(repository, embedding_cache_bytes=0) as server:
            measure(report, server)


def measure(report: Report, server: LocalServer) -> None:
    """Sends the first requests and the rest, and reads the server's memory after each."""
    answered: Counter[str] = Counter()
    sizes = [resident(server)]
    started = time.perf_counter()
    for number, requests in enumerate((FIRST, REST)):
        seeds = range(number * PROCESSES, (number + 1) * PROCESSES)
        shares = [requests // PROCESSES] * PROCESSES
        with ProcessPoolExecutor(PROCESSES, multiprocessing.get_context("spawn")) as pool:
            for share in pool.map(send, [server.address] * PROCESSES, seeds, shares):
                answered += share
        sizes.append(resident(server))
    seconds = time.perf_counter() - started
    mixture = ", ".join(f"{count} {kind}" for kind, count in sorted(answered.items()))
    after = f"after {FIRST + REST} requests / after {FIRST}"
    report.add(Figure("resident memory", sizes[2] / sizes[1], "ratio", after, at_most=1.05))
    for moment, size in zip(("at start", f"after {FIRST}", f"after {FIRST + REST}"), sizes, strict=True):
        report.add(Figure(f"resident memory {moment}", size / (1 << 20), "MiB", "VmRSS of the server's process"))
    wrong = answered["wrong"] + FIRST + REST - answered.total()
    report.add(Figure("answers other than expected", wrong, "requests", mixture, at_most=0))
    report.add(
        Figure("requests a second", (FIRST + REST) / seconds, "1/s", f"{PROCESSES} processes, {CALLERS} callers each")
    )


def resident(server: LocalServer) -> int:
    """Resident memory of the server's process, in bytes."""
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    found = re.search(r"VmRSS:\s+(\d+) kB", status)
    if found is None:
        raise LookupError("the kernel tells no VmRSS of the server's process: it has ended")
    return int(found[1]) * 1024


def send(address: str, seed: int, requests: int) -> Counter[str]:
    """One process's share of the requests; returns how many of which kind were answered as expected."""
    return asyncio.run(send_all(address, seed, requests))


async def send_all(address: str, seed: int, requests: int) -> Counter[str]:
    chance = random.Random(seed)
    left = iter(range(requests))
    answered: Counter[str] = Counter()

    async def caller(client: InferenceServerClient) -> None:
        for _ in left:
            call = draw(chance)
            fault = await differs(client, call)
            answered["wrong" if fault else call.refusal or call.model] += 1
            if fault:
                print(f"{call.model} of {[array.shape for array in call.inputs.values()]}: {fault}")

    async with InferenceServerClient(address) as client:
        await asyncio.gather(*(caller(client) for _ in range(CALLERS)))
    return answered


async def differs(client: InferenceServerClient, call: Call) -> str:
    """Sends a call; says in what the answer differs from what is expected, "" in nothing."""
    tensors = []
    for name, array in call.inputs.items():
        tensors.append(InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype)))
        tensors[-1].set_data_from_numpy(array)
    try:
        answer = (await client.infer(call.model, tensors)).as_numpy(call.output)
    except InferenceServerException as error:
        return "" if error.status() == f"StatusCode.{call.refusal}" else f"{error}, expected {call.refusal or 'OK'}"
    if call.refusal:
        return f"OK, expected {call.refusal}"
    if isinstance(call.expected, tuple):
        return "" if answer.shape == call.expected else f"shape {answer.shape}, expected {call.expected}"
    return "" if np.array_equal(answer, call.expected) else "another tensor than was sent"


def draw(chance: random.Random) -> Call:
    """A random call; sizes are spread evenly over their orders of magnitude."""
    rows = min(16, round(2 ** chance.uniform(0, 4)))
    length = round(2 ** chance.uniform(0, 12))
    numbers = np.full((rows, length), chance.random(), np.float32)
    kind = chance.choices(
        ("numbers", "twice", "words", "text", "image", "encoder", "refused"), (30, 15, 15, 20, 2, 8, 10)
    )
    match kind[0]:
        case "numbers":
            return Call("numbers", {"INPUT0": numbers}, "OUTPUT0", numbers)
        case "twice":
            return Call("twice", {"IN": numbers}, "OUT", numbers)
        case "words":
            words = np.array([[chance.randbytes(min(length, 256))] * chance.randint(1, 8)] * rows, object)
            return Call("words", {"INPUT0": words}, "OUTPUT0", words)
        case "text":
            # As tokenised: a text is what lies between its first and its last token.
            ids = np.full((min(rows, 4), chance.randint(3, 77)), chance.randint(1, 400), np.int32)
            return Call("garments-text", {"input_ids": ids}, "embedding", (len(ids), 64))
        case "image":
            pixels = np.full((1, 64, 64, 3), chance.randint(0, 255), np.uint8)
            return Call("garments-image", {"pixels": pixels}, "embedding", (1, 64))
        case "encoder":
            text = f"a red coat, number {chance.randint(0, 1 << 40)}".encode()
            return Call(
                "garments", {"TEXT": np.array([[text]] * min(rows, 4), object)}, "EMBEDDING", (min(rows, 4), 64)
            )
    return chance.choice(
        (
            Call(f"absent-{chance.randint(0, 1 << 40)}", {"INPUT0": numbers}, refusal="NOT_FOUND"),
            Call("numbers", {f"INPUT{chance.randint(1, 1 << 40)}": numbers}, refusal="INVALID_ARGUMENT"),
            Call("numbers", {"INPUT0": numbers.astype(np.float64)}, refusal="INVALID_ARGUMENT"),
            Call("numbers", {"INPUT0": numbers[0]}, refusal="INVALID_ARGUMENT"),
            Call("garments-image", {"pixels": np.zeros((1, rows, 64, 3), np.uint8)}, refusal="INVALID_ARGUMENT"),
        )
    )
