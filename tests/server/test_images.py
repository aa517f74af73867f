"""What the rules of an encoder make of an image."""

import io
import subprocess
import sys
from pathlib import Path
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


def test_white_shows_through_as_alpha_composite_has_it() -> None:
    """Every value with every alpha is what Pillow's own composite on white makes of it, to the last bit."""
    values, alphas = np.indices((256, 256)).astype(np.uint8)
    image = Image.fromarray(np.stack([values, values, values, alphas], axis=-1))
    expected = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")

    assert np.array_equal(pixels(image, size=256, convert_rgb="before_resize"), np.asarray(expected))


PEAK = """
import sys
from pathlib import Path
from lookwire_server.encoding.images import ImageLimits, decode
from tests.server.test_images import RULES

def kilobytes(measure):
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith(measure))

data, limits = Path(sys.argv[1]).read_bytes(), ImageLimits(1 << 24, 1 << 24)
rules = RULES.model_copy(update={"convert_rgb": "before_resize"})
decode(Path(sys.argv[2]).read_bytes(), rules, limits)
before = kilobytes("VmRSS")
decode(data, rules, limits)
print(kilobytes("VmHWM") - before)
"""


@pytest.mark.parametrize(("mode", "copies"), [("RGB", 1), ("RGBA", 2)])
def test_memory_of_a_large_image(tmp_path: Path, mode: str, copies: int) -> None:
    """Decoding takes the image at full size once, and once more where its transparency is laid on white."""
    large, small = tmp_path / "large.png", tmp_path / "small.png"
    Image.new(mode, (3600, 3600)).save(large)
    Image.new(mode, (80, 80)).save(small)

    run = subprocess.run([sys.executable, "-c", PEAK, large, small], capture_output=True, text=True, check=True)

    assert int(run.stdout) * 1024 < (copies + 0.5) * 4 * 3600 * 3600
