"""What commonly goes wrong with these models, done on purpose: the gate fails each, and says what differs."""

import copy
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from open_clip.transformer import QuickGELU

from lookwire_export.encoder import ExportedEncoder, export
from lookwire_export.gate import GateError, measure
from lookwire_export.reference import Reference
from lookwire_export.towers import text_tower

NO_ANTIALIAS = """
def transform(image, rules, own=images.transform):
    if image.size != images.resized(image.size, rules):
        box, filter = (0, 0, *image.size), images.INTERPOLATIONS[rules.interpolation]
        image = image.convert("RGB").transform(
            images.resized(image.size, rules), images.Image.Transform.EXTENT, box, filter
        )
    return own(image, rules)
"""
BGR = """
def transform(image, rules, own=images.transform):
    return images.Image.merge("RGB", own(image, rules).split()[::-1])
"""


def failure(reference: Reference, encoder: ExportedEncoder) -> GateError:
    """Returns what the gate says of an encoder that it must not pass."""
    with pytest.raises(GateError) as caught:
        measure(reference, encoder).require()
    return caught.value


def failed(error: GateError) -> set[str]:
    return {figure.name for figure in error.figures if not figure.holds}


def without_mask(model: Any) -> None:
    model.attn_mask.zero_()


def with_quick_gelu(model: Any) -> None:
    for block in model.transformer.resblocks:
        block.mlp.gelu = QuickGELU()


@pytest.fixture
def edited(garments_encoder: ExportedEncoder, tmp_path: Path) -> Callable[[str, str, object], ExportedEncoder]:
    """Copies the bundled encoder with one rule of its manifest changed."""

    def edit(part: str, rule: str, value: object) -> ExportedEncoder:
        shutil.copytree(garments_encoder.root, tmp_path / "repository")
        manifest = garments_encoder.manifest | {part: garments_encoder.manifest[part] | {rule: value}}
        encoder = replace(garments_encoder, root=tmp_path / "repository", manifest=manifest)
        encoder.write_manifest()
        return encoder

    return edit


@pytest.mark.parametrize(
    ("rule", "value", "cause", "kind"),
    [
        ("crop", "floor", "cropped at an offset that is always rounded down", "surplus of 3 modulo 4"),
        ("interpolation", "bilinear", "resized by bilinear interpolation instead of bicubic", "fine texture"),
        ("resize", "squash", "squashed to a square", "extreme aspect"),
        ("convert_rgb", "before_resize", "converted to RGB before resizing", "palette PNG"),
    ],
)
def test_wrong_image_rule(
    garments: Reference,
    edited: Callable[[str, str, object], ExportedEncoder],
    rule: str,
    value: str,
    cause: str,
    kind: str,
) -> None:
    """Right graphs behind a wrong transform fail from bytes only, and the transform that was used is named."""
    error = failure(garments, edited("image", rule, value))

    assert failed(error) == {"image_end_to_end_min_cosine", "image_input_max_deviation"}
    assert f"the server's vectors are nearest to those of images {cause}" in str(error)
    assert "the graph agrees on the model's own pixels" in str(error)
    assert kind in list(error.report.images)[:8]


