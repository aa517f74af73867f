"""The server's pixels are the library's: torchvision's transform of open_clip, and transformers' Pillow processors."""

import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from torchvision.transforms import Compose
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from lookwire_server.encoding.images import ImageLimits, Pixels, decode
from lookwire_server.encoding.manifest import ImageRules

SIZE = 64
LIMITS = ImageLimits(1 << 24, 1 << 24)
NEUTRAL = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
Transform = Callable[[Image.Image], Pixels]


def noise(width: int, height: int) -> Image.Image:
    """Random pixels with smooth shapes among them."""
    pixels = np.random.default_rng(width * 1000 + height).integers(0, 256, (height, width, 3), np.uint8)
    pixels[: height // 2] = np.linspace(0, 255, width).astype(np.uint8)[None, :, None]
    return Image.fromarray(pixels)


def saved(image: Image.Image, format: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def images() -> list[bytes]:
    """Images of every mode and format, and of sizes whose resized edge has every remainder by 4."""
    base = noise(141, 97)
    alpha = base.convert("RGBA")
    alpha.putalpha(Image.linear_gradient("L").resize(base.size))
    turned = Image.Exif()
    turned[0x0112] = 6
    wide = Image.fromarray(np.random.default_rng(1).integers(0, 65536, (97, 141), np.uint16))
    modes = [
        *(saved(base.convert(mode)) for mode in ("L", "LA", "1", "P", "RGB")),
        saved(alpha),
        saved(alpha, "WEBP", lossless=True),
        saved(wide),
        saved(base.quantize(32)),
        saved(base.quantize(8), transparency=0),
        saved(base.quantize(8), "GIF", transparency=3),
        saved(base, transparency=(10, 10, 10)),
        saved(base.convert("CMYK"), "JPEG"),
        saved(base, "JPEG", subsampling="4:2:0", progressive=True),
        saved(base, "JPEG", subsampling="4:4:4", exif=turned),
        saved(base, "TIFF", exif=turned),
        saved(base, "BMP"),
    ]
    sizes = [(1, 1), (2, 3), (500, 9), (9, 500), (64, 64), (63, 65), (300, 299), *((64 + n, 64) for n in range(1, 9))]
    return modes + [saved(noise(*size)) for size in sizes] + [saved(noise(64, 64 + n)) for n in range(1, 9)]


def open_clip(resize: str, interpolation: str) -> Transform:
    """open_clip's transform without its normalisation."""
    rules = PreprocessCfg(size=SIZE, resize_mode=resize, interpolation=interpolation)
    steps = Compose(image_transform_v2(rules, is_train=False).transforms[:-1])
    return lambda image: np.asarray((steps(image) * 255).round()).astype(np.uint8).transpose(1, 2, 0)


def transformers(processor: Any) -> Transform:
    """A processor of transformers without its rescaling and normalisation."""

    def transform(image: Image.Image) -> Pixels:
        pixels = processor(image, do_rescale=False, do_normalize=False, return_tensors="np").pixel_values[0]
        assert pixels.dtype == np.uint8
        return np.asarray(pixels, np.uint8).transpose(1, 2, 0)

    return transform


SQUARE = {"height": SIZE, "width": SIZE}
LIBRARIES: dict[str, tuple[Transform, dict[str, str]]] = {
    f"open_clip {resize} {interpolation}": (
        open_clip(resize, interpolation),
        {"resize": resize, "interpolation": interpolation, "convert_rgb": "after_resize", "crop": "round"},
    )
    for resize in ("shortest", "squash")
    for interpolation in ("bicubic", "bilinear")
} | {
    "transformers clip": (
        transformers(CLIPImageProcessorPil(size={"shortest_edge": SIZE}, crop_size=SQUARE)),
        {"resize": "shortest", "interpolation": "bicubic", "convert_rgb": "before_resize", "crop": "floor"},
    ),
    "transformers siglip": (
        transformers(SiglipImageProcessorPil(size=SQUARE)),
        {"resize": "squash", "interpolation": "bicubic", "convert_rgb": "before_resize", "crop": "floor"},
    ),
}


@pytest.mark.parametrize("name", LIBRARIES)
def test_every_image_has_the_pixels_of_the_library(name: str) -> None:
    """From the same bytes, each pixel is the library's own, whatever the mode, format and size."""
    transform, rules = LIBRARIES[name]
    checked = ImageRules.model_validate({"size": SIZE, "exif_orientation": "ignored"} | NEUTRAL | rules)

    for number, data in enumerate(images()):
        with Image.open(io.BytesIO(data)) as image:
            np.testing.assert_array_equal(decode(data, checked, LIMITS), transform(image), err_msg=f"image {number}")


def test_rules_differ_on_these_images() -> None:
    """The images tell the libraries apart: with the rules of another, some pixels are not the library's."""
    kinds = {
        name: ImageRules.model_validate({"size": SIZE, "exif_orientation": "ignored"} | NEUTRAL | rules)
        for name, (_, rules) in LIBRARIES.items()
    }
    made = {name: b"".join(decode(data, rules, LIMITS).tobytes() for data in images()) for name, rules in kinds.items()}

    assert len(set(made.values())) == len(made)
