"""Tensors in system shared memory: registering regions, reading from them and writing to them."""

import os
import threading
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException, serialize_byte_tensor

from lookwire.local import LocalServer
from tests.server import v2_models

DELAY = 0.5
SUMS = np.arange(16, dtype=np.int32)
NBYTES = SUMS.nbytes


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return v2_models.write(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def server(models: Path) -> Iterator[LocalServer]:
    with LocalServer(models, allow_client_shm=True) as server:
        yield server


@pytest.fixture
def client(server: LocalServer) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(server.address) as client:
        yield client
        client.unregister_system_shared_memory()


@pytest.fixture
def memory() -> Iterator[Path]:
    """A shared memory object of 4 KiB."""
    path = Path(f"/dev/shm/lookwire-test-{uuid.uuid4()}")
    path.write_bytes(bytes(4096))
    yield path
    path.unlink()


def put(memory: Path, data: bytes, offset: int = 0) -> None:
    with memory.open("r+b") as file:
        file.seek(offset)
        file.write(data)


def inputs_in(region: str) -> list[triton.InferInput]:
    """The two inputs of `simple`, one after the other in a region."""
    inputs = []
    for number in range(2):
        inputs.append(triton.InferInput(f"INPUT{number}", [1, 16], "INT32"))
        inputs[-1].set_shared_memory(region, NBYTES, offset=number * NBYTES)
    return inputs


def failed(call: Any, *arguments: Any, **keywords: Any) -> tuple[str, str]:
    """The status and the words of a call that must fail."""
    with pytest.raises(InferenceServerException) as failure:
        call(*arguments, **keywords)
    return failure.value.status(), failure.value.message()


def test_inputs_and_outputs_in_shared_memory(client: triton.InferenceServerClient, memory: Path) -> None:
    """Inputs are read where the client wrote them, outputs are written where it asked, and the response carries no data."""
    put(memory, SUMS.tobytes() + np.ones(16, np.int32).tobytes(), offset=100)
    client.register_system_shared_memory("in", f"/{memory.name}", 2 * NBYTES, offset=100)
    client.register_system_shared_memory("out", memory.name, 1024, offset=1024)
    output = triton.InferRequestedOutput("OUTPUT0")
    output.set_shared_memory("out", NBYTES, offset=64)

    result = client.infer("simple", inputs_in("in"), outputs=[triton.InferRequestedOutput("OUTPUT1"), output])

    response = result.get_response()
    assert [len(raw) for raw in response.raw_output_contents] == [NBYTES, 0]
    np.testing.assert_array_equal(np.frombuffer(memory.read_bytes(), np.int32, 16, offset=1024 + 64), SUMS + 1)
    np.testing.assert_array_equal(result.as_numpy("OUTPUT1"), SUMS[None] - 1)


def test_raw_inputs_beside_shared_ones(client: triton.InferenceServerClient, memory: Path) -> None:
    """An input in shared memory takes no raw content: those go to the other inputs in order."""
    put(memory, SUMS.tobytes())
    client.register_system_shared_memory("in", memory.name, NBYTES)
    shared, raw = inputs_in("in")
    raw = triton.InferInput("INPUT1", [1, 16], "INT32")
    raw.set_data_from_numpy(np.full((1, 16), 5, np.int32))

    result = client.infer("simple", [shared, raw])

    np.testing.assert_array_equal(result.as_numpy("OUTPUT0"), SUMS[None] + 5)


def test_strings_in_shared_memory(client: triton.InferenceServerClient, memory: Path) -> None:
    """BYTES tensors are read and written in their raw form."""
    encoded = serialize_byte_tensor(np.array([b"one", b"", b"three"], np.object_)).item()
    put(memory, encoded)
    client.register_system_shared_memory("all", memory.name, 4096)
    given = triton.InferInput("INPUT0", [1, 3], "BYTES")
    given.set_shared_memory("all", len(encoded))
    output = triton.InferRequestedOutput("OUTPUT0")
    output.set_shared_memory("all", 100, offset=2000)

    client.infer("strings", [given], outputs=[output])

    assert memory.read_bytes()[2000 : 2000 + len(encoded)] == encoded


def test_regions_are_listed_until_unregistered(client: triton.InferenceServerClient, memory: Path) -> None:
    """The status names what is registered; unregistering by name, or all, forgets it; unknown names are no error."""
    client.register_system_shared_memory("a", memory.name, 8, offset=16)
    client.register_system_shared_memory("b", f"/{memory.name}", 4096)

    regions = client.get_system_shared_memory_status().regions
    one = client.get_system_shared_memory_status("a").regions
    client.unregister_system_shared_memory("unknown")
    client.unregister_system_shared_memory("a")
    left = list(client.get_system_shared_memory_status().regions)
    client.unregister_system_shared_memory()

    assert {(region.name, region.key, region.offset, region.byte_size) for region in regions.values()} == {
        ("a", memory.name, 16, 8),
        ("b", f"/{memory.name}", 0, 4096),
    }
    assert (list(one), left) == (["a"], ["b"])
    assert not client.get_system_shared_memory_status().regions
    assert failed(client.get_system_shared_memory_status, "a") == (
        "StatusCode.NOT_FOUND",
        "Unable to find system shared memory region: 'a'",
    )
    assert "system_shared_memory" in client.get_server_metadata().extensions


@pytest.mark.parametrize(
    ("key", "offset", "size", "status", "words"),
    [
        ("{key}", 0, 4097, "INVALID_ARGUMENT", "failed to register shared memory region 'r': invalid args"),
        ("{key}", 4096, 1, "INVALID_ARGUMENT", "invalid args"),
        ("{key}", 2**64 - 1, 8, "INVALID_ARGUMENT", "invalid args"),
        ("{key}", 0, 0, "INVALID_ARGUMENT", "invalid args"),
        ("/not-there", 0, 8, "INTERNAL", "Unable to open shared memory region: '/not-there'"),
        ("///", 0, 8, "INVALID_ARGUMENT", "cannot register shared memory region 'r' - invalid shm key '///'"),
        ("", 0, 8, "INVALID_ARGUMENT", "invalid shm key"),
        ("..", 0, 8, "INVALID_ARGUMENT", "invalid shm key"),
        ("../etc/passwd", 0, 8, "INVALID_ARGUMENT", "invalid shm key"),
        ("/a/b", 0, 8, "INVALID_ARGUMENT", "invalid shm key"),
        ("/" + "x" * 256, 0, 8, "INVALID_ARGUMENT", "invalid shm key"),
    ],
)
def test_regions_that_cannot_be(
    client: triton.InferenceServerClient, memory: Path, key: str, offset: int, size: int, status: str, words: str
) -> None:
    """A region must be a part of a shared memory object; keys lead nowhere else."""
    error = failed(client.register_system_shared_memory, "r", key.format(key=memory.name), size, offset=offset)

    assert error[0] == f"StatusCode.{status}"
    assert words in error[1]
    assert not client.get_system_shared_memory_status().regions


def test_links_and_folders_are_no_regions(client: triton.InferenceServerClient, memory: Path, tmp_path: Path) -> None:
    """A link in /dev/shm to a file elsewhere is not followed, and a pipe is refused."""
    secret = tmp_path / "secret"
    secret.write_bytes(bytes(64))
    link, pipe = memory.with_suffix(".link"), memory.with_suffix(".pipe")
    link.symlink_to(secret)
    os.mkfifo(pipe)
    try:
        linked = failed(client.register_system_shared_memory, "r", link.name, 8)
        piped = failed(client.register_system_shared_memory, "r", pipe.name, 8)
    finally:
        link.unlink()
        pipe.unlink()

    assert linked[0] == "StatusCode.INTERNAL"
    assert piped[0] == "StatusCode.INVALID_ARGUMENT"


def test_names_are_taken_once(client: triton.InferenceServerClient, memory: Path) -> None:
    """Registering a name again is ALREADY_EXISTS."""
    client.register_system_shared_memory("r", memory.name, 8)

    status, words = failed(client.register_system_shared_memory, "r", memory.name, 8)

    assert status == "StatusCode.ALREADY_EXISTS"
    assert "shared memory region 'r' already in manager" in words


def test_parts_must_lie_within_their_region(client: triton.InferenceServerClient, memory: Path) -> None:
    """An offset or a size beyond the region, or an unknown region, is refused in Triton's words."""
    client.register_system_shared_memory("r", memory.name, 2 * NBYTES)

    def attempt(region: str, size: int, offset: int) -> tuple[str, str]:
        given = triton.InferInput("INPUT0", [1, 2], "FP32")
        given.set_shared_memory(region, size, offset=offset)
        return failed(client.infer, "floats", [given])

    invalid = "StatusCode.INVALID_ARGUMENT"
    unknown = attempt("nowhere", 8, 0)
    offset = attempt("r", 8, 2 * NBYTES)
    end = attempt("r", 8, 2 * NBYTES - 4)
    long = attempt("r", 16, 0)

    assert unknown[0] == "StatusCode.NOT_FOUND"
    assert "Unable to find shared memory region: 'nowhere'" in unknown[1]
    assert offset[0] == end[0] == long[0] == invalid
    assert "Invalid offset for shared memory region: 'r'" in offset[1]
    assert "Invalid offset + byte size for shared memory region: 'r'" in end[1]
    assert "input byte size mismatch for input 'INPUT0' for model 'floats'. Expected 8, got 16" in long[1]


def test_outputs_must_fit(client: triton.InferenceServerClient, memory: Path) -> None:
    """An output larger than its place is INTERNAL with both sizes, and nothing is written."""
    put(memory, SUMS.tobytes() * 2)
    client.register_system_shared_memory("r", memory.name, 4096)
    output = triton.InferRequestedOutput("OUTPUT0")
    output.set_shared_memory("r", NBYTES - 4, offset=1024)

    status, words = failed(client.infer, "simple", inputs_in("r"), outputs=[output])

    assert status == "StatusCode.INTERNAL"
    assert "for output 'OUTPUT0' (60 bytes) should be at least 64 bytes to hold the results" in words
    assert not any(memory.read_bytes()[1024:])


def test_a_file_cut_short_is_an_error(client: triton.InferenceServerClient, memory: Path) -> None:
    """A client that shortens its shared memory gets an error for that; the server lives."""
    client.register_system_shared_memory("r", memory.name, 4096)
    os.truncate(memory, NBYTES)

    status, words = failed(client.infer, "simple", inputs_in("r"))

    assert status == "StatusCode.INTERNAL"
    assert "shorter" in words
    assert client.is_server_live()


def test_cuda_shared_memory_is_not_there(client: triton.InferenceServerClient) -> None:
    """As in a Triton without GPUs there are no CUDA regions, none can be made, and removing all is no error."""
    client.unregister_cuda_shared_memory()

    assert not client.get_cuda_shared_memory_status().regions
    status, words = failed(client.register_cuda_shared_memory, "r", b"aGFuZGxl", 0, 8)
    assert status == "StatusCode.INVALID_ARGUMENT"
    assert "GPUs not supported" in words


def test_a_region_in_use_goes_when_its_request_ends(
    models: Path, memory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unregistering a region during a request leaves it until the response is out; then it is gone."""
    monkeypatch.setenv("TRITONSERVER_SERVER_DELAY_GRPC_RESPONSE_SEC", str(DELAY))
    put(memory, SUMS.tobytes() * 2)
    answer: Future[Any] = Future()
    with LocalServer(models, allow_client_shm=True) as server, triton.InferenceServerClient(server.address) as client:
        client.register_system_shared_memory("r", memory.name, 4096)
        started = time.monotonic()
        client.async_infer("simple", inputs_in("r"), lambda result, error: answer.set_result((result, error)))
        threading.Event().wait(DELAY / 2)
        client.unregister_system_shared_memory()
        during = list(client.get_system_shared_memory_status().regions)
        result, error = answer.result(10)
        took = time.monotonic() - started
        after = list(client.get_system_shared_memory_status().regions)

    assert error is None
    np.testing.assert_array_equal(result.as_numpy("OUTPUT0"), 2 * SUMS[None])
    assert (during, after) == (["r"], [])
    assert took >= DELAY
