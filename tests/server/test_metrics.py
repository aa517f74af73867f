"""/metrics: Triton's counters, and the endpoint itself."""

import re
import shutil
import socket
import threading
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from tritonclient import grpc as triton
from tritonclient.utils import InferenceServerException

from lookwire.local import LocalServer
from tests.conftest import MODEL_REPOSITORY

TEXT = "garments-text"
REASONS = {
    *("REJECTED", "CANCELED", "BACKEND", "OTHER"),
    *("QUEUE_FULL", "DEADLINE_EXCEEDED", "INVALID_ARGUMENT", "UNAVAILABLE"),
}
SAMPLE = re.compile(r"(\w+)(?:\{(.*)\})? (\S+)")


def page(server: LocalServer) -> str:
    with urllib.request.urlopen(f"http://{server.metrics_address}/metrics", timeout=10) as reply:
        text: str = reply.read().decode()
    return text


def samples(server: LocalServer) -> dict[tuple[str, str], str]:
    """Every nv_ sample: the value as it is written, by name and labels as they are written."""
    matches = [SAMPLE.fullmatch(line) for line in page(server).splitlines() if line.startswith("nv_")]
    assert all(matches)
    return {(match[1], match[2] or ""): match[3] for match in matches if match}


def tokens(rows: int) -> list[triton.InferInput]:
    ids = np.ones((rows, 8), np.int32)
    tensor = triton.InferInput("input_ids", ids.shape, "INT32")
    tensor.set_data_from_numpy(ids)
    return [tensor]


def test_counters_of_a_model(server: LocalServer) -> None:
    """A request of 8 rows adds one success, 8 inferences and one execution, as ModelStatistics says; one refused is a failure."""
    labels = f'model="{TEXT}",version="1"'
    invalid = ("nv_inference_request_failure", f'model="{TEXT}",reason="INVALID_ARGUMENT",version="1"')
    with triton.InferenceServerClient(server.address) as client:
        before = samples(server)
        client.infer(TEXT, tokens(8))
        with pytest.raises(InferenceServerException):
            client.infer(TEXT, tokens(0))
        statistics = client.get_inference_statistics(TEXT).model_stats[0]
        after = samples(server)

    def added(name: str) -> int:
        return int(after[name, labels]) - int(before[name, labels])

    assert added("nv_inference_request_success") == 1
    assert added("nv_inference_count") == 8
    assert added("nv_inference_exec_count") == 1
    assert added("nv_inference_compute_infer_duration_us") > 0
    assert int(after[invalid]) - int(before[invalid]) == 1
    assert after["nv_inference_pending_request_count", labels] == "0"
    for name, counted in (
        ("nv_inference_request_success", statistics.inference_stats.success.count),
        ("nv_inference_count", statistics.inference_count),
        ("nv_inference_request_duration_us", statistics.inference_stats.success.ns // 1000),
        ("nv_inference_queue_duration_us", statistics.inference_stats.queue.ns // 1000),
    ):
        assert after[name, labels] == str(counted)


def test_families_and_labels(tmp_path: Path) -> None:
    """From the load on all reasons are at 0, tags are escaped labels, no counter ends in _total; hits are no inferences."""
    repository = tmp_path / "models"
    shutil.copytree(MODEL_REPOSITORY / TEXT, repository / TEXT)
    with (repository / TEXT / "config.pbtxt").open("a") as config:
        config.write('metric_tags { key: "team" value: "a \\"b\\" \\\\ c\\n" }\nresponse_cache { enable: true }\n')
    tagged = 'model="garments-text"{}version="1"'
    labels = r'_team="a \"b\" \\ c\n",' + tagged

    with LocalServer(repository, tmp_path / "data", cache_config="local,size=1000000") as server:
        text = page(server)
        found = samples(server)
        with triton.InferenceServerClient(server.address) as client:
            for _ in range(3):
                client.infer(TEXT, tokens(2))
        cached = samples(server)

    for name, expected in (
        ("nv_inference_request_success", 3),
        ("nv_inference_count", 2),
        ("nv_inference_exec_count", 1),
        ("nv_cache_num_hits_per_model", 2),
        ("nv_cache_num_misses_per_model", 1),
    ):
        assert cached[name, labels.format(",")] == str(expected)
    assert "# TYPE nv_inference_request_success counter\n" in text
    assert "# TYPE nv_inference_pending_request_count gauge\n" in text
    assert not re.search(r"^nv_\w+_(total|created)\b", text, re.MULTILINE)
    for reason in REASONS:
        assert found["nv_inference_request_failure", labels.format(f',reason="{reason}",')] == "0"
    for name in ("num_hits", "num_misses", "hit_duration", "miss_duration"):
        assert found[f"nv_cache_{name}_per_model", labels.format(",")] == "0"
    assert float(found["nv_model_load_duration_secs", labels.format(",")]) > 0
    assert 0 <= float(found["nv_cpu_utilization", ""]) <= 1
    assert 0 < int(found["nv_cpu_memory_used_bytes", ""]) < int(found["nv_cpu_memory_total_bytes", ""])


def test_models_without_a_cache_have_no_cache_metrics(server: LocalServer) -> None:
    """The cache's families are absent where no model has a cache."""
    assert "nv_cache_" not in page(server)


def test_scrapes_while_models_come_and_go(tmp_path: Path) -> None:
    """Every scrape succeeds while a model is loaded and unloaded, and its series are there just while it is loaded."""
    done = threading.Event()

    def scrape() -> int:
        scrapes = 0
        while not done.is_set():
            samples(server)
            scrapes += 1
        return scrapes

    with LocalServer(MODEL_REPOSITORY, tmp_path, model_control_mode="explicit") as server, ThreadPoolExecutor() as pool:
        assert not any(labels for _, labels in samples(server))
        scraping = pool.submit(scrape)
        try:
            with triton.InferenceServerClient(server.address) as client:
                for _ in range(8):
                    client.load_model(TEXT)
                    loaded = samples(server)
                    client.infer(TEXT, tokens(1))
                    client.unload_model(TEXT)
                    unloaded = samples(server)
        finally:
            done.set()
        assert scraping.result() > 0

    success = ("nv_inference_request_success", f'model="{TEXT}",version="1"')
    assert loaded[success] == "0"
    assert success not in unloaded


def test_other_paths_are_not_found(server: LocalServer) -> None:
    """Only /metrics is answered; it is Prometheus's text format."""
    address = f"http://{server.metrics_address}"
    with urllib.request.urlopen(f"{address}/metrics?x=1") as reply:
        assert reply.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
    with pytest.raises(urllib.error.HTTPError) as failure:
        urllib.request.urlopen(f"{address}/")
    failure.value.close()

    assert failure.value.code == 404


def test_idle_connections_are_bounded(server: LocalServer) -> None:
    """Connections that ask for nothing hold at most 16 threads; those beyond are closed, and leave room when they go."""
    host, port = server.metrics_address.split(":")
    idle = [socket.create_connection((host, int(port)), timeout=5) for _ in range(16)]
    with socket.create_connection((host, int(port)), timeout=5) as beyond:
        refused = beyond.recv(1)
    for connection in idle:
        connection.close()

    assert refused == b""
    deadline = time.monotonic() + 5
    while True:
        try:
            assert "nv_" in page(server)
            break
        except OSError:
            assert time.monotonic() < deadline, "no connection was given back"
