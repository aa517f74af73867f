"""Exports that OpenVINO computes in bfloat16."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from tritonclient.grpc import InferenceServerClient, InferInput
from tritonclient.utils import InferenceServerException

from lookwire import Client
from lookwire.local import LocalServer
from lookwire_export import __main__ as command
from lookwire_export import openvino
from lookwire_export.encoder import export
from lookwire_export.gate import measure
from lookwire_export.reference import ExportError, Reference
from tests.export.conftest import TINY, WEIGHTS

WORDS = ["red", "blue", "green", "black", "white", "dress", "shirt", "hat", "coat", "plain", "striped", "long", "short"]


@pytest.fixture
def bf16() -> None:
    """Skips the test where OpenVINO or the CPU's bfloat16 is missing."""
    try:
        openvino.core()
    except ExportError as error:
        pytest.skip(str(error))


@pytest.mark.usefixtures("bf16")
def test_export_passes_and_is_served(garments: Reference, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The command exports in bf16; the record says so, and a server that insists on one gives vectors in bfloat16."""
    arguments = ["lookwire-garments", "--pretrained", str(WEIGHTS), "--repo", str(tmp_path), "--name", "mine"]
    assert command.main([*arguments, "--precision", "bf16"]) == 0, capsys.readouterr().err

    manifest = json.loads((tmp_path / "mine/1/manifest.json").read_text())
    figures = {figure["name"]: figure for figure in manifest["parity"]["figures"]}
    texts = ["a red dress", "", "Trousers, 2 for 30"]
    with LocalServer(tmp_path) as server, Client(server.address) as client:
        served = client.embed(texts=texts, encoder="mine").vectors
    exact = garments.encode_text(garments.tokenize(texts)).numpy()
    cosines = (served * exact).sum(axis=1) / np.linalg.norm(exact, axis=1)
    assert manifest["precision"] == "bf16"
    assert figures["text_graph_min_cosine"]["at_least"] == 0.999
    assert figures["text_graph_min_cosine"]["value"] < 0.999999
    assert figures["batch_max_difference"]["value"] <= 1e-5
    assert 0.999 <= cosines.min() < 0.999999


@pytest.mark.usefixtures("bf16")
def test_gate_measures_what_is_served(tiny: Reference, tmp_path: Path) -> None:
    """A manifest that says bf16 over towers that onnxruntime executes does not pass for bf16: graph and server differ."""
    encoder = export(tiny, TINY, "bf16", tmp_path)
    exact = measure(tiny, encoder)
    for tower in ("image", "text"):
        config = encoder.root / f"{TINY}-{tower}" / "config.pbtxt"
        config.write_text(config.read_text().partition("optimization")[0])
    other = measure(tiny, encoder)

    def deviation(report: object) -> float:
        (value,) = (figure.value for figure in report.figures if figure.name == "text_input_max_deviation")  # type: ignore[attr-defined]
        return float(value)

    assert exact.passed
    assert deviation(exact) < 1e-5 < deviation(other)


@pytest.mark.usefixtures("bf16")
def test_a_text_has_one_vector_whatever_the_longest_of_its_batch(garments: Reference, tmp_path: Path) -> None:
    """Texts of all lengths have the same vectors alone and beside one that is as long as the context."""
    export(garments, "garments", "bf16", tmp_path)
    rng = np.random.default_rng(1)
    texts = [" ".join(rng.choice(WORDS, words)) for words in rng.integers(1, 62, 600)]
    longest = " ".join(rng.choice(WORDS, 75))
    with LocalServer(tmp_path, allow_ungated=True, embedding_cache_bytes=0) as server, Client(server.address) as client:
        alone = np.concatenate([client.embed([text]).vectors for text in texts])
        batches = [client.embed([*texts[start : start + 12], longest]) for start in range(0, len(texts), 12)]
    together = np.concatenate([batch.vectors[:-1] for batch in batches])

    np.testing.assert_allclose(together, alone, rtol=0, atol=1e-5)


@pytest.mark.usefixtures("bf16")
def test_ids_that_are_no_text_are_refused(tiny: Reference, tmp_path: Path) -> None:
    """Ids outside the vocabulary are refused in words, and more ids than positions fail."""
    export(tiny, TINY, "bf16", tmp_path)
    with LocalServer(tmp_path, allow_ungated=True) as server, InferenceServerClient(server.address) as client:
        for ids, says in (([49408], "from 0 to 49407"), ([-49409], "from 0 to 49407"), ([1] * 78, "the cause is in")):
            tensor = InferInput("input_ids", [1, len(ids)], "INT32")
            tensor.set_data_from_numpy(np.array([ids], np.int32))
            with pytest.raises(InferenceServerException, match=says):
                client.infer(f"{TINY}-text", [tensor])


def test_without_openvino(tiny: Reference, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where OpenVINO is not installed nothing is written, and the error says what to install."""
    monkeypatch.setitem(sys.modules, "openvino", None)
    monkeypatch.setitem(sys.modules, "openvino_telemetry", None)
    monkeypatch.setattr(openvino, "core", openvino.core.__wrapped__)

    with pytest.raises(ExportError, match=r"pip install 'lookwire\[openvino\]'"):
        export(tiny, "tiny", "bf16", tmp_path)

    assert list(tmp_path.iterdir()) == []


def test_on_a_cpu_without_bfloat16(tiny: Reference, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the CPU has no instructions for bfloat16 nothing is written, and the error says so."""

    class Core:
        def get_property(self, device: str, name: str) -> list[str]:
            return ["FP32", "INT8"]

    monkeypatch.setitem(sys.modules, "openvino", type("openvino", (), {"Core": Core}))
    monkeypatch.setitem(sys.modules, "openvino_telemetry", None)
    monkeypatch.setattr(openvino, "core", openvino.core.__wrapped__)

    with pytest.raises(ExportError, match="instructions for bfloat16"):
        export(tiny, "tiny", "bf16", tmp_path)

    assert list(tmp_path.iterdir()) == []