@pytest.mark.parametrize(("code", "cause"), [(NO_ANTIALIAS, "resized without antialias"), (BGR, "swapped (BGR)")])
def test_wrong_code_in_the_server(
    garments: Reference,
    garments_encoder: ExportedEncoder,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    code: str,
    cause: str,
) -> None:
    """A server that transforms images otherwise than its manifest says fails, and what it does is named."""
    imported = "from lookwire_server.encoding import images\n"
    (tmp_path / "sitecustomize.py").write_text(f"{imported}{code}\nimages.transform = transform\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    error = failure(garments, garments_encoder)

    assert failed(error) == {"image_end_to_end_min_cosine", "image_input_max_deviation"}
    assert cause in str(error)


def test_text_that_is_not_lower_cased(
    garments: Reference, edited: Callable[[str, str, object], ExportedEncoder]
) -> None:
    """A wrong cleaning fails from strings only, and the right cleaning and the texts that differ are named."""
    error = failure(garments, edited("text", "clean", "whitespace"))

    assert failed(error) == {"text_end_to_end_min_cosine", "text_input_max_deviation"}
    assert "cleaned by 'whitespace'" in str(error)
    assert "cleaned by 'lower', none has" in str(error)
    assert "upper case" in list(error.report.texts)[:4]


def test_swapped_mean(garments: Reference, tmp_path: Path) -> None:
    """A graph with the channels' means in the wrong order fails, and both means are named."""
    wrong = replace(garments, image=replace(garments.image, mean=garments.image.mean[::-1]))

    error = failure(garments, export(wrong, "garments", "fp32", tmp_path))

    assert "image_graph_min_cosine" in failed(error)
    own, exported = ("0.48145, 0.45783, 0.40821", "0.40821, 0.45783, 0.48145")
    assert f"the checkpoint's own transform has {own}, the export {exported}" in str(error)


def test_slightly_wrong_std_in_int8(garments: Reference, tmp_path: Path) -> None:
    """A fault that rounding would hide, a std that is 3 % too large, fails in int8, too, and both stds are named."""
    red, green, blue = (1.03 * std for std in garments.image.std)
    wrong = replace(garments, image=replace(garments.image, std=(red, green, blue)))

    error = failure(garments, export(wrong, "garments", "int8", tmp_path))

    assert {"fp32_image_graph_min_cosine", "fp32_image_graph_max_deviation"} <= failed(error)
    own, exported = ("0.26863, 0.2613, 0.27578", "0.27669, 0.26914, 0.28405")
    assert f"the checkpoint's own transform has {own}, the export {exported}" in str(error)


def test_wrong_crop_in_int8(garments: Reference, tmp_path: Path) -> None:
    """The rules that an int8 encoder is served with are held to the bounds of fp32."""
    encoder = export(garments, "garments", "int8", tmp_path)
    encoder = replace(encoder, manifest=encoder.manifest | {"image": encoder.manifest["image"] | {"crop": "floor"}})
    encoder.write_manifest()

    error = failure(garments, encoder)

    assert failed(error) == {"fp32_image_end_to_end_min_cosine", "fp32_image_input_max_deviation"}
    assert "cropped at an offset that is always rounded down" in str(error)


@pytest.mark.parametrize(
    ("mutate", "cause", "figure"),
    [
        (without_mask, "changes by up to .* the causal mask is missing", "batch_max_difference"),
        (with_quick_gelu, "the text graph computes something else than the model", "text_graph_min_cosine"),
    ],
)
def test_wrong_tower(
    garments: Reference, tmp_path: Path, mutate: Callable[[Any], None], cause: str, figure: str
) -> None:
    """A text tower without its causal mask, or with another activation, fails; the images do not."""
    model = copy.deepcopy(garments.model)
    with torch.no_grad():
        mutate(model)

    with pytest.raises(GateError, match=cause) as caught:
        measure(garments, export(replace(garments, model=model), "garments", "fp32", tmp_path)).require()

    names = failed(caught.value)
    assert {figure, "text_graph_min_cosine", "text_graph_max_deviation"} <= names
    assert not any(name.startswith("image") for name in names)


def test_siglip_padded_to_the_longest_text(siglip: Reference, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tower that attends to its padding, served with batches cut to their longest text, fails; padding is named."""

    def cut(reference: Reference, step: int) -> Any:
        tower = text_tower(reference, step)
        tower.padding = "longest"
        return tower

    monkeypatch.setattr("lookwire_export.encoder.text_tower", cut)

    error = failure(siglip, export(siglip, "siglip", "fp32", tmp_path))

    assert "batch_max_difference" in failed(error)
    assert "texts have to be padded to the context length" in str(error)
