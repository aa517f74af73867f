"""Loading and unloading models of a running server, by Triton's client."""

import asyncio
import json
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from tritonclient.utils import InferenceServerException

from lookwire import Client
from lookwire.local import LocalServer
from tests.conftest import MODEL_REPOSITORY
from tests.server.graphs import SCALE, write_scale

CONFIG = json.dumps(
    {
        "backend": "onnxruntime",
        "max_batch_size": 16,
        "input": [{"name": "x", "data_type": "TYPE_FP32", "dims": [4]}],
        "output": [{"name": "y", "data_type": "TYPE_FP32", "dims": [4]}],
    }
)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model repository: `scale`, and the bundled encoder with its towers."""
    root = tmp_path_factory.mktemp("models")
    shutil.copytree(MODEL_REPOSITORY, root, dirs_exist_ok=True)
    write_scale(root, "scale", {1: 2.0, 2: 3.0})
    return root


@pytest.fixture(scope="module")
def explicit(models: Path) -> Iterator[LocalServer]:
    """A server that loads what it is told to, at first nothing."""
    with LocalServer(models, model_control_mode="explicit") as server:
        yield server


@pytest.fixture
def client(explicit: LocalServer) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(explicit.address) as client:
        yield client
        client.unload_model("scale")
        client.unload_model("garments", unload_dependents=True)


def inputs() -> list[triton.InferInput]:
    tensor = triton.InferInput("x", [1, 4], "FP32")
    tensor.set_data_from_numpy(np.ones((1, 4), np.float32))
    return [tensor]


def factor(client: triton.InferenceServerClient, name: str = "scale") -> float:
    """What the model multiplies by."""
    return float(client.infer(name, inputs()).as_numpy("y")[0, 0])


def rows(client: triton.InferenceServerClient, name: str) -> list[tuple[str, str, str]]:
    """The model's rows of the index: version, state, reason."""
    index = client.get_model_repository_index().models
    return [(row.version, row.state, row.reason) for row in index if row.name == name]


def test_load_serve_unload(client: triton.InferenceServerClient) -> None:
    """A model answers after its load and not after its unload; the index tells its states, and the server stays ready."""
    assert rows(client, "scale")[-1][1] in ("", "UNAVAILABLE", "UNLOADING")
    assert not client.is_model_ready("scale")
    client.load_model("scale")
    assert client.is_model_ready("scale")
    assert rows(client, "scale") == [("2", "READY", "")]
    assert factor(client) == 3.0
    client.unload_model("scale")
    assert not client.is_model_ready("scale")
    with pytest.raises(InferenceServerException, match="is not at ready state") as failure:
        factor(client)
    assert failure.value.status() == "StatusCode.UNAVAILABLE"
    assert client.is_server_ready()


def test_config_of_the_request(client: triton.InferenceServerClient) -> None:
    """A config takes the file's place; a malformed one is refused, and what serves goes on."""
    client.load_model("scale", config=CONFIG)
    assert client.get_model_config("scale").config.max_batch_size == 16
    with pytest.raises(InferenceServerException, match="failed to load 'scale', load failed for model 'scale'"):
        client.load_model("scale", config='"parameters": {"config": {{"max_batch_size": "8"}}}')
    assert client.get_model_config("scale").config.max_batch_size == 16


