"""Embedding through the front door: the same input, the same vector, whatever it is embedded with."""

import asyncio
import re
import urllib.request

import numpy as np
import pytest
from numpy.typing import NDArray
from tritonclient.grpc import InferenceServerClient, InferInput
from tritonclient.utils import InferenceServerException

from lookwire import AsyncClient, Client
from lookwire.local import LocalServer
from tests.server.images import jpeg

TEXTS = [
    f"a {colour} {kind}" for colour in ("red", "dark blue", "very light green") for kind in ("dress", "hat", "coat")
]


def counters(server: LocalServer, model: str) -> tuple[int, int, int, float]:
    """Rows and executions by ModelStatistics, and executions and rows by the batch histogram."""
    with InferenceServerClient(server.address) as triton:
        statistics = triton.get_inference_statistics(model, as_json=True)["model_stats"][0]
    page = urllib.request.urlopen(f"http://{server.metrics_address}/metrics").read().decode()
    series = {
        kind: float(re.search(rf'lookwire_batch_rows_{kind}{{model="{model}",version="1"}} (\S+)', page)[1])  # type: ignore[index]
        for kind in ("count", "sum")
    }
    return (
        int(statistics.get("inference_count", 0)),
        int(statistics.get("execution_count", 0)),
        int(series["count"]),
        series["sum"],
    )


def test_concurrent_calls_share_executions(server: LocalServer, client: Client) -> None:
    """Single-text calls that come while the model is busy share its next executions; every caller gets its own vector."""
    texts = [f"a {TEXTS[number % len(TEXTS)]} number {number}" for number in range(32)]
    bulk = [f"{number}: a long description of a garment " * 20 for number in range(512)]
    one_by_one = np.concatenate([client.embed([text]).vectors for text in texts])
    before = counters(server, "garments-text")

    async def together() -> NDArray[np.float32]:
        async with AsyncClient(server.address) as client:
            busy = asyncio.create_task(client.embed(bulk))
            await asyncio.sleep(0.02)
            answers = await asyncio.gather(*(client.embed([text]) for text in texts))
            await busy
            return np.concatenate([answer.vectors for answer in answers])

    vectors = asyncio.run(together())

    rows, executions, histogram_count, histogram_sum = np.subtract(counters(server, "garments-text"), before)
    assert rows == histogram_sum == 32 + 512
    assert executions == histogram_count
    assert executions <= 16 + 512 / 64
    np.testing.assert_allclose(vectors, one_by_one, atol=1e-5)


def test_vector_does_not_depend_on_company(client: Client) -> None:
    """A text or image alone, in a batch, or among longer texts has the same vector within 1e-5."""
    texts = ["hat", *TEXTS, "a very long description of a garment " * 10, ""]
    images = [jpeg(number) for number in range(5)]

    together = client.embed(texts, images).vectors
    alone = np.concatenate(
        [client.embed([text]).vectors for text in texts] + [client.embed(images=[image]).vectors for image in images]
    )

    np.testing.assert_allclose(together, alone, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, atol=1e-5)


def test_large_request_is_split(client: Client) -> None:
    """An Embed of more inputs than a batch holds is answered whole and in order."""
    texts = [f"{TEXTS[number % len(TEXTS)]} {number % 7}" for number in range(300)]

    vectors = client.embed(texts).vectors

    for number in (0, 63, 64, 150, 299):
        np.testing.assert_allclose(vectors[number], client.embed([texts[number]]).vectors[0], atol=1e-5)


def test_v2_gives_the_same_vectors(server: LocalServer, client: Client) -> None:
    """A stock tritonclient lists, describes and infers TEXT and IMAGE to EMBEDDING: the vectors of Embed."""
    images = [jpeg(number) for number in range(3)]
    expected = client.embed(TEXTS, images).vectors
    encoder = client.get_encoder()
    with InferenceServerClient(server.address) as triton:

        def infer(name: str, contents: list[bytes]) -> NDArray[np.float32]:
            tensor = InferInput(name, [len(contents), 1], "BYTES")
            tensor.set_data_from_numpy(np.array(contents, np.object_).reshape(-1, 1))
            result: NDArray[np.float32] = triton.infer(encoder.name, [tensor]).as_numpy("EMBEDDING")
            return result

        assert triton.is_server_live()
        assert triton.is_server_ready()
        assert triton.is_model_ready(encoder.name)
        assert not triton.is_model_ready("nobody")
        index = {row["name"]: row["state"] for row in triton.get_model_repository_index(as_json=True)["models"]}
        metadata = triton.get_model_metadata(encoder.name)
        config = triton.get_model_config(encoder.name).config
        texts = infer("TEXT", [text.encode() for text in TEXTS])
        pixels = infer("IMAGE", images)

    assert index == {"garments": "READY", "garments-image": "READY", "garments-text": "READY"}
    assert {tensor.name: (tensor.datatype, list(tensor.shape)) for tensor in metadata.inputs} == {
        "TEXT": ("BYTES", [-1, 1]),
        "IMAGE": ("BYTES", [-1, 1]),
    }
    assert config.backend == "encoder"
    np.testing.assert_allclose(np.concatenate([texts, pixels]), expected, atol=1e-5)


def test_towers_are_v2_models(server: LocalServer, client: Client) -> None:
    """A tower answers token ids and pixels over V2, and refuses wrong shapes in Triton's words."""
    with InferenceServerClient(server.address) as triton:
        ids = np.array([[49406, 320, 49407]], np.int32)
        tensor = InferInput("input_ids", ids.shape, "INT32")
        tensor.set_data_from_numpy(ids)
        vector = triton.infer("garments-text", [tensor]).as_numpy("embedding")
        wrong = InferInput("input_ids", [1, 3], "INT64")
        wrong.set_data_from_numpy(ids.astype(np.int64))
        with pytest.raises(InferenceServerException, match="expects 'INT32'") as failure:
            triton.infer("garments-text", [wrong])
        with pytest.raises(InferenceServerException, match="unknown model: 'nobody'"):
            triton.infer("nobody", [tensor])

    assert failure.value.status() == "StatusCode.INVALID_ARGUMENT"
    assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-5)


def test_encoder_describes_itself(client: Client) -> None:
    """GetEncoder shows what decides the vectors, and the record of the comparison with the reference."""
    encoder = client.get_encoder()

    assert client.list_encoders() == [encoder]
    assert re.fullmatch("[0-9a-f]{32}", encoder.fingerprint)
    assert encoder.parity is not None
    assert encoder.parity.passed
    assert {figure.name for figure in encoder.parity.figures} >= {
        "image_graph_min_cosine",
        "text_graph_min_cosine",
        "image_end_to_end_min_cosine",
        "text_end_to_end_min_cosine",
        "batch_max_difference",
    }
    for figure in encoder.parity.figures:
        assert figure.at_least is None or figure.value >= figure.at_least
        assert figure.at_most is None or figure.value <= figure.at_most
