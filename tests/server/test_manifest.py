"""The manifest decides: what it pins, what it says of texts, and what it names another encoder."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from lookwire import Client
from lookwire.local import LocalServer
from lookwire_server.encoding.manifest import Manifest
from tests.conftest import MODEL_REPOSITORY
from tests.models.repositories import graph

MANIFEST = "garments/1/manifest.json"
TOWER = "garments-text/1/model.onnx"


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    return Path(shutil.copytree(MODEL_REPOSITORY, tmp_path / "models"))


def bundled() -> dict[str, Any]:
    manifest: dict[str, Any] = json.loads((MODEL_REPOSITORY / MANIFEST).read_text())
    return manifest


def write(repository: Path, manifest: dict[str, Any]) -> None:
    (repository / MANIFEST).write_text(json.dumps(manifest))


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def failure(repository: Path) -> str:
    """What the start of a server says that ends at once."""
    with pytest.raises(RuntimeError) as failure, LocalServer(repository):
        pass
    return str(failure.value)


@pytest.mark.parametrize(
    ("version", "remedy"),
    [(1, "older lookwire-export: export the encoder again"), (3, "newer lookwire-export: update the server")],
)
def test_manifest_of_another_schema_is_refused(repository: Path, version: int, remedy: str) -> None:
    """A manifest that an older or newer export wrote is refused by its schema, with what to do, whatever else is in it."""
    write(repository, {"schema_version": version, "text": {"bos_id": 49406}})

    words = failure(repository)

    assert f"schema_version is {version}, this server reads 2" in words
    assert remedy in words
    assert "bos_id" not in words


def test_weights_beside_the_graph_are_pinned(repository: Path) -> None:
    """An encoder whose tower keeps its weights in a file of their own is served, and refused once that file is another."""
    tower, data = repository / TOWER, repository / f"{TOWER}.data"
    onnx.save(onnx.load(tower), tower, save_as_external_data=True, location=data.name)
    manifest = bundled()
    manifest["towers"]["text"] |= {"sha256": digest(tower), "data_sha256": digest(data)}
    write(repository, manifest)

    with LocalServer(repository) as server, Client(server.address) as client:
        assert client.embed(["a hat"]).vectors.shape == (1, 64)
    with data.open("r+b") as file:
        file.seek(1_000_000)
        file.write(b"\x12\x34")

    assert f"pinned to another file than {data}" in failure(repository)


def test_missing_weights_are_named(repository: Path) -> None:
    """A manifest that pins weights which are not there names the file."""
    manifest = bundled()
    manifest["towers"]["text"]["data_sha256"] = "0" * 64
    write(repository, manifest)

    assert f"pinned to {repository / TOWER}.data, which does not exist" in failure(repository)


def test_context_without_room_for_special_tokens_is_refused(repository: Path) -> None:
    """A context length that begin and end alone exceed is refused with both numbers."""
    tokenizer = repository / "garments/1/tokenizer.json"
    whole = json.loads(tokenizer.read_text())
    whole["post_processor"]["single"] *= 2
    whole["post_processor"]["single"].pop(1)
    tokenizer.write_text(json.dumps(whole))
    manifest = bundled()
    manifest["text"] |= {"context_length": 3, "tokenizer_sha256": digest(tokenizer)}
    write(repository, manifest)

    assert "context_length 3 has no room for the 4 special tokens" in failure(repository)


BEGIN, A, END = 49406, 320, 49407


@pytest.mark.parametrize(
    ("rules", "ids"),
    [
        ({"padding": "longest", "pad_id": 7}, [BEGIN, A, END]),
        ({"padding": "max_length", "pad_id": 7}, [BEGIN, A, END] + [7] * 74),
        ({"padding": "max_length", "pad_id": 7, "context_length": 16}, [BEGIN, A, END] + [7] * 13),
        ({"padding": "longest", "pad_id": 7, "replace": [[END, 2], [A, 11]]}, [BEGIN, 11, 2]),
        ({"padding": "longest", "pad_id": 7, "replace": [[7, 9]]}, [BEGIN, A, END]),
    ],
)
def test_texts_are_padded_and_replaced_as_the_manifest_says(
    repository: Path, rules: dict[str, Any], ids: list[int]
) -> None:
    """The tower gets the ids with those replaced that the rules name, padded to the whole context only where the rules say so."""
    onnx.save(sum_of_ids(), repository / TOWER)
    manifest = bundled()
    manifest["towers"]["text"]["sha256"] = digest(repository / TOWER)
    write(repository, manifest | {"text": manifest["text"] | rules})

    with LocalServer(repository) as server, Client(server.address) as client:
        vector = client.embed(["a"]).vectors[0]

    assert vector.tolist() == np.eye(64)[sum(ids) % 64].tolist()


def sum_of_ids() -> onnx.ModelProto:
    """A text tower whose vector has its one at the sum of the ids, padding included, modulo 64."""
    return graph(
        [
            ("CastLike", ["input_ids", "modulus"], ["wide"]),
            ("ReduceSum", ["wide", "axes"], ["sum"]),
            ("Mod", ["sum", "modulus"], ["rest"]),
            ("Squeeze", ["rest", "axes"], ["place"]),
            ("Gather", ["units", "place"], ["embedding"]),
        ],
        {"input_ids": (TensorProto.INT32, ["batch", "length"])},
        {"embedding": (TensorProto.FLOAT, ["batch", 64])},
        {"axes": np.array([1]), "modulus": np.array(64), "units": np.eye(64, dtype=np.float32)},
    )


@pytest.mark.parametrize(
    ("part", "changes"),
    [
        ("image", {"crop": "floor"}),
        ("image", {"convert_rgb": "before_resize"}),
        ("image", {"interpolation": "bilinear"}),
        ("text", {"clean": "canonicalize"}),
        ("text", {"padding": "max_length"}),
        ("text", {"pad_id": 1}),
        ("text", {"replace": [[3, 0]]}),
        ("text", {"tokenizer_sha256": "0" * 64}),
        ("towers", {"image": {"model": "m", "version": 1, "sha256": "0" * 64, "data_sha256": None}}),
        ("towers", {"image": bundled()["towers"]["image"] | {"data_sha256": "0" * 64}}),
    ],
)
def test_whatever_decides_a_vector_is_in_the_fingerprint(part: str, changes: dict[str, Any]) -> None:
    """Two encoders whose pixels, ids or weights differ have different fingerprints."""
    manifest = bundled()
    other = manifest | {part: manifest[part] | changes}

    assert Manifest.model_validate(other).fingerprint() != Manifest.model_validate(manifest).fingerprint()


def test_what_decides_no_vector_is_not_in_the_fingerprint() -> None:
    """Words, scores and the parity record may change; the fingerprint stays."""
    manifest = bundled()
    other = manifest | {"description": "x", "logit_scale": 1.0, "score": "sigmoid", "parity": None, "precision": "x"}

    assert Manifest.model_validate(other).fingerprint() == Manifest.model_validate(manifest).fingerprint()


def test_bf16_is_another_encoder() -> None:
    """The towers of bf16 are the files of fp32, executed otherwise: the fingerprint tells them apart."""
    fp32, bf16 = (Manifest.model_validate(bundled() | {"precision": name}) for name in ("fp32", "bf16"))

    assert fp32.fingerprint() != bf16.fingerprint()
