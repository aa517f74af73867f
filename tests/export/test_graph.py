import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from lookwire import Client
from lookwire.local import LocalServer
from lookwire_export import graph
from lookwire_export.encoder import ExportedEncoder, export
from lookwire_export.manifest import digest
from lookwire_export.reference import ExportError, Reference
from tests.export.test_towers import token_ids, with_visual

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def encoder(tiny: Reference, tmp_path_factory: pytest.TempPathFactory) -> ExportedEncoder:
    """The tiny model in fp32, each graph in one file."""
    return export(tiny, "tiny", "fp32", tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def external(tiny: Reference, tmp_path_factory: pytest.TempPathFactory) -> ExportedEncoder:
    """The same, but as if its text tower were too large for one file."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(graph, "ONE_FILE_BYTES", 1_000_000)
        return export(tiny, "tiny", "fp32", tmp_path_factory.mktemp("external"))


@pytest.mark.parametrize("batch", [1, 2, 3, 7])
def test_image_graph_is_open_clip_at_any_batch(encoder: ExportedEncoder, tiny: Reference, batch: int) -> None:
    """Raw bytes through the graph are normalised pixels through open_clip, at any batch size."""
    pixels = torch.randint(0, 256, (batch, 32, 32, 3), dtype=torch.uint8)
    mean, std = torch.tensor(tiny.image.mean), torch.tensor(tiny.image.std)

    rows = run(encoder.image_graph, "pixels", pixels)

    with torch.no_grad():
        reference = tiny.model.encode_image(((pixels / 255 - mean) / std).permute(0, 3, 1, 2), normalize=True)
    assert rows.dtype == np.float32
    assert rows.shape == (batch, 24)
    assert np.abs(rows - reference.numpy()).max() < 1e-5


@pytest.mark.parametrize("batch", [1, 2, 3, 7])
@pytest.mark.parametrize("length", [2, 3, 8, 76, 77])
def test_text_graph_is_open_clip_at_any_batch_and_length(
    encoder: ExportedEncoder, tiny: Reference, batch: int, length: int
) -> None:
    """Ids cut to their longest text give what open_clip gives for the same ids padded to 77."""
    ids = token_ids(length, batch)

    rows = run(encoder.text_graph, "input_ids", ids[:, :length])

    with torch.no_grad():
        reference = tiny.model.encode_text(ids.long(), normalize=True)
    assert rows.shape == (batch, 24)
    assert np.abs(rows - reference.numpy()).max() < 1e-5


def test_padding_is_not_computed(encoder: ExportedEncoder) -> None:
    """The layers see the tokens up to each text's end only, and what stands after that changes no bit of the vectors."""
    model = onnx.load(encoder.text_graph)
    layer = next(node for node in model.graph.node if node.name == "text.blocks.0.mlp.c_fc")
    model.graph.output.append(onnx.helper.make_empty_tensor_value_info(layer.output[0]))
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    ids = np.full((3, 20), 7, np.int32)
    ends = [1, 12, 19]
    ids[range(3), ends] = 49407

    rows, tokens = session.run(None, {"input_ids": ids})
    ids[0, 2:], ids[1, 13:] = 0, 11

    assert len(tokens) == sum(ends) + len(ends)
    assert np.array_equal(session.run(["embedding"], {"input_ids": ids})[0], rows)


def test_graphs_are_for_servers_of_onnxruntime_1_22(encoder: ExportedEncoder) -> None:
    """The graphs name their batch and length, and carry an IR version and opset that onnxruntime 1.22 reads."""
    image, text = onnx.load(encoder.image_graph), onnx.load(encoder.text_graph)

    for model in (image, text):
        onnx.checker.check_model(model, full_check=True)
        assert model.ir_version == 10
        assert {opset.domain: opset.version for opset in model.opset_import} == {"": 18}
        assert [output.name for output in model.graph.output] == ["embedding"]
    assert axes(image) == ["batch", 32, 32, 3]
    assert axes(text) == ["batch", "length"]


def test_what_is_computed_from_the_end_of_text_is_an_index(encoder: ExportedEncoder) -> None:
    """The end of text is found among 32-bit ids: no graph searches 64-bit integers, which some devices cannot."""
    model = onnx.shape_inference.infer_shapes(onnx.load(encoder.text_graph))
    types = {value.name: value.type.tensor_type.elem_type for value in (*model.graph.value_info, *model.graph.input)}

    searched = [types[node.input[0]] for node in model.graph.node if node.op_type == "ArgMax"]

    assert searched == [onnx.TensorProto.INT32]


def test_graphs_say_nothing_of_the_machine_that_made_them(encoder: ExportedEncoder) -> None:
    """No path of a source file is in a graph."""
    for file in (encoder.image_graph, encoder.text_graph):
        content = file.read_bytes()
        assert b".py" not in content
        assert str(ROOT).encode() not in content


def test_what_is_too_large_for_one_file_is_mapped_from_another(
    external: ExportedEncoder, encoder: ExportedEncoder
) -> None:
    """Weights above the limit lie in model.onnx.data, large ones where memory pages begin; the manifest pins that file."""
    data = external.text_graph.with_name("model.onnx.data")
    model = onnx.load(external.text_graph, load_external_data=False)
    places = [{entry.key: entry.value for entry in weight.external_data} for weight in model.graph.initializer]

    assert not external.image_graph.with_name("model.onnx.data").exists()
    assert external.text_graph.stat().st_size < 200_000 < 3_000_000 < data.stat().st_size
    assert {place["location"] for place in places if place} == {"model.onnx.data"}
    assert all(int(place["offset"]) % 4096 == 0 for place in places if place and int(place["length"]) > 1 << 20)
    assert external.manifest["towers"]["text"]["data_sha256"] == digest(data)
    assert external.manifest["towers"]["image"]["data_sha256"] is None
    ids = token_ids(20)
    assert (run(external.text_graph, "input_ids", ids) == run(encoder.text_graph, "input_ids", ids)).all()


def test_weights_in_a_file_of_their_own_are_served(external: ExportedEncoder, tiny: Reference) -> None:
    """A server loads such an encoder, and gives the reference's vectors."""
    with LocalServer(external.root, allow_ungated="true") as server, Client(server.address) as client:
        rows = client.embed(["a red dress", "38"], encoder="tiny").vectors

    with torch.no_grad():
        reference = tiny.model.encode_text(tiny.tokenize(["a red dress", "38"]), normalize=True)
    assert np.abs(rows - reference.numpy()).max() < 1e-5


def test_an_export_that_was_stopped_goes_on(tiny: Reference, encoder: ExportedEncoder, tmp_path: Path) -> None:
    """A graph that is there is kept as it is; one that was half written is written again."""
    told: list[str] = []
    first = export(tiny, "tiny", "fp32", tmp_path, progress=told.append)
    assert told == ["image graph", "text graph"]
    image, text = first.image_graph.stat().st_mtime_ns, first.text_graph.read_bytes()
    first.text_graph.unlink()
    (first.text_graph.parent / ".partial").mkdir()
    (first.text_graph.parent / ".partial" / "model.onnx").write_bytes(text[:1000])

    again = export(tiny, "tiny", "fp32", tmp_path, progress=told.append)

    assert told[2:] == ["text graph"]
    assert again.image_graph.stat().st_mtime_ns == image
    assert again.text_graph.read_bytes() == text
    assert again.manifest == first.manifest == encoder.manifest
    assert sorted(file.name for file in again.text_graph.parent.iterdir()) == [".sha256", "model.onnx"]


@pytest.mark.parametrize("damaged", ["model.onnx", "model.onnx.data"])
def test_a_graph_that_is_not_whole_is_written_again(
    tiny: Reference, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damaged: str
) -> None:
    """Half a file, of the graph or of its weights, as a full disk or a loss of power leaves it, is not gone on from."""
    monkeypatch.setattr(graph, "ONE_FILE_BYTES", 1_000_000)
    first = export(tiny, "tiny", "fp32", tmp_path)
    file = first.text_graph.with_name(damaged)
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    told: list[str] = []

    again = export(tiny, "tiny", "fp32", tmp_path, progress=told.append)

    assert told == ["text graph"]
    assert file.read_bytes() == whole
    assert again.manifest == first.manifest


def test_integers_are_made_again_from_what_is_whole(tiny: Reference, tmp_path: Path) -> None:
    """Of an int8 export, what is damaged is written again, be it in integers or what those are made from."""
    first = export(tiny, "tiny", "int8", tmp_path)
    for file in (first.image_graph, first.fp32.text_graph):
        file.write_bytes(b"")
    told: list[str] = []

    again = export(tiny, "tiny", "int8", tmp_path, progress=told.append)

    assert told == ["text graph", "image graph in int8"]
    assert again.manifest == first.manifest


def test_content_is_on_the_disk_before_it_has_its_name(
    tiny: Reference, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every file is flushed before it is renamed: else a loss of power can leave the name of a file that is empty."""
    flushed: set[int] = set()
    early: list[str] = []

    def replaced(source: Path, target: Path) -> None:
        if source.stat().st_ino not in flushed:
            early.append(target.name)
        source.rename(target)

    def flush(descriptor: int, own: Callable[[int], None] = os.fsync) -> None:
        flushed.add(os.fstat(descriptor).st_ino)
        own(descriptor)

    monkeypatch.setattr("os.fsync", flush)
    monkeypatch.setattr("os.replace", replaced)

    export(tiny, "tiny", "fp32", tmp_path)

    assert early == []
    assert flushed


def test_manifest_is_written_with_and_without_the_record(tiny: Reference, tmp_path: Path) -> None:
    """manifest.json has no parity record until there is one; everything else stays."""
    encoder = export(tiny, "tiny", "fp32", tmp_path)
    file = tmp_path / "tiny" / "1" / "manifest.json"
    assert json.loads(file.read_text()) == encoder.manifest
    assert encoder.manifest["parity"] is None

    recorded = encoder.with_parity({"passed": True})

    assert json.loads(file.read_text()) == recorded.manifest == encoder.manifest | {"parity": {"passed": True}}


def test_config_of_a_text_tower_says_which_lengths_it_takes(
    encoder: ExportedEncoder, siglip: Reference, tmp_path: Path
) -> None:
    """Texts that may be cut have any length, and are padded to the longest of a batch; others have the context length."""
    fixed = export(siglip, "siglip", "fp32", tmp_path)

    cut = (encoder.root / "tiny-text" / "config.pbtxt").read_text()
    assert "dims: [ -1 ]" in cut
    assert "pad_value" in cut
    config = (fixed.root / "siglip-text" / "config.pbtxt").read_text()
    assert "dims: [ 16 ]" in config
    assert "pad_value" not in config
    assert axes(onnx.load(fixed.text_graph)) == ["batch", 16]


@pytest.mark.parametrize(
    ("name", "precision", "reason"), [("Tiny", "fp32", "small letters"), ("t", "fp8", "fp16, int8")]
)
def test_wrong_words_are_refused_before_any_work(
    tiny: Reference, tmp_path: Path, name: str, precision: str, reason: str
) -> None:
    """A name that no model may have, and a precision that there is not, leave nothing behind."""
    with pytest.raises(ExportError, match=reason):
        export(tiny, name, precision, tmp_path)
    assert list(tmp_path.iterdir()) == []


class ByTheBatch(nn.Module):
    """Computes for the batch that it was traced with only."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The mean colours, by an index whose length is fixed."""
        return x.mean(dim=(2, 3))[torch.arange(len(x))]


class ByTheContent(nn.Module):
    """Computes something else for some pixels."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The mean colours, or their negative."""
        rows = x.mean(dim=(2, 3))
        return rows if rows.sum() > 0 else -rows


@pytest.mark.parametrize(
    ("visual", "reason"),
    [(ByTheBatch, "for any batch: .* axis 0 of pixels must be 2"), (ByTheContent, "data-dependent expression [^\n]*$")],
)
def test_what_no_graph_computes_is_refused(
    tiny: Reference, tmp_path: Path, visual: type[nn.Module], reason: str
) -> None:
    """A tower that fits one size of batch only, or that branches on its input, is refused with its name and the reason."""
    reference = replace(with_visual(tiny, visual()), architecture="Odd-B-32")

    with pytest.raises(ExportError, match=f"^Odd-B-32: the image tower cannot be written as an ONNX graph.*{reason}"):
        export(reference, "odd", "fp32", tmp_path)
    assert list(tmp_path.iterdir()) == []


def run(file: Path, name: str, rows: Any) -> NDArray[Any]:
    """The embeddings that a graph gives."""
    return np.asarray(onnxruntime.InferenceSession(file).run(["embedding"], {name: rows.numpy()})[0])


def axes(model: Any) -> list[str | int]:
    """The names, or the sizes, of the input's axes."""
    return [axis.dim_param or axis.dim_value for axis in model.graph.input[0].type.tensor_type.shape.dim]
