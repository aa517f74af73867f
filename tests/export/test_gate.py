from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from lookwire_export import manifest, probes
from lookwire_export.checkpoint import Checkpoint
from lookwire_export.encoder import ExportedEncoder
from lookwire_export.gate import GateError, end_to_end_figures, gate
from lookwire_export.manifest import Figure
from lookwire_export.repository import publish


def changed(graph: bytes, initializer: str, values: Callable[[Any], Any]) -> bytes:
    """Returns the graph with one initialiser passed through a function."""
    model = onnx.load_from_string(graph)
    (tensor,) = (tensor for tensor in model.graph.initializer if tensor.name == initializer)
    tensor.CopyFrom(numpy_helper.from_array(values(numpy_helper.to_array(tensor)), initializer))
    serialised: bytes = model.SerializeToString()
    return serialised


def test_probes_cover_what_decoders_disagree_on() -> None:
    """The gate asks with at least 64 images and 128 texts, all of them distinct."""
    assert len(set(probes.images())) >= 64
    assert len(set(probes.texts())) >= 128


def test_wrong_mean_is_refused_and_nothing_is_left(
    garments: Checkpoint, garments_encoder: ExportedEncoder, tmp_path: Path
) -> None:
    """A graph with half the mean folded into it is refused by name of figure, and the repository stays empty."""
    graph = changed(garments_encoder.image_graph, "patch.bias", lambda bias: bias * np.float32(0.5))
    broken = replace(garments_encoder, image_graph=graph)

    with pytest.raises(GateError, match="image_graph_min_cosine is 0"):
        publish(garments, broken, tmp_path, gate)

    assert list(tmp_path.iterdir()) == []


def test_wrong_positions_are_refused_before_a_server_starts(
    garments: Checkpoint, garments_encoder: ExportedEncoder
) -> None:
    """A text graph whose positions are shifted is refused by name of figure, without a look at the repository."""
    graph = changed(garments_encoder.text_graph, "places.half", lambda places: np.roll(places, 1, axis=0))

    with pytest.raises(GateError, match="text_graph_min_cosine"):
        gate(garments, replace(garments_encoder, text_graph=graph), Path("never-read"))


@pytest.mark.parametrize(
    ("part", "rule", "figure"),
    [
        ("image", {"interpolation": "bilinear"}, "image_end_to_end_min_cosine"),
        ("image", {"resize": "squash"}, "image_end_to_end_min_cosine"),
        ("text", {"bos_id": 0}, "text_end_to_end_min_cosine"),
    ],
)
def test_wrong_rule_in_the_manifest_fails_end_to_end(
    garments: Checkpoint,
    garments_encoder: ExportedEncoder,
    tmp_path: Path,
    part: str,
    rule: dict[str, object],
    figure: str,
) -> None:
    """Right graphs with a wrong preprocessing rule fail the comparison from bytes and strings."""
    rules = garments_encoder.manifest[part] | rule
    replace(garments_encoder, manifest=garments_encoder.manifest | {part: rules}).write(tmp_path)

    figures = end_to_end_figures(garments, "garments", tmp_path, probes.images(), probes.texts())

    assert [figure] == [figure.name for figure in figures if not figure.holds]


@pytest.mark.parametrize("value", [0.5, float("nan")])
def test_figure_beyond_its_bound_does_not_hold(value: float) -> None:
    """A figure below its bound, or that is no number, does not hold, and the parity record says so."""
    figure = Figure("cosine", value, at_least=0.9)

    assert not figure.holds


def test_parity_record_keeps_figures_with_their_bound(garments: Checkpoint) -> None:
    """The record holds each figure with the one bound that it has."""
    record = manifest.parity(garments, [Figure("a", 1.0, at_least=0.9), Figure("b", 0.0, at_most=0.1)])

    assert record["passed"]
    assert record["figures"] == [
        {"name": "a", "value": 1.0, "at_least": 0.9},
        {"name": "b", "value": 0.0, "at_most": 0.1},
    ]
