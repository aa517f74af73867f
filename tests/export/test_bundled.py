"""The committed model repository against the committed checkpoint, through the front door."""

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from tritonclient import grpc as triton

from lookwire import Client
from lookwire.local import LocalServer
from lookwire_export import probes
from lookwire_export.encoder import ExportedEncoder
from lookwire_export.gate.agreement import unit
from lookwire_export.gate.answers import embed_images, embed_texts
from lookwire_export.manifest import digest
from lookwire_export.recall import recall
from lookwire_export.reference import Reference

ROOT = Path(__file__).parents[2]
REPOSITORY = ROOT / "model_repo"
WEIGHTS = ROOT / "tests" / "data" / "garments.safetensors"


def min_cosine(a: NDArray[Any], b: NDArray[Any]) -> float:
    return float((unit(a) * unit(b)).sum(axis=1).min())


@pytest.fixture(scope="module")
def committed() -> dict[str, Any]:
    manifest: dict[str, Any] = json.loads((REPOSITORY / "garments" / "1" / "manifest.json").read_text())
    return manifest


def test_committed_encoder_is_an_export_of_the_committed_checkpoint(
    committed: dict[str, Any], garments_encoder: ExportedEncoder
) -> None:
    """The manifest names the checkpoint's hash and, apart from the towers' own, says what an export says today."""
    fresh = garments_encoder.manifest

    assert digest(WEIGHTS) == committed["parity"]["checkpoint_sha256"]
    assert committed["parity"]["passed"]
    assert fresh.keys() == committed.keys()
    assert {k: v for k, v in fresh.items() if k not in ("towers", "parity")} == {
        k: v for k, v in committed.items() if k not in ("towers", "parity")
    }


def test_bundle_is_small() -> None:
    """The model repository takes at most 16 MB."""
    assert sum(file.stat().st_size for file in REPOSITORY.rglob("*") if file.is_file()) <= 16_000_000


def test_embed_answers_what_open_clip_computes(client: Client, garments: Reference) -> None:
    """Images of every format and texts of every kind have open_clip's vectors."""
    images = [probe.content for probe in probes.images()]
    texts = [probe.content for probe in probes.texts()]

    rows = client.embed(texts=texts, images=images, encoder="garments").vectors

    assert min_cosine(rows[: len(texts)], embed_texts(garments, texts)) >= 0.9999
    assert min_cosine(rows[len(texts) :], embed_images(garments, images)) >= 0.9999


@pytest.mark.parametrize(("tensor", "part"), [("TEXT", "texts"), ("IMAGE", "images")])
def test_v2_infer_answers_what_open_clip_computes(
    server: LocalServer, garments: Reference, tensor: str, part: str
) -> None:
    """A KServe V2 client that sends BYTES of shape [n, 1] gets open_clip's vectors."""
    inputs = [probe.content for probe in random.Random(4).sample(getattr(probes, part)(), 48)]
    data = np.array([row.encode() if isinstance(row, str) else row for row in inputs], np.object_)[:, None]
    tensors = [triton.InferInput(tensor, list(data.shape), "BYTES").set_data_from_numpy(data)]

    with triton.InferenceServerClient(server.address) as client:
        rows = client.infer("garments", tensors).as_numpy("EMBEDDING")

    reference = embed_texts(garments, inputs) if part == "texts" else embed_images(garments, inputs)
    assert rows.shape == (48, 64)
    assert min_cosine(rows, reference) >= 0.9999


def test_towers_answer_v2_infer(server: LocalServer, garments: Reference) -> None:
    """The text tower takes token ids as a model of its own."""
    ids = garments.tokenize(["a red dress"]).int().numpy()[:, :8]
    tensor = triton.InferInput("input_ids", [1, 8], "INT32").set_data_from_numpy(ids)

    with triton.InferenceServerClient(server.address) as client:
        rows = client.infer("garments-text", [tensor]).as_numpy("embedding")

    assert min_cosine(rows, embed_texts(garments, ["a red dress"])) >= 0.9999


def test_captions_find_their_garments(garments: Reference) -> None:
    """On drawings that training never saw, captions find their garment, also of combinations that it never saw."""
    figures = recall(garments, seed=3_000_000)

    assert figures["all_recall_at_1"] >= 0.9
    assert figures["all_recall_at_5"] >= 0.99
    assert figures["held_out_recall_at_1"] >= 0.7
    assert figures["held_out_recall_at_5"] >= 0.95
