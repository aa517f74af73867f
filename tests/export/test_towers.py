import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from open_clip.coca_model import MultimodalCfg
from torch import nn
from torch.nn.functional import normalize
from transformers import CLIPConfig, CLIPModel

from lookwire_export.reference import ExportError, Reference
from lookwire_export.sources import open_clip_models
from lookwire_export.towers import image_tower, text_tower
from tests.export.conftest import CONFIG, IMAGES, TOWER, stirred
from tests.export.test_families import FAMILIES

END = 49407


def open_clip_model(reference: Reference, text: dict[str, Any], **others: Any) -> Reference:
    """The tiny model with another text tower."""
    config = CONFIG | {"text_cfg": CONFIG["text_cfg"] | text} | others  # type: ignore[operator]
    torch.manual_seed(2)
    model = stirred(open_clip_models.build(config, "variant"))
    return replace(reference, model=model, encode_text=model.encode_text, encode_image=model.encode_image)


def with_visual(reference: Reference, visual: nn.Module) -> Reference:
    """The tiny model with another image tower."""
    model = copy.deepcopy(reference.model)
    model.visual = visual.eval()
    return replace(reference, model=model, encode_image=model.encode_image)


def image_rows(reference: Reference) -> tuple[torch.Tensor, torch.Tensor]:
    """What the tower gives for raw bytes, and what the model gives for them normalised."""
    pixels = torch.randint(0, 256, (4, 32, 32, 3), dtype=torch.uint8)
    mean, std = torch.tensor(reference.image.mean), torch.tensor(reference.image.std)
    with torch.no_grad():
        expected = reference.encode_image(((pixels / 255 - mean) / std).permute(0, 3, 1, 2))
        return image_tower(reference)(pixels), normalize(expected, dim=-1)


def token_ids(length: int, batch: int = 5) -> torch.Tensor:
    """Texts of random ids, each with its end somewhere before `length`, padded with 0 to 77."""
    ids = torch.zeros(batch, 77, dtype=torch.int32)
    for row in ids:
        end = int(torch.randint(1, length, ()))
        row[:end] = torch.randint(1, END, (end,))
        row[end] = END
    return ids


CONVOLUTIONS: dict[str, Callable[[], nn.Module]] = {
    "unpadded": lambda: nn.Sequential(nn.Conv2d(3, 8, 4, 4), nn.GELU(), nn.Flatten(), nn.Linear(512, 24)),
    "no bias": lambda: nn.Sequential(nn.Conv2d(3, 8, 4, 4, bias=False), nn.GELU(), nn.Flatten(), nn.Linear(512, 24)),
    "padded": lambda: nn.Sequential(nn.Conv2d(3, 2, 3, padding=1), nn.GELU(), nn.Flatten(), nn.Linear(2048, 24)),
    "padded as a word": lambda: nn.Sequential(nn.Conv2d(3, 2, 3, padding="same"), nn.Flatten(), nn.Linear(2048, 24)),
    "none": lambda: nn.Sequential(nn.Flatten(), nn.Linear(3072, 24)),
    "two": lambda: Both(nn.Conv2d(3, 24, 32), nn.Conv2d(3, 24, 32)),
}


class Both(nn.Module):
    """Two convolutions that receive the pixels."""

    def __init__(self, first: nn.Module, second: nn.Module) -> None:
        super().__init__()
        self.first, self.second = first, second

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The product of both."""
        rows: torch.Tensor = self.first(x).flatten(1) * self.second(x).flatten(1)
        return rows


@pytest.mark.parametrize("first", CONVOLUTIONS)
def test_raw_bytes_are_normalised_whatever_receives_them(tiny: Reference, first: str) -> None:
    """Mean and std are where they belong with and without padding, and where no single convolution takes the pixels."""
    torch.manual_seed(1)
    rows, expected = image_rows(with_visual(tiny, CONVOLUTIONS[first]()))

    assert torch.allclose(rows, expected, atol=1e-5)
    assert (expected @ expected.T - torch.eye(4)).max() < 0.999


def test_normalisation_costs_nothing_before_an_unpadded_convolution(tiny: Reference) -> None:
    """Without padding the tower adds no arithmetic on the pixels; with it, one subtraction."""
    unpadded = image_tower(with_visual(tiny, CONVOLUTIONS["unpadded"]()))
    padded = image_tower(with_visual(tiny, CONVOLUTIONS["padded"]()))
    vit = image_tower(tiny)

    assert (unpadded.pixels.offset, unpadded.pixels.scale) == (None, None)
    assert (vit.pixels.offset, vit.pixels.scale) == (None, None)
    assert padded.pixels.offset is not None
    assert padded.pixels.scale is None


@pytest.mark.parametrize("pooling", [{"pool_type": "tok"}, {"pool_type": "avg"}, {"attentional_pool": True},
                                     {"pool_type": "avg", "final_ln_after_pool": True}, {"qk_norm": True}])  # fmt: skip
def test_vision_transformers_of_open_clip_are_computed_exactly(tiny: Reference, pooling: dict[str, Any]) -> None:
    """Every pooling, and attention of other kinds, gives the model's own features."""
    vision = CONFIG["vision_cfg"] | pooling  # type: ignore[operator]
    rows, expected = image_rows(open_clip_model(tiny, {}, vision_cfg=vision))

    assert torch.allclose(rows, expected, atol=1e-5)


