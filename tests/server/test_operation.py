"""Running the server: start, health, metrics, stop, crash."""

import asyncio
import json
import os
import queue
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

import grpc
import numpy as np
import pytest
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from tritonclient import grpc as triton

from lookwire import AsyncClient, Client, Embeddings, Item, errors
from lookwire.local import LocalServer
from tests.conftest import MODEL_REPOSITORY
from tests.server.images import noise

# What promtool has against names that are Triton's to choose.
TRITON_NAMES = re.compile(
    r"nv_\w+ counter metrics should have \"_total\" suffix"
    r"|nv_\w+_us metric names should not contain abbreviated units"
    r"|nv_\w+_count non-histogram and non-summary metrics should not have \"_count\" suffix"
)
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


def test_health_of_the_whole_each_service_and_each_model(server: LocalServer) -> None:
    """Health says SERVING for the whole, the services and the models, and NOT_FOUND for what is not there."""
    with grpc.insecure_channel(server.address) as channel:
        check = health_pb2_grpc.HealthStub(channel).Check
        for name in ("", "lookwire.v1.SearchService", "inference.GRPCInferenceService", "garments", "garments-text"):
            assert check(health_pb2.HealthCheckRequest(service=name)).status == SERVING
        with pytest.raises(grpc.RpcError) as failure:
            check(health_pb2.HealthCheckRequest(service="nobody"))

    assert failure.value.code() is grpc.StatusCode.NOT_FOUND


def test_reflection_describes_every_service(server: LocalServer) -> None:
    """A client without stubs learns every service and its methods."""
    with grpc.insecure_channel(server.address) as channel:
        database = ProtoReflectionDescriptorDatabase(channel)
        services = set(database.get_services())
        pool = DescriptorPool(database)
        search = pool.FindServiceByName("lookwire.v1.SearchService")  # type: ignore[no-untyped-call]  # untyped in protobuf

    assert services >= {
        "lookwire.v1.EncoderService",
        "lookwire.v1.CollectionService",
        "lookwire.v1.ItemService",
        "lookwire.v1.SearchService",
        "lookwire.v1.SnapshotService",
        "inference.GRPCInferenceService",
        "grpc.health.v1.Health",
    }
    assert [method.name for method in search.methods] == ["Search", "BatchSearch"]


def test_metrics_are_clean(server: LocalServer, client: Client, collection: str) -> None:
    """promtool finds no fault with what /metrics gives after real work, but with the names of Triton's metrics."""
    promtool = shutil.which("promtool")
    if promtool is None:
        assert "CI" not in os.environ, "promtool is missing: make test-setup"
        pytest.skip("promtool is not installed (Debian's package prometheus: make test-setup)")
    client.search(collection, text="a red dress")
    with pytest.raises(errors.NotFound):
        client.search("nowhere", text="a red dress")
    with urllib.request.urlopen(f"http://{server.metrics_address}/metrics") as page:
        metrics = page.read()

    checked = subprocess.run([promtool, "check", "metrics"], input=metrics, capture_output=True)

    complaints = checked.stderr.decode().splitlines()
    assert checked.stdout == b""
    assert [line for line in complaints if not TRITON_NAMES.fullmatch(line)] == []
    assert 'nv_inference_request_success counter metrics should have "_total" suffix' in complaints
    for name in (
        b'lookwire_rpc_duration_seconds_count{code="OK",method="/lookwire.v1.SearchService/Search"}',
        b'lookwire_rpc_duration_seconds_count{code="NOT_FOUND",method="/lookwire.v1.SearchService/Search"}',
        b'lookwire_stage_duration_seconds_count{stage="search"}',
        b'lookwire_collection_items{collection="' + collection.encode() + b'"} 3.0',
    ):
        assert name in metrics


def test_start_is_quick_and_memory_small(tmp_path: Path) -> None:
    """The server is ready in under 5 seconds and stays under 400 MB after an import and searches."""
    started = time.monotonic()
    with LocalServer(MODEL_REPOSITORY, tmp_path) as server, Client(server.address) as client:
        ready = time.monotonic() - started
        client.create_collection("shop")
        client.upsert("shop", (Item(str(number), text=f"a dress number {number}") for number in range(500)))
        for number in range(50):
            client.search("shop", text=f"a dress number {number}")
        status = Path(f"/proc/{server.process.pid}/status").read_text()
        resident = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS")) * 1024

    assert ready < 5
    assert resident < 400e6


