"""Decoding fast: which images it touches, and how little."""

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lookwire_server.encoding.images import ImageLimits, Pixels, decode
from lookwire_server.encoding.manifest import Manifest
from lookwire_server.errors import InvalidImage
from tests.server.images import noise
from tests.server.test_images import RULES
from tests.server.test_manifest import bundled

FAST = RULES.model_copy(update={"decode": "fast"})
LIMITS = ImageLimits(1 << 24, 1 << 24)


def both(data: bytes, **rules: Any) -> tuple[Pixels, Pixels]:
    """The pixels decoded exactly and fast, as signed numbers."""
    exact, fast = (decode(data, of.model_copy(update=rules), LIMITS).astype(int) for of in (RULES, FAST))
    return exact, fast


def smooth(width: int, height: int) -> Image.Image:
    """Colours that change slowly: whatever is out of place by a pixel shows, and no detail is lost."""
    across, down = np.linspace(0, 255, width)[None, :], np.linspace(0, 255, height)[:, None]
    channels = np.broadcast_arrays(across, down, (across + down) / 2)
    return Image.fromarray(np.stack(channels, axis=-1).astype(np.uint8))


@pytest.mark.parametrize("format", ["PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_other_formats_are_decoded_exactly(format: str) -> None:
    """Only JPEGs are read in part."""
    exact, fast = both(noise(600, 500, format))

    assert np.array_equal(exact, fast)


@pytest.mark.parametrize("size", [(1, 1), (64, 64), (100, 255), (255, 2000), (10, 2000)])
def test_jpegs_that_are_not_large_enough_are_decoded_exactly(size: tuple[int, int]) -> None:
    """A JPEG whose shorter edge is under four times the size is decoded whole: half of it would be too little."""
    exact, fast = both(noise(*size, "JPEG"))

    assert np.array_equal(exact, fast)


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("edge", [256, 512, 1024])
def test_large_jpegs_are_read_in_part(edge: int, mode: str) -> None:
    """From four times the size on the pixels of noise differ, by little."""
    exact, fast = both(noise(edge, edge, "JPEG", mode))

    assert 0 < np.abs(exact - fast).mean() < 4


@pytest.mark.parametrize("size", [(257, 400), (401, 259), (777, 513), (1031, 2047), (1027, 1027)])
@pytest.mark.parametrize("rules", [{}, {"resize": "squash"}, {"convert_rgb": "before_resize", "crop": "floor"}])
def test_everything_stays_in_its_place(size: tuple[int, int], rules: dict[str, str]) -> None:
    """Edges that are no multiple of eight move nothing, and the crop begins where it does without."""
    buffer = io.BytesIO()
    smooth(*size).save(buffer, "JPEG", quality=98, subsampling="4:4:4")

    exact, fast = both(buffer.getvalue(), **rules)

    difference = np.abs(exact - fast)
    assert difference.max() <= 2
    assert difference.mean() < 0.26


def test_limit_counts_the_pixels_of_the_header() -> None:
    """What counts is how large the image is, not how much of it would be read."""
    with pytest.raises(InvalidImage, match="1024 x 1024 pixels, at most 1000000"):
        decode(noise(1024, 1024, "JPEG"), FAST, ImageLimits(1 << 24, 1_000_000))


def test_fingerprint_tells_fast_from_exact() -> None:
    """Fast decoding makes another encoder; a manifest that says nothing means exact, by the same fingerprint."""
    manifest = bundled()

    def fingerprint(**rules: str) -> str:
        return Manifest.model_validate(manifest | {"image": manifest["image"] | rules}).fingerprint()

    assert fingerprint() == fingerprint(decode="exact") != fingerprint(decode="fast")