def test_files_of_the_request(client: triton.InferenceServerClient, models: Path) -> None:
    """Files take the folder's place; a path out of it is refused, one too long for the disk is a load failure."""
    graph = (models / "scale" / "1" / "model.onnx").read_bytes()
    client.load_model("scale", config=CONFIG, files={"file:7/model.onnx": graph})
    assert rows(client, "scale")[-1] == ("7", "READY", "")
    assert factor(client) == 2.0
    with pytest.raises(InferenceServerException, match="failed to load") as failure:
        client.load_model("scale", config="{}", files={"file:../../x": b"a"})
    assert failure.value.status() == "StatusCode.INVALID_ARGUMENT"
    with pytest.raises(InferenceServerException, match="failed to poll from model repository") as failure:
        client.load_model("scale", config="{}", files={f"file:{'A' * 256}": b"a"})
    assert failure.value.status() == "StatusCode.INTERNAL"
    assert factor(client) == 2.0


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("../etc", "model name must not contain path traversal characters"),
        (" ", "Model name cannot be empty. Please enter a valid name to deploy."),
        ("wrong_model_name", "failed to load 'wrong_model_name', failed to poll from model repository"),
    ],
)
def test_names(client: triton.InferenceServerClient, name: str, words: str) -> None:
    """Names that are no model's are refused in Triton's words, and ignored by an unload."""
    with pytest.raises(InferenceServerException) as failure:
        client.load_model(name)
    assert words in failure.value.message()
    client.unload_model(name)


async def test_no_request_fails_while_models_are_replaced(explicit: LocalServer, models: Path) -> None:
    """Requests under way and new ones are all answered while a model is loaded again, also by a broken version."""
    answers = []
    async with triton_aio.InferenceServerClient(explicit.address) as client:
        await client.load_model("scale")
        done = asyncio.Event()

        async def work() -> None:
            while not done.is_set():
                answers.append(float((await client.infer("scale", inputs())).as_numpy("y")[0, 0]))

        workers = [asyncio.create_task(work()) for _ in range(8)]
        for size in (9, 10, 11, 12):
            await client.load_model("scale", config=CONFIG.replace("16", str(size)))
            await asyncio.sleep(0.1)
        broken = {"file:1/model.onnx": b"no graph"}
        with pytest.raises(InferenceServerException, match="version 1 is at UNAVAILABLE state"):
            await client.load_model("scale", config=CONFIG, files=broken)
        await asyncio.sleep(1.2)
        done.set()
        await asyncio.gather(*workers)
        await client.unload_model("scale")

    assert len(answers) > 100
    assert set(answers) == {3.0}


def test_encoder_goes_with_its_towers(client: triton.InferenceServerClient, explicit: LocalServer) -> None:
    """An encoder loads its towers; it answers without a break while one is replaced, and not when one is unloaded."""
    client.load_model("garments")
    assert client.is_model_ready("garments-text")
    failures: list[Exception] = []
    count = 0
    done = threading.Event()

    def work() -> None:
        nonlocal count
        with Client(explicit.address) as mine:
            while not done.is_set():
                try:
                    mine.embed(["a red dress"])
                    count += 1
                except Exception as error:  # noqa: BLE001 - whatever it is, it fails the test
                    failures.append(error)
                    return

    thread = threading.Thread(target=work)
    thread.start()
    config = client.get_model_config("garments-text", as_json=True)["config"] | {"max_batch_size": 128}
    client.load_model("garments-text", config=json.dumps(config))
    time.sleep(1.3)
    done.set()
    thread.join()
    assert failures == []
    assert count > 10

    client.unload_model("garments-text")
    assert not client.is_model_ready("garments")
    assert rows(client, "garments") == [("1", "UNAVAILABLE", "needs model 'garments-text', which is not ready")]
    client.load_model("garments-text")
    assert client.is_model_ready("garments")


def test_polling(tmp_path: Path) -> None:
    """A polling server serves what appears on disk, and refuses to be told what to load."""
    write_scale(tmp_path / "models", "scale", {1: 2.0})
    with (
        LocalServer(tmp_path / "models", model_control_mode="poll", repository_poll_secs=0.1) as server,
        triton.InferenceServerClient(server.address) as client,
    ):
        assert factor(client) == 2.0
        with pytest.raises(InferenceServerException, match="explicit model load / unload is not allowed") as failure:
            client.load_model("scale")
        assert failure.value.status() == "StatusCode.UNAVAILABLE"
        write_scale(tmp_path / "models", "other", {1: 5.0}, SCALE)
        deadline = time.monotonic() + 10
        while not client.is_model_ready("other") and time.monotonic() < deadline:
            time.sleep(0.05)
        assert factor(client, "other") == 5.0