def test_imports_are_left_to_no_collection() -> None:
    """A full garbage collection passes over what the imports made, and threads hand the interpreter over at once."""
    code = """
import gc, sys
from lookwire_server import __main__ as program

async def serve(settings, levels):
    print(gc.get_freeze_count() > 50_000, len(gc.get_objects()) < 10_000, sys.getswitchinterval() < 0.001)

program.serve = serve
sys.argv[1:] = ["--model-repository", "."]
program.main()
"""
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout

    assert printed == "True True True\n"


def test_overload_is_refused_at_the_door(tmp_path: Path) -> None:
    """Requests beyond the bytes that may be in flight are RESOURCE_EXHAUSTED; the others and later ones are answered."""
    image = noise(1024, 1024, "PNG")
    refused = answered = 0
    with LocalServer(MODEL_REPOSITORY, tmp_path, max_inflight_bytes=2 * len(image)) as server:

        async def flood() -> list[object]:
            async with AsyncClient(server.address) as client:
                # The client would try again after the second that it is told.
                calls = [client.embed(images=[image], timeout=0.9) for _ in range(16)]
                return await asyncio.gather(*calls, return_exceptions=True)

        for outcome in asyncio.run(flood()):
            if isinstance(outcome, Embeddings):
                answered += 1
            else:
                assert isinstance(outcome, errors.ResourceExhausted)
                assert outcome.reason == "OVERLOADED"
                refused += 1
        with Client(server.address) as client:
            assert client.embed(images=[image]).vectors.shape[0] == 1

    assert answered >= 1
    assert refused >= 1


def test_stop_is_graceful(tmp_path: Path) -> None:
    """After SIGTERM health says NOT_SERVING, requests are still answered while it drains, and the exit status is 0."""
    server = LocalServer(MODEL_REPOSITORY, tmp_path, drain_secs=1.5)
    server.start()
    with grpc.insecure_channel(server.address) as channel, Client(server.address) as client:
        statuses = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
        assert next(statuses).status == SERVING

        server.process.send_signal(signal.SIGTERM)

        assert next(statuses).status == NOT_SERVING
        assert client.embed(["still here"]).vectors.shape[0] == 1
        assert server.process.wait(20) == 0


