"""The gate of an encoder that decodes fast: what it may cost, and what goes wrong with it, done on purpose."""

import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from lookwire_export import __main__ as command
from lookwire_export import probes
from lookwire_export.encoder import ExportedEncoder, export
from lookwire_export.gate import Report, measure
from lookwire_export.reference import Reference
from tests.export.conftest import TINY

FIGURES = {"fast_decode_min_cosine", "fast_decode_max_deviation"}
TARGET_ITSELF = "images.GAP = 1"
SCALED_ASPECT = """
own = images.transform
def transform(image, rules):
    images.scale(image, images.resized(image.size, rules))
    return own(image, rules.model_copy(update={"decode": "exact"}))
images.transform = transform
"""
ALL_FORMATS = """
own = images.scale
def scale(image, target):
    if image.format != "JPEG" and min(image.size) > 2 * min(target):
        image.thumbnail((image.width // 2, image.height // 2))
    return own(image, target)
images.scale = scale
"""


def decoding_fast(reference: Reference) -> Reference:
    return replace(reference, image=replace(reference.image, decode="fast"))


@pytest.fixture
def fast(garments: Reference, tmp_path: Path) -> ExportedEncoder:
    """The bundled encoder, decoding fast."""
    return export(decoding_fast(garments), "garments", "fp16", tmp_path / "repository")


@pytest.fixture
def measured_with(
    garments: Reference, fast: ExportedEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[str], Report]:
    """Runs the gate with a server in which some code was put; it may use `images`."""

    def run(code: str) -> Report:
        (tmp_path / "sitecustomize.py").write_text(f"from lookwire_server.encoding import images\n{code}\n")
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))
        return measure(garments, fast)

    return run


def failed(report: Report) -> set[str]:
    return {figure.name for figure in report.figures if not figure.holds}


@pytest.mark.parametrize("size", [32, 224, 512, 1024])
def test_large_jpegs_are_large_enough(size: int) -> None:
    """They are JPEGs of every mode whose shorter edge is at least four times the size, some of them just that."""
    images = [Image.open(io.BytesIO(probe.content)) for probe in probes.large_jpegs(size)]

    assert {image.format for image in images} == {"JPEG"}
    assert {image.mode for image in images} == {"RGB", "L", "CMYK"}
    assert min(min(image.size) for image in images) == 4 * size
    assert max(max(image.size) for image in images) <= 4096


def test_fast_encoder_passes_with_a_figure_of_its_own(
    tiny_file: Path, tiny_transform: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command exports an encoder that decodes fast; its record and its report tell what that costs."""
    model = [TINY, "--pretrained", str(tiny_file), "--preprocess", str(tiny_transform)]

    status = command.main([*model, "--repo", str(tmp_path), "--name", "mine", "--decode", "fast", "--report"])

    output = capsys.readouterr().err
    assert status == 0, output
    assert "large texture" in output
    manifest = json.loads((tmp_path / "mine/1/manifest.json").read_text())
    assert manifest["image"]["decode"] == "fast"
    figures = {figure["name"]: figure for figure in manifest["parity"]["figures"]}
    assert figures.keys() >= FIGURES | {"image_end_to_end_min_cosine"}
    assert figures["image_end_to_end_min_cosine"]["value"] > 0.999999
    assert 0.998 <= figures["fast_decode_min_cosine"]["value"] < 0.99999


@pytest.mark.parametrize("code", [TARGET_ITSELF, SCALED_ASPECT])
def test_too_little_of_a_jpeg_is_refused(measured_with: Callable[[str], Report], code: str) -> None:
    """A server that reads too little, or takes the size of what it read for the image's own, fails by the figures of its own."""
    report = measured_with(code)

    assert failed(report) >= FIGURES
    assert "reading JPEGs in part costs this encoder more than it may" in report.findings[0]


def test_other_formats_read_in_part_are_refused(measured_with: Callable[[str], Report]) -> None:
    """What a fast decoding does not touch is held to the bounds of exact ones."""
    report = measured_with(ALL_FORMATS)

    assert failed(report) == {"image_end_to_end_min_cosine", "image_input_max_deviation"}
