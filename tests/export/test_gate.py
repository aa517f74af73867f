import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from open_clip.transform import image_transform

from lookwire_export import manifest
from lookwire_export.encoder import ExportedEncoder, export
from lookwire_export.gate import GateError, measure
from lookwire_export.gate.agreement import Agreement
from lookwire_export.manifest import Figure
from lookwire_export.precision import layers
from lookwire_export.reference import ExportError, Reference
from lookwire_export.repository import publish

EXACT = [
    "image_graph_min_cosine",
    "image_graph_max_deviation",
    "image_end_to_end_min_cosine",
    "image_input_max_deviation",
    "text_graph_min_cosine",
    "text_graph_max_deviation",
    "text_end_to_end_min_cosine",
    "text_input_max_deviation",
    "batch_max_difference",
]
ROUNDED = [name for name in EXACT if not name.endswith("graph_max_deviation")]
INTEGERS = [
    *(f"fp32_{name}" for name in EXACT),
    "image_graph_min_cosine",
    "image_end_to_end_min_cosine",
    "text_graph_min_cosine",
    "text_end_to_end_min_cosine",
    "batch_min_cosine",
    "image_recall_at_10",
    "text_recall_at_10",
]


def change(graph: Path, initializer: str, values: Callable[[Any], Any]) -> None:
    """Passes one initialiser of a graph through a function."""
    model = onnx.load(graph)
    (tensor,) = (tensor for tensor in model.graph.initializer if tensor.name == initializer)
    tensor.CopyFrom(numpy_helper.from_array(values(numpy_helper.to_array(tensor)), initializer))
    onnx.save(model, graph)


@pytest.mark.parametrize(("precision", "names"), [("fp32", EXACT), ("fp16", ROUNDED), ("int8", INTEGERS)])
def test_export_passes_with_the_figures_of_its_precision(
    tiny: Reference, tmp_path: Path, precision: str, names: list[str]
) -> None:
    """An export in each precision passes; the gate tells what it is doing meanwhile, and measures each kind of probe."""
    told: list[str] = []

    report = measure(tiny, export(tiny, "tiny", precision, tmp_path), told.append)

    assert report.passed
    assert [figure.name for figure in report.figures] == names
    assert {"images through the graph: 0 of 113", "texts through the server: 0 of 192"} <= set(told)
    assert {"drawing", "photograph", "CMYK JPEG"} <= report.images.keys()
    assert list(report.texts.values()) == sorted(report.texts.values())
    assert report.findings == ()


def test_half_weights_are_held_to_the_bounds_of_fp32(garments: Reference, garments_encoder: ExportedEncoder) -> None:
    """An fp16 export of weights that are half values already is held to all that an fp32 export is."""
    figures = measure(garments, garments_encoder).require()

    assert [figure.name for figure in figures] == EXACT
    assert figures[0].at_least == 0.99999


def test_wrong_graph_is_refused_and_nothing_is_left(garments: Reference, tmp_path: Path) -> None:
    """A text graph whose positions are shifted is refused by name of figure, and the repository stays empty."""

    def breaking(reference: Reference, encoder: ExportedEncoder, progress: Callable[[str], None]) -> list[Figure]:
        change(encoder.text_graph, positions(encoder.text_graph), lambda places: np.roll(places, 1, axis=0))
        encoder.manifest["towers"]["text"]["sha256"] = manifest.digest(encoder.text_graph)
        encoder.write_manifest()
        return measure(reference, encoder, progress).require()

    with pytest.raises(GateError, match=r"text_graph_min_cosine is 0\.\d+, must be at least 0\.99999"):
        publish(garments, "garments", "fp32", tmp_path, breaking)

    assert list(tmp_path.iterdir()) == []


def positions(graph: Path) -> str:
    """Returns the name of the position embedding of the bundled encoder's text tower: 77 rows, but no mask."""
    tensors = onnx.load(graph).graph.initializer
    (name,) = (tensor.name for tensor in tensors if tensor.dims[:1] == [77] and tensor.dims[1:] != [77])
    return str(name)


