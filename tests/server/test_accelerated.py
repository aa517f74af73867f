"""An encoder whose towers OpenVINO executes, through the front door."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from tritonclient.grpc import InferenceServerClient, InferInput
from tritonclient.utils import InferenceServerException

from lookwire import AsyncClient, Client
from lookwire.local import LocalServer
from tests.accelerated import missing, write_accelerated
from tests.server.images import jpeg

TEXTS = [
    f"a {colour} {kind}" for colour in ("red", "dark blue", "very light green") for kind in ("dress", "hat", "coat")
]
IMAGES = [jpeg(index) for index in range(3)]


@pytest.fixture(scope="module")
def accelerated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalServer]:
    if reason := missing():
        pytest.skip(reason)
    root = write_accelerated(tmp_path_factory.mktemp("accelerated") / "models")
    with LocalServer(root, embedding_cache_bytes=0) as server:
        yield server


def test_vectors_are_those_of_bfloat16(accelerated: LocalServer, client: Client) -> None:
    """The vectors have a cosine of 0.999 with those in float32, and are others."""
    exact = client.embed(TEXTS, IMAGES).vectors
    with Client(accelerated.address) as bf16:
        near = bf16.embed(TEXTS, IMAGES).vectors
    cosines = (exact * near).sum(axis=1)
    assert cosines.min() >= 0.999
    assert (np.abs(exact - near).max(axis=1) > 1e-6).all()


def test_both_lanes_at_once(accelerated: LocalServer) -> None:
    """64 calls at once, single texts and images among bulk calls, are answered with the vectors of calls one by one."""
    texts = [f"a {TEXTS[number % len(TEXTS)]} number {number}" for number in range(64)]

    async def embedded(client: AsyncClient, number: int) -> tuple[list[int], np.ndarray]:
        if number % 8 == 0:
            return list(range(64)), (await client.embed(texts)).vectors
        if number % 8 == 4:
            return [64, 65, 66], (await client.embed([], IMAGES)).vectors
        return [number], (await client.embed([texts[number]])).vectors

    async def together() -> list[tuple[list[int], np.ndarray]]:
        async with AsyncClient(accelerated.address) as client:
            return await asyncio.gather(*(embedded(client, number) for number in range(64)))

    with Client(accelerated.address) as client:
        alone = np.concatenate([client.embed([text]).vectors for text in texts] + [client.embed([], IMAGES).vectors])
    for rows, vectors in asyncio.run(together()):
        np.testing.assert_allclose(vectors, alone[rows], atol=1e-5)


@pytest.mark.parametrize("ids", [[0, 49408], [-49409, 1], [2**31 - 1, 1]])
def test_token_id_that_is_none(accelerated: LocalServer, ids: list[int]) -> None:
    """A token id outside the vocabulary is refused in words, where a caller of the tower sends one."""
    with InferenceServerClient(accelerated.address) as triton:
        tensor = InferInput("input_ids", [1, 2], "INT32")
        tensor.set_data_from_numpy(np.array([ids], np.int32))
        with pytest.raises(InferenceServerException, match=r"must be from 0 to 49407"):
            triton.infer("garments-text", [tensor])


def test_more_ids_than_positions(accelerated: LocalServer) -> None:
    """Texts far longer than the tower has positions for fail, and the server lives on."""
    with InferenceServerClient(accelerated.address) as triton:
        for length in (78, 50_000):
            tensor = InferInput("input_ids", [1, length], "INT32")
            tensor.set_data_from_numpy(np.arange(length, dtype=np.int32)[np.newaxis] % 49408)
            with pytest.raises(InferenceServerException, match="failed"):
                triton.infer("garments-text", [tensor])
        assert triton.is_model_ready("garments-text")


@pytest.mark.parametrize(
    ("precision", "towers", "says"),
    [
        ("fp32", ("image", "text"), "garments-image/config.pbtxt asks for the execution accelerator 'openvino'"),
        ("bf16", ("image",), "garments-text/config.pbtxt does not ask for the execution accelerator 'openvino'"),
    ],
)
def test_precision_that_was_not_compared(tmp_path: Path, precision: str, towers: tuple[str, ...], says: str) -> None:
    """Towers in another precision than the manifest's are refused, by the config's name; ungated ones are served."""
    if reason := missing():
        pytest.skip(reason)
    root = write_accelerated(tmp_path / "models", precision, towers)
    with pytest.raises(RuntimeError, match=says):
        LocalServer(root).start()
    with LocalServer(root, allow_ungated=True) as server, Client(server.address) as client:
        assert client.embed(["a red dress"]).vectors.shape == (1, 64)