@pytest.mark.parametrize("protocol", ["grpc", "http", "metrics"])
def test_taken_port_is_a_clear_error(tmp_path: Path, protocol: str) -> None:
    """A port that is taken ends the start with a sentence that says which and what to do, not with a trace."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(RuntimeError, match=f"cannot listen on 127.0.0.1:{port}") as failure:
            LocalServer(MODEL_REPOSITORY, tmp_path, **{f"{protocol}_port": port}).start()

    assert "Traceback" not in str(failure.value)
    assert f"--{protocol}-port" in str(failure.value)


@pytest.mark.parametrize("strict", [True, False])
def test_health_follows_the_models(tmp_path: Path, strict: bool) -> None:
    """Watches are told when a model comes and goes; under strict readiness one that failed at the start keeps all waiting."""
    repository = copy_repository(tmp_path / "models")
    (repository / "broken/1").mkdir(parents=True)
    (repository / "broken/config.pbtxt").write_text('backend: "onnxruntime"')
    with (
        LocalServer(
            repository,
            tmp_path / "data",
            model_control_mode="explicit",
            load_model=["garments-image", "broken"],
            exit_on_error=False,
            strict_readiness=strict,
        ) as server,
        grpc.insecure_channel(server.address) as channel,
        triton.InferenceServerClient(server.address) as client,
    ):
        check = health_pb2_grpc.HealthStub(channel).Check
        watch = health_pb2_grpc.HealthStub(channel).Watch
        whole = watch(health_pb2.HealthCheckRequest(), timeout=20)
        model = watch(health_pb2.HealthCheckRequest(service="garments-text"), timeout=20)
        started = next(whole).status, next(model).status
        client.load_model("garments-text")
        loaded = next(reply.status for reply in model if reply.status != NOT_SERVING)  # it may be seen loading
        client.unload_model("garments-text")
        unloaded = next(model).status
        broken = check(health_pb2.HealthCheckRequest(service="broken")).status
        if strict:
            client.unload_model("broken")
            assert next(whole).status == SERVING

    assert started == (NOT_SERVING if strict else SERVING, health_pb2.HealthCheckResponse.SERVICE_UNKNOWN)
    assert (loaded, unloaded, broken) == (SERVING, NOT_SERVING, NOT_SERVING)


def test_hooks_of_tritons_own_tests(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """TRITONSERVER_DELAY_SCHEDULER holds the first batch until so many requests wait; the log says that it is set."""
    monkeypatch.setenv("TRITONSERVER_DELAY_SCHEDULER", "3")
    tensor = triton.InferInput("input_ids", [1, 8], "INT32")
    tensor.set_data_from_numpy(np.ones((1, 8), np.int32))
    answers: queue.Queue[object] = queue.Queue()
    with (
        LocalServer(MODEL_REPOSITORY, tmp_path, show_log=True) as server,
        triton.InferenceServerClient(server.address) as client,
    ):
        for _ in range(3):
            with pytest.raises(queue.Empty):
                answers.get(timeout=0.1)
            client.async_infer("garments-text", [tensor], lambda result, error: answers.put(error))
        errors = [answers.get(timeout=10) for _ in range(3)]
        statistics = client.get_inference_statistics("garments-text").model_stats[0]

    assert errors == [None] * 3
    assert (statistics.inference_count, statistics.execution_count) == (3, 1)
    assert "TRITONSERVER_DELAY_SCHEDULER" in capfd.readouterr().err


def test_both_protocols_reach_the_same_models(tmp_path: Path) -> None:
    """The V2 protocol over HTTP and over gRPC serves the same models, under the name that --id gives."""
    with LocalServer(MODEL_REPOSITORY, tmp_path, id="triton") as server:
        with urllib.request.urlopen(f"http://{server.http_address}/v2") as reply:
            metadata = json.load(reply)
        with urllib.request.urlopen(f"http://{server.http_address}/v2/health/ready") as reply:
            assert reply.status == 200
        with triton.InferenceServerClient(server.address) as client:
            assert client.get_server_metadata().name == metadata["name"] == "triton"


def test_data_directory_has_one_owner(tmp_path: Path) -> None:
    """A second server on the same data directory refuses to start."""
    with LocalServer(MODEL_REPOSITORY, tmp_path), pytest.raises(RuntimeError, match=str(tmp_path)):
        LocalServer(MODEL_REPOSITORY, tmp_path).start()


@pytest.mark.parametrize("what", ["a file", "a folder with another database"])
def test_unusable_data_directory_is_explained(tmp_path: Path, what: str) -> None:
    """A data directory that cannot be used ends the start with a sentence that names it, not with a trace."""
    data = tmp_path / "data"
    if what == "a file":
        data.write_text("not a folder")
    else:
        data.mkdir()
        (data / "lookwire.db").write_text("no database" * 1000)

    with pytest.raises(RuntimeError, match="cannot be used") as failure:
        LocalServer(MODEL_REPOSITORY, data).start()

    assert str(data) in str(failure.value)
    assert "Traceback" not in str(failure.value)


def test_all_wrong_settings_are_named_at_once() -> None:
    """Every wrong setting is printed with its flag, and the exit status is 2."""
    command = [sys.executable, "-m", "lookwire_server", "--grpc-port", "99999", "--cores", "none"]

    ended = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "LOOKWIRE_DRAIN_SECS": "-1"})

    assert ended.returncode == 2
    for flag in ("--grpc-port", "--cores", "--drain-secs"):
        assert flag in ended.stderr


def copy_repository(to: Path) -> Path:
    shutil.copytree(MODEL_REPOSITORY, to)
    return to


def break_config(repository: Path) -> None:
    (repository / "garments-text/config.pbtxt").write_text(
        'name: "garments-text"\nbackend: "onnxruntime"\nmax_batch: 8\n'
    )


def break_tower(repository: Path) -> None:
    with (repository / "garments-text/1/model.onnx").open("r+b") as file:
        file.seek(1_000_000)  # among the weights of the token embedding: the graph still loads
        file.write(b"\x12\x34")


def break_manifest(repository: Path) -> None:
    path = repository / "garments/1/manifest.json"
    manifest = json.loads(path.read_text())
    manifest["text"]["clean"] = "guess"
    path.write_text(json.dumps(manifest))


def break_tokenizer(repository: Path) -> None:
    path = repository / "garments/1/tokenizer.json"
    path.write_bytes(path.read_bytes().replace(b'"a"', b'"\xc3\xa6"', 1))


def drop_parity(repository: Path) -> None:
    path = repository / "garments/1/manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"parity": None}))


def remove_graph(repository: Path) -> None:
    (repository / "garments-image/1/model.onnx").unlink()


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (break_config, "config.pbtxt:3:1"),
        (break_tower, "SHA-256"),
        (break_manifest, "text.clean"),
        (break_tokenizer, "tokenizer.json"),
        (drop_parity, "--allow-ungated"),
        (remove_graph, "model.onnx does not exist"),
    ],
)
def test_damaged_repository_is_explained(tmp_path: Path, damage: Callable[[Path], None], words: str) -> None:
    """A mistake in the model repository ends the start with what is wrong and where, not with a trace."""
    repository = copy_repository(tmp_path / "models")
    damage(repository)

    with pytest.raises(RuntimeError) as failure:
        LocalServer(repository, tmp_path / "data").start()

    assert words in str(failure.value)
    assert "Traceback" not in str(failure.value)


def test_ungated_encoder_is_served_when_told_to(tmp_path: Path) -> None:
    """--allow-ungated serves an encoder without a parity record, with the same vectors."""
    repository = copy_repository(tmp_path / "models")
    drop_parity(repository)

    with LocalServer(repository, allow_ungated=True) as server, Client(server.address) as client:
        assert client.get_encoder().parity is None


def test_changed_encoder_is_refused(tmp_path: Path) -> None:
    """A collection answers no text query from another encoder, says which fingerprints differ, and still takes vectors."""
    data = tmp_path / "data"
    with LocalServer(MODEL_REPOSITORY, data) as server, Client(server.address) as client:
        client.create_collection("shop")
        client.upsert("shop", [Item("hat", text="a hat")])
        old = client.get_encoder()
        vector = client.embed(["a hat"]).vectors[0]
    repository = copy_repository(tmp_path / "models")
    path = repository / "garments/1/manifest.json"
    manifest = json.loads(path.read_text())
    manifest["text"]["context_length"] = 32
    path.write_text(json.dumps(manifest))

    with LocalServer(repository, data) as server, Client(server.address) as client:
        with pytest.raises(errors.FailedPrecondition) as failure:
            client.search("shop", text="a hat")
        with pytest.raises(errors.FailedPrecondition):
            client.upsert("shop", [Item("cap", text="a cap")])
        hits = client.search("shop", vector=vector).hits

    assert old.fingerprint in failure.value.message
    assert [hit.id for hit in hits] == ["hat"]


def test_nothing_acknowledged_is_lost(tmp_path: Path) -> None:
    """Through 20 SIGKILLs during upserts every acknowledged item is there, none is half there, and the server starts."""
    rng = random.Random(7)
    acknowledged: dict[str, int] = {}
    server = LocalServer(MODEL_REPOSITORY, tmp_path)
    server.start()
    with Client(server.address) as client:
        client.create_collection("shop", {"version": "int64"})

    def write(address: str, writer: int, round: int) -> None:
        """Upserts groups of three items of one version until the server dies."""
        with Client(address, timeout=5) as client:
            for version in range(round * 1_000_000, (round + 1) * 1_000_000):
                group = f"{writer}-{rng.randrange(40)}"
                items = [Item(f"{group}-{part}", {"version": version}, text=f"dress {version}") for part in "abc"]
                try:
                    client.upsert("shop", items)
                except errors.LookwireError:
                    return
                acknowledged.update({item.id: version for item in items})

    for round in range(20):
        writers = [threading.Thread(target=write, args=(server.address, writer, round)) for writer in range(3)]
        for thread in writers:
            thread.start()
        time.sleep(rng.uniform(0.05, 0.6))
        server.kill()
        for thread in writers:
            thread.join()
        server.start()
        with Client(server.address) as client:
            stored = {item.id: item for item in client.list_items("shop")}
            searchable = client.search("shop", text="dress", top_k=1000, ids_only=True)
        assert {hit.id for hit in searchable.hits} == stored.keys()
        for id, version in acknowledged.items():
            # An unacknowledged later version may have been written; an earlier one may not be what is left.
            assert stored[id].payload["version"] >= version
        for id, item in stored.items():
            # The three items of a group are written together, so they are of one version.
            assert all(stored[f"{id[:-1]}{part}"].payload == item.payload for part in "abc")

    assert len(acknowledged) > 40
    assert server.stop() == 0