@pytest.mark.parametrize("step", [1, 16])
@pytest.mark.parametrize("length", [2, 3, 17, 77])
@pytest.mark.parametrize("pooling", [{}, {"pool_type": "eos", "eos_id": END}])
def test_texts_are_cut_without_effect(tiny: Reference, pooling: dict[str, Any], length: int, step: int) -> None:
    """A causal tower gives for ids cut to their longest text, and widened to a step, what the model gives for 77."""
    reference = open_clip_model(tiny, pooling)
    tower, ids = text_tower(reference, step), token_ids(length)

    with torch.no_grad():
        rows, expected = tower(ids[:, :length]), reference.model.encode_text(ids.long(), normalize=True)

    assert tower.padding == "longest"
    assert torch.allclose(rows, expected, atol=1e-5)


def test_what_follows_the_end_of_text_has_no_influence(tiny: Reference) -> None:
    """The embedding is that of the first end-of-text token, whatever comes after it."""
    plain = torch.tensor([[49406, 320, 736, END, 0, 0, 0, 0]], dtype=torch.int32)
    noisy = torch.tensor([[49406, 320, 736, END, 9, END, 77, 5]], dtype=torch.int32)

    with torch.no_grad():
        assert torch.allclose(text_tower(tiny)(plain), text_tower(tiny)(noisy), atol=1e-6)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ({}, ("longest", "argmax", True)),
        ({"pool_type": "eos", "eos_id": END}, ("longest", "eos", True)),
        ({"no_causal_mask": True}, ("max_length", "argmax", False)),
        ({"no_causal_mask": True, "pool_type": "last", "proj_bias": True}, ("max_length", "last", False)),
        ({"pool_type": "last"}, ("max_length", "last", True)),
        (
            {"no_causal_mask": True, "pool_type": "first", "proj_type": "none", "width": 24},
            ("max_length", "first", False),
        ),
        ({"qk_norm": True, "scale_fc": True}, ("max_length", "argmax", True)),
        ({"embed_cls": True}, ("max_length", "cls", True)),
    ],
)
def test_text_towers_of_open_clip_say_how_they_are_padded(
    tiny: Reference, text: dict[str, Any], expected: tuple[str, str, bool]
) -> None:
    """Each kind of text tower is computed exactly, and allows to be cut only where it is causal and pooled at the end."""
    reference = open_clip_model(tiny, text, custom_text=True)
    tower, ids = text_tower(reference), token_ids(40)

    with torch.no_grad():
        rows, vectors = tower(ids), reference.model.encode_text(ids.long(), normalize=True)

    assert (tower.padding, tower.pooling, tower.causal) == expected
    assert torch.allclose(rows, vectors, atol=1e-5)


@pytest.mark.parametrize(("end", "pooling"), [(2, "argmax"), (END, "eos")])
def test_clip_of_transformers_is_pooled_as_its_config_says(clip: Reference, end: int, pooling: str) -> None:
    """The end token of configs before and after their correction: the largest id, or the first such token."""
    torch.manual_seed(4)
    text = {**TOWER, "vocab_size": 49408, "bos_token_id": 49406, "eos_token_id": end}
    config = CLIPConfig(text_config=text, vision_config={**TOWER, **IMAGES}, projection_dim=24)
    model = stirred(CLIPModel(config))
    tower, ids = text_tower(replace(clip, model=model)), token_ids(30)

    with torch.no_grad():
        expected = model.get_text_features(input_ids=ids.long()).pooler_output
        assert torch.allclose(tower(ids[:, :30]), normalize(expected, dim=-1), atol=1e-5)
    assert (tower.padding, tower.pooling, tower.causal) == ("longest", pooling, True)


def test_the_reference_stays_as_it_is(tmp_path: Path) -> None:
    """Merged branches and folded constants are the tower's own: the reference computes with what it was given."""
    reference = FAMILIES["mobileclip-s"].reference("untouched", tmp_path)
    weights = {name: weight.clone() for name, weight in reference.model.state_dict().items()}
    names = [name for name, _ in reference.model.named_modules()]

    tower = image_tower(reference)
    text_tower(reference)

    assert len(list(tower.visual.modules())) < len(list(reference.model.visual.modules()))
    assert names == [name for name, _ in reference.model.named_modules()]
    assert all(weight.requires_grad for weight in reference.model.parameters())
    assert all(torch.equal(weight, weights[name]) for name, weight in reference.model.state_dict().items())


def test_what_has_no_text_tower_of_a_known_kind_is_refused_by_name(tiny: Reference) -> None:
    """A CoCa is refused with the name of the architecture, of its class, and of what is supported."""
    multimodal = MultimodalCfg(width=32, heads=2, layers=1)
    coca = open_clip.CoCa(24, multimodal, CONFIG["text_cfg"], CONFIG["vision_cfg"])

    with pytest.raises(ExportError, match=r"coca_tiny is a CoCa, .*supported: open_clip's CLIP"):
        text_tower(replace(tiny, model=coca, architecture="coca_tiny"))