def test_transform_that_is_not_what_its_rules_say(garments: Reference, garments_encoder: ExportedEncoder) -> None:
    """If the checkpoint's own transform does something else than its rules say, that is said, and what it does."""
    rules = garments.image
    bilinear = image_transform(rules.size, is_train=False, mean=rules.mean, std=rules.std, interpolation="bilinear")

    with pytest.raises(GateError, match=r"own transform is not what its rules say: .* resized by bilinear") as caught:
        measure(replace(garments, preprocess=bilinear), garments_encoder).require()

    assert "the server's vectors are nearest" not in str(caught.value)


def test_transform_that_gives_no_bytes_is_refused(garments: Reference, garments_encoder: ExportedEncoder) -> None:
    """A transform whose pixels are not whole 8-bit values is refused before anything is compared."""
    smooth = replace(garments, preprocess=lambda image: garments.preprocess(image) ** 3)

    with pytest.raises(ExportError, match="does not give whole 8-bit pixels"):
        measure(smooth, garments_encoder).require()


def test_export_that_no_server_starts_with(garments: Reference, garments_encoder: ExportedEncoder) -> None:
    """If a server cannot load what was exported, the error says so with the server's reason."""
    file = garments_encoder.root / "garments" / "1" / "tokenizer.json"
    whole = file.read_text()
    file.write_text("{}")
    try:
        with pytest.raises(ExportError, match=r"(?s)no server starts with what was exported: .*SHA-256 differs"):
            measure(garments, garments_encoder).require()
    finally:
        file.write_text(whole)


def test_layer_that_int8_ruins_is_found(garments: Reference, tmp_path: Path) -> None:
    """A layer whose inputs have one great outlier ruins int8; it is named, and leaving it in fp32 passes."""
    model = copy.deepcopy(garments.model)
    block = model.transformer.resblocks[1]
    with torch.no_grad():  # the same function: what is made 3,000 times as large is taken 3,000 times as small
        block.ln_2.weight[0] *= 3000
        block.ln_2.bias[0] *= 3000
        block.mlp.c_fc.weight[:, 0] /= 3000
    scaled = replace(
        garments,
        model=model,
        encode_image=torch.no_grad()(model.encode_image),
        encode_text=torch.no_grad()(model.encode_text),
    )
    encoder = export(scaled, "garments", "int8", tmp_path / "first")
    (ruined,) = (name for name in layers(encoder.fp32.text_graph) if "1.mlp.c_fc" in name)

    with pytest.raises(GateError, match=f"the worst layers of the text tower, .*: {ruined} 0") as caught:
        measure(scaled, encoder).require()

    assert str(caught.value).endswith(f"to pass, leave these in fp32: --keep-fp32 {ruined}")
    kept = export(scaled, "garments", "int8", tmp_path / "second", keep_fp32=[ruined])
    assert all(figure.holds for figure in measure(scaled, kept).require())


def test_deviations_show_what_cosines_hide() -> None:
    """Where all vectors lie close together, a wrong one has a cosine near 1 but a deviation that is large."""
    generator = np.random.default_rng(0)
    vectors = 1 + 1e-3 * generator.standard_normal((20, 64))

    agreement = Agreement.of(["one"] * 20, vectors[::-1], vectors)

    assert agreement.min_cosine > 0.99999
    assert agreement.max_deviation > 1
    assert agreement.kinds_beyond(0.99999, 0.01) == {"one": agreement.min_cosine}


def test_reference_that_tells_nothing_apart_proves_nothing() -> None:
    """If all probes have one and the same vector, no deviation holds, right as the vectors may be."""
    vectors = np.ones((5, 8))

    agreement = Agreement.of(["one"] * 5, vectors, vectors)

    assert not Figure("deviation", agreement.max_deviation, at_most=0.01).holds


@pytest.mark.parametrize("value", [0.5, float("nan")])
def test_figure_beyond_its_bound_does_not_hold(value: float) -> None:
    """A figure below its bound, or that is no number, does not hold, and the parity record says so."""
    figure = Figure("cosine", value, at_least=0.9)

    assert not figure.holds


def test_parity_record_keeps_figures_with_their_bound(garments: Reference) -> None:
    """The record holds each figure with the one bound that it has."""
    record = manifest.parity(garments, [Figure("a", 1.0, at_least=0.9), Figure("b", 0.0, at_most=0.1)])

    assert record["passed"]
    assert record["figures"] == [
        {"name": "a", "value": 1.0, "at_least": 0.9},
        {"name": "b", "value": 0.0, "at_most": 0.1},
    ]
