import copy
import logging
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from lookwire_export import graph, precision, probes
from lookwire_export.encoder import ExportedEncoder, export
from lookwire_export.gate.answers import image_answers, text_answers
from lookwire_export.reference import ExportError, Reference
from lookwire_export.towers import image_tower, text_tower
from tests.export.test_towers import with_visual

KEPT = ("image.blocks.1.mlp.c_proj", "text.blocks.0.query")


@pytest.fixture(scope="module")
def encoders(garments: Reference, tmp_path_factory: pytest.TempPathFactory) -> dict[str, ExportedEncoder]:
    """The bundled model in each precision that has graphs of its own; in int8 two layers are left in fp32."""
    return {
        name: export(
            garments, "garments", name, tmp_path_factory.mktemp(name), keep_fp32=KEPT if name == "int8" else ()
        )
        for name in ("fp32", "fp16", "int8")
    }


@pytest.fixture(scope="module")
def small(tiny: Reference, tmp_path_factory: pytest.TempPathFactory) -> ExportedEncoder:
    """The tiny model in int8."""
    return export(tiny, "tiny", "int8", tmp_path_factory.mktemp("small"))


@pytest.mark.parametrize(("name", "at_least"), [("fp32", 0.999999), ("fp16", 0.99999), ("int8", 0.99)])
def test_precision_agrees_with_the_reference(
    encoders: dict[str, ExportedEncoder], garments: Reference, name: str, at_least: float
) -> None:
    """Drawings, photographs and captions have the reference's vectors: this checkpoint's weights are half values."""
    images = image_answers(garments, probes.images(garments.image.size)[:60], lambda _: None)
    texts = text_answers(garments, probes.texts(garments.text.context_length)[:60], lambda _: None)

    image_rows = run(encoders[name].image_graph, "pixels", images.inputs)
    text_rows = run(encoders[name].text_graph, "input_ids", texts.inputs)

    assert min_cosine(image_rows, images.vectors) >= at_least
    assert min_cosine(text_rows, texts.vectors) >= at_least


def test_precisions_take_less_room(encoders: dict[str, ExportedEncoder]) -> None:
    """Stored as halves a graph takes half the bytes; in int8 a third, and half where it is mostly a table."""
    image = {name: encoder.image_graph.stat().st_size for name, encoder in encoders.items()}
    text = {name: encoder.text_graph.stat().st_size for name, encoder in encoders.items()}

    assert image["fp16"] < 0.53 * image["fp32"]
    assert text["fp16"] < 0.52 * text["fp32"]
    assert image["int8"] < 0.36 * image["fp32"]
    assert text["int8"] < 0.51 * text["fp32"]


def test_halves_are_cast_before_anything_is_computed(encoders: dict[str, ExportedEncoder]) -> None:
    """Every half goes through a Cast to float32; the tables of words and places are not cast whole, but what was looked up."""
    written = onnx.load(encoders["fp16"].text_graph).graph
    halves = {i.name: i for i in written.initializer if i.data_type == onnx.TensorProto.FLOAT16}
    users = [node for node in written.node if set(node.input) & set(halves)]
    tables = [node for node in users if node.op_type == "Gather"]
    rows = [node for table in tables for node in written.node if table.output[0] in node.input]

    assert [list(halves[table.input[0]].dims) for table in tables] == [[49408, 64], [77, 64]]
    assert {node.op_type for node in users} == {"Cast", "Gather"}
    assert [node.op_type for node in rows] == ["Cast", "Cast"]
    assert not any(
        i.data_type == onnx.TensorProto.FLOAT and np.prod(i.dims) >= precision.SMALL for i in written.initializer
    )


def test_convolution_of_the_pixels_stays_in_full(encoders: dict[str, ExportedEncoder]) -> None:
    """The weights that mean and std were folded into are no half values, and are not made ones."""
    for name in ("fp16", "int8"):
        written = onnx.load(encoders[name].image_graph).graph
        (convolution,) = [node for node in written.node if node.op_type == "Conv"]
        (weight,) = [i for i in written.initializer if i.name == convolution.input[1]]
        assert weight.data_type == onnx.TensorProto.FLOAT


