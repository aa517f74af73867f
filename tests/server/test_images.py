"""What the rules of an encoder make of an image."""

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lookwire_server.encoding.images import ImageLimits, Pixels, decode
from lookwire_server.encoding.manifest import ImageRules

RULES = ImageRules(
    size=64,
    resize="shortest",
    interpolation="bicubic",
    mean=(0.5, 0.5, 0.5),
    std=(0.5, 0.5, 0.5),
    convert_rgb="after_resize",
    crop="round",
    exif_orientation="ignored",
)


def pixels(image: Image.Image, **rules: Any) -> Pixels:
    """The pixels of an image that was sent as PNG."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return decode(buffer.getvalue(), RULES.model_copy(update=rules), ImageLimits(1 << 20, 1 << 20))


@pytest.mark.parametrize(
    ("surplus", "rounded", "floored"), [(0, 0, 0), (1, 0, 0), (2, 1, 1), (3, 2, 1), (4, 2, 2), (5, 2, 2), (7, 4, 3)]
)
@pytest.mark.parametrize("upright", [False, True])
def test_crop_begins_where_the_library_begins(surplus: int, rounded: int, floored: int, upright: bool) -> None:
    """An odd surplus is halved to the even neighbour by "round", and downwards by "floor", across and down."""
    columns = np.tile(np.arange(64 + surplus, dtype=np.uint8), (64, 1))
    image = Image.fromarray(columns.T.copy() if upright else columns)

    assert pixels(image, crop="round")[0, 0, 0] == rounded
    assert pixels(image, crop="floor")[0, 0, 0] == floored


def test_transparency_is_laid_on_white_before_resizing() -> None:
    """Where an image is transparent, "before_resize" shows white, and "after_resize" the colour beneath."""
    image = Image.new("RGBA", (64, 64), (200, 30, 30, 0))

    assert (pixels(image, convert_rgb="before_resize") == 255).all()
    assert (pixels(image, convert_rgb="after_resize") == (200, 30, 30)).all()


def test_palette_is_filtered_only_when_converted_first() -> None:
    """Indexes of a palette can only be picked, not mixed: two colours stay two unless the image is RGB before resizing."""
    image = Image.fromarray(np.indices((96, 96)).sum(0).astype(np.uint8) // 3 % 2 * 255).convert("P")

    assert len(np.unique(pixels(image, convert_rgb="after_resize"))) == 2
    assert len(np.unique(pixels(image, convert_rgb="before_resize"))) > 2
