"""Reloading under load: while models are loaded anew 20 times, and once with a version that is broken, no request fails.

Sixteen callers ask an identity model and the bundled text tower without a pause; each reload changes the configuration,
which is read back.
"""

import asyncio
import contextlib
import json
import shutil
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tritonclient.grpc import InferInput
from tritonclient.grpc.aio import InferenceServerClient
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from benchmarks.report import Figure, Report
from lookwire.local import LocalServer

SECONDS = 30.0
CALLERS = 16
RELOADS = 20
TEXT = "garments-text"
IDENTITY = "identity"
CONFIG = """
backend: "identity"
max_batch_size: 16
input [ { name: "INPUT0" data_type: TYPE_INT32 dims: [ 16 ] } ]
output [ { name: "OUTPUT0" data_type: TYPE_INT32 dims: [ 16 ] } ]
dynamic_batching { }
"""


@dataclass(slots=True)
class Answers:
    """What the callers got: milliseconds of each answer, and what was wrong."""

    milliseconds: list[float] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)


def run(report: Report) -> None:
    """Adds the figures of one run to the report."""
    with tempfile.TemporaryDirectory(prefix="lookwire-reload-") as directory:
        repository = Path(directory, "models")
        shutil.copytree(Path("model_repo", TEXT), repository / TEXT)
        (repository / IDENTITY / "1").mkdir(parents=True)
        (repository / IDENTITY / "config.pbtxt").write_text(CONFIG)
        with LocalServer(repository, model_control_mode="explicit", load_model=[TEXT, IDENTITY]) as server:
            asyncio.run(measure(report, server.address, repository))


async def measure(report: Report, address: str, repository: Path) -> None:
    """Calls for 30 seconds and reloads meanwhile."""
    answers = Answers()
    end = time.perf_counter() + SECONDS
    async with InferenceServerClient(address) as client, InferenceServerClient(address) as control:
        expected = {model: await ask(client, model) for model in (TEXT, IDENTITY)}
        async with asyncio.TaskGroup() as group:
            reloading = group.create_task(reload(control, repository))
            for number in range(CALLERS):
                model = (TEXT, IDENTITY)[number % 2]
                group.create_task(call(client, model, expected[model], end, answers))
    reloads, faults = reloading.result()
    for fault in (answers.failures + faults)[:10]:
        print(fault)
    report.add(Figure("failed requests", len(answers.failures), "requests", f"{CALLERS} in flight", at_most=0))
    reference = "load_model with a changed configuration, read back by ModelConfig"
    report.add(Figure("reloads", reloads, "reloads", reference, at_least=RELOADS))
    reference = "refused, told by RepositoryIndex, version 1 still ready"
    report.add(Figure("faults of the load of a broken version", len(faults), "faults", reference, at_most=0))
    served = len(answers.milliseconds)
    report.add(Figure("requests answered", served, "requests", f"in {SECONDS:g} s", at_least=1))
    for percent in (50, 99, 100):
        of_all = float(np.percentile(answers.milliseconds, percent))
        report.add(Figure(f"latency, {percent} % within", of_all, "ms", f"{served} requests"))


async def call(
    client: InferenceServerClient, model: str, expected: NDArray[np.generic], end: float, answers: Answers
) -> None:
    """Asks one thing until the end."""
    while (started := time.perf_counter()) < end:
        try:
            answer = await ask(client, model)
        except InferenceServerException as error:
            answers.failures.append(f"{model}: {error}")
            await asyncio.sleep(0.01)  # a model that is gone refuses at once: the list is to stay short
            continue
        # The tower's rows may differ in the last bits with the batch they are in.
        if not np.allclose(answer, expected, atol=1e-4):
            answers.failures.append(f"{model}: another answer than before the reloads")
        answers.milliseconds.append((time.perf_counter() - started) * 1e3)


async def ask(client: InferenceServerClient, model: str) -> NDArray[np.generic]:
    """One request of one row; returns its output."""
    given, asked = ("input_ids", "embedding") if model == TEXT else ("INPUT0", "OUTPUT0")
    row = np.array([[49406, 736, 2225, 49407]] if model == TEXT else [range(16)], np.int32)
    tensor = InferInput(given, list(row.shape), np_to_triton_dtype(row.dtype))
    tensor.set_data_from_numpy(row)
    output: NDArray[np.generic] = (await client.infer(model, [tensor])).as_numpy(asked)
    return output


async def reload(control: InferenceServerClient, repository: Path) -> tuple[int, list[str]]:
    """Loads the two models by turns, and a broken version of the tower midway; returns how many reloads took effect,
    and what was wrong about the broken one.
    """
    taken, faults = 0, []
    for number in range(RELOADS):
        model = (TEXT, IDENTITY)[number % 2]
        config = (await control.get_model_config(model, as_json=True))["config"]
        config["max_batch_size"] = 17 + number
        config.get("dynamic_batching", {}).pop("preferred_batch_size", None)
        await control.load_model(model, config=json.dumps(config))
        taken += (await control.get_model_config(model)).config.max_batch_size == 17 + number
        if number == RELOADS // 2:
            faults = await load_broken(control, repository)
        await asyncio.sleep(SECONDS / (RELOADS + 4))
    return taken, faults


async def load_broken(control: InferenceServerClient, repository: Path) -> list[str]:
    """Puts a version 2 that is no model beside version 1 of the tower and loads it; returns what was not as it should."""
    broken = repository / TEXT / "2"
    broken.mkdir()
    (broken / "model.onnx").write_bytes(b"no model")
    faults = []
    try:
        with contextlib.suppress(InferenceServerException):
            await control.load_model(TEXT)
            faults.append("a version that is no model was loaded")
        index = (await control.get_model_repository_index()).models
        states = {model.version: model for model in index if model.name == TEXT}
        if "1" not in states or states["1"].state != "READY":
            faults.append(f"version 1 is not READY: {states}")
        if "2" not in states or states["2"].state != "UNAVAILABLE" or not states["2"].reason:
            faults.append(f"version 2 is not UNAVAILABLE with a reason: {states}")
    finally:
        shutil.rmtree(broken)
    return faults