class Wide(nn.Module):
    """Two convolutions, the second of so many channels that its bias is large, too."""

    def __init__(self) -> None:
        super().__init__()
        self.patch, self.mix = nn.Conv2d(3, 8, 16, 16), nn.Conv2d(8, precision.SMALL, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Features of the whole image."""
        return self.mix(self.patch(x)).mean(dim=(2, 3))


def test_other_convolutions_are_stored_as_halves(tiny: Reference) -> None:
    """Only the convolution of the pixels stays in full: another's weights become halves, and so does its large bias."""
    model = graph.image_graph(image_tower(with_visual(tiny, Wide())), tiny.image.size)

    precision.store_half(model)

    stored = {weight.name: weight.dtype.name for weight in model.graph.initializers.values()}
    assert stored["visual.patch.weight"] == "FLOAT"
    assert stored["visual.mix.weight"] == stored["visual.mix.bias"] == "FLOAT16"


def test_weights_that_no_half_can_hold_stay_in_full(tiny: Reference) -> None:
    """One value above the range of halves keeps its weights in float32; infinite ones, as masks have, do not."""
    tower = text_tower(tiny)
    with torch.no_grad():
        tower.tokens = copy.deepcopy(tower.tokens)
        tower.tokens.weight[7, 3] = 70_000
    model = graph.text_graph(tower, tiny.text.context_length)

    precision.store_half(model)

    stored = {weight.name: weight.dtype.name for weight in model.graph.initializers.values()}
    assert stored["tokens.weight"] == "FLOAT"
    assert stored["mask"] == "FLOAT16"


def test_layers_are_named_after_the_model_in_the_order_of_execution(encoders: dict[str, ExportedEncoder]) -> None:
    """A layer's name says its tower, its block and what it is there; every product with weights is one."""
    image = precision.layers(encoders["int8"].fp32.image_graph)
    text = precision.layers(encoders["int8"].fp32.text_graph)
    block = ["query", "key", "value", "out", "mlp.c_fc", "mlp.c_proj"]

    assert image[:7] == [*(f"image.blocks.0.{part}" for part in block), "image.blocks.1.query"]
    assert text[-2:] == ["text.blocks.2.mlp.c_proj", "text.projection"]
    assert len(set(image)) == len(image)


def test_layers_of_other_models_are_named_too(siglip: Reference, tmp_path: Path) -> None:
    """Towers that are computed by their own modules have the names of those."""
    graph.save(graph.image_graph(image_tower(siglip), siglip.image.size), tmp_path / "model.onnx")

    layers = precision.layers(tmp_path / "model.onnx")

    assert layers[0] == "image.visual.encoder.layers.0.self_attn.q_proj"
    assert "image.visual.encoder.layers.1.mlp.fc2" in layers


def test_named_layers_stay_in_fp32_and_only_they(encoders: dict[str, ExportedEncoder]) -> None:
    """int8 computes every layer in integers but those that were named, which the manifest lists."""
    encoder = encoders["int8"]

    for tower, kept, file in (("image", KEPT[0], encoder.image_graph), ("text", KEPT[1], encoder.text_graph)):
        names = precision.layers(encoder.fp32.graph(tower))
        nodes = onnx.load(file).graph.node
        assert precision.layers(file) == [kept]
        assert sum(node.op_type == "MatMulInteger" for node in nodes) == len(names) - 1
    assert encoder.manifest["fp32_layers"] == list(KEPT)
    assert encoder.manifest["precision"] == "int8"


@pytest.mark.parametrize("limit", [10_000, 2_500_000])
def test_weights_in_a_file_of_their_own_become_integers(
    small: ExportedEncoder, tiny: Reference, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int
) -> None:
    """A graph that is too large for one file is quantised from two, to two or, where it has become small enough, to one."""
    monkeypatch.setattr(graph, "ONE_FILE_BYTES", limit)
    model = graph.text_graph(text_tower(tiny), tiny.text.context_length)
    graph.save(model, tmp_path / "fp32" / "model.onnx")

    precision.quantize(tmp_path / "fp32" / "model.onnx", tmp_path / "int8" / "model.onnx")

    files = sorted(file.name for file in (tmp_path / "int8").glob("model*"))
    assert (tmp_path / "fp32" / "model.onnx.data").exists()
    assert files == ["model.onnx", "model.onnx.data"][: 2 if limit == 10_000 else 1]
    ids = tiny.tokenize(["a red dress", "38"]).int().numpy()
    rows, expected = (run(file, "input_ids", ids) for file in (tmp_path / "int8" / "model.onnx", small.text_graph))
    assert (rows == expected).all()


def test_unknown_layer_is_refused_with_those_like_it(small: ExportedEncoder, tiny: Reference) -> None:
    """A name that no layer has is refused before anything is quantised, and the closest names are said."""
    with pytest.raises(ExportError, match=r"no layer 'image.blocks.1.mlp.fc'.*image.blocks.1.mlp.c_fc"):
        export(tiny, "other", "int8", small.root, keep_fp32=["image.blocks.1.mlp.fc"])
    assert not (small.root / "other-image").exists()


def test_layers_are_kept_in_fp32_in_int8_only(tiny: Reference, tmp_path: Path) -> None:
    """Where everything is in floating point, naming a layer is a mistake, and said to be one."""
    with pytest.raises(ExportError, match="int8 export only, and this is fp16"):
        export(tiny, "tiny", "fp16", tmp_path, keep_fp32=["image.blocks.0.query"])


def test_quantising_advises_nothing(small: ExportedEncoder, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """No warning to run a preparation that has been done; the root logger is as it was."""
    filters = list(logging.getLogger().filters)

    precision.quantize(small.fp32.image_graph, tmp_path / "model.onnx")

    assert "pre-processing" not in caplog.text
    assert logging.getLogger().filters == filters


def run(file: Path, name: str, rows: NDArray[Any]) -> NDArray[Any]:
    """The embeddings that a graph gives, in batches of 16."""
    session = onnxruntime.InferenceSession(file)
    return np.concatenate([session.run(None, {name: rows[at : at + 16]})[0] for at in range(0, len(rows), 16)])


def min_cosine(rows: NDArray[Any], vectors: NDArray[Any]) -> float:
    """The smallest cosine of rows of equal index."""
    return float(((rows * vectors).sum(axis=1) / np.linalg.norm(vectors, axis=1) / np.linalg.norm(rows, axis=1)).min())
