"""Images in the formats, modes, shapes and sizes that decoders and transforms disagree on."""

import importlib.util
import io
from functools import cache
from pathlib import Path
from random import Random

import numpy as np
from PIL import Image

from lookwire_export.garments import ALL, draw
from lookwire_export.probes.probe import Probe

SEED = 2_000_000
"""Drawings from this seed on belong to the gate."""
PICTURES = ("drawing", "photograph", "grey photograph", "fine texture", "tinted photograph", "plain colour", "noise")
"""The kinds of which no image shows the same thing as another."""

PHOTOGRAPHS = (
    "astronaut.png", "chelsea.png", "coffee.png", "color.png", "hubble_deep_field.jpg", "ihc.png", "motorcycle_left.png",
    "retina.jpg", "rocket.jpg",
)  # fmt: skip
GREY = ("camera.png", "cell.png", "clock_motion.png", "coins.png", "moon.png")
TEXTURES = ("brick.png", "grass.png", "gravel.png", "page.png", "text.png")
ALPHA = ("horse.png", "logo.png")
COLOURS = ((255, 0, 0), (0, 0, 255), (255, 128, 0), (0, 160, 160), (0, 0, 0), (255, 255, 255))


def images(size: int = 224) -> list[Probe[bytes]]:
    """Returns more than 100 encoded images, for a transform that gives size x size pixels."""
    rng = Random(SEED)
    drawings = [_png(draw(garment, SEED, 192)) for garment in rng.sample(ALL, 24)]
    files = {"photograph": PHOTOGRAPHS, "grey photograph": GREY, "fine texture": TEXTURES, "RGBA PNG": ALPHA}
    return [
        *(Probe("drawing", drawing) for drawing in drawings),
        *(Probe(kind, (_photographs() / name).read_bytes()) for kind, names in files.items() for name in names),
        *_scaled(),
        *_colours(),
        *_shapes(),
        *_crops(size),
        *_formats(photograph("astronaut.png").resize((300, 281), box=(60, 0, 360, 281))),
        *_formats(draw(ALL[7], SEED, 200)),
    ]


@cache
def _photographs() -> Path:
    """The folder of the photographs: files of the scikit-image wheel, which is not imported for them."""
    spec = importlib.util.find_spec("skimage")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("the gate's photographs are scikit-image's: pip install 'lookwire[export]'")
    return Path(spec.origin).parent / "data"


@cache
def photograph(name: str) -> Image.Image:
    """Returns one of the photographs, in RGB."""
    with Image.open(_photographs() / name) as image:
        return image.convert("RGB")


def _scaled() -> list[Probe[bytes]]:
    """Returns photographs at several sizes."""
    scaled = []
    for name in ("chelsea.png", "coffee.png", "rocket.jpg"):
        image = photograph(name)
        for edge in (48, 150, 330):
            factor = edge / min(image.size)
            size = round(image.width * factor), round(image.height * factor)
            scaled.append(Probe("photograph at another size", jpeg(image.resize(size), quality=90)))
    return scaled


def _colours() -> list[Probe[bytes]]:
    """Returns plain and tinted images: swapped channels show in them."""
    plain = [Probe("plain colour", _png(Image.new("RGB", (96, 96), colour))) for colour in COLOURS]
    camera = np.asarray(photograph("camera.png").resize((256, 256)), np.float64) / 255
    tinted = [Image.fromarray((camera * np.array(colour)).astype(np.uint8)) for colour in COLOURS[:4]]
    return plain + [Probe("tinted photograph", _png(image)) for image in tinted]


def _shapes() -> list[Probe[bytes]]:
    """Returns noise of awkward shapes, and patterns of single pixels."""
    shapes = {
        "tiny": ((1, 1), (2, 3), (5, 4)),
        "extreme aspect": ((700, 20), (20, 700)),
        "noise": ((64, 64), (63, 65), (300, 299), (640, 480)),
    }
    noise = [
        Probe(kind, _png(_noise(99 + seed, size))) for kind, sizes in shapes.items() for seed, size in enumerate(sizes)
    ]
    rows, columns = np.mgrid[:601, :601]
    checks = np.stack([(rows + columns) % 2, rows % 2, columns % 3 == 0], axis=-1)
    stripes = np.repeat(((rows * 7 + columns * 3) % 11 < 4)[..., None], 3, axis=-1)
    return noise + [
        Probe("fine texture", _png(Image.fromarray((pattern * 255).astype(np.uint8)))) for pattern in (checks, stripes)
    ]


def _crops(size: int) -> list[Probe[bytes]]:
    """Returns images whose longer edge is 3 or 7 over `size` once the shorter one is `size`.

    Half of that ends in .5 above an odd number: rounding it to even and rounding it down crop at different pixels.
    """
    image = photograph("motorcycle_left.png").crop((100, 0, 600, 500))
    sizes = ((size, size + 3), (size + 7, size), (2 * size, 2 * size + 6), (2 * size + 14, 2 * size))
    return [Probe("surplus of 3 modulo 4", _png(image.resize(shape))) for shape in sizes]


def _formats(image: Image.Image) -> list[Probe[bytes]]:
    """Returns one image in all formats and modes."""
    grey = image.convert("L")
    alpha = image.convert("RGBA")
    alpha.putalpha(Image.linear_gradient("L").resize(image.size))
    grey_alpha = grey.convert("LA")
    grey_alpha.putalpha(Image.radial_gradient("L").resize(image.size))
    deep = Image.fromarray(
        np.asarray(grey).astype(np.uint16) * 5 // 4
    )  # of 65,535: most of the picture is within 8 bits
    turned = Image.Exif()
    turned[0x0112] = 6  # orientation: to be shown turned by 90 degrees
    return [
        Probe("JPEG 4:2:0", jpeg(image, quality=85, subsampling="4:2:0")),
        Probe("JPEG 4:4:4", jpeg(image, quality=95, subsampling="4:4:4")),
        Probe("progressive JPEG", jpeg(image, quality=75, progressive=True)),
        Probe("grey JPEG", jpeg(grey, quality=85)),
        Probe("CMYK JPEG", jpeg(image.convert("CMYK"), quality=90)),
        Probe("EXIF-rotated JPEG", jpeg(image, quality=85, exif=turned)),
        Probe("EXIF-rotated PNG", _png(image, exif=turned)),
        Probe("palette PNG", _png(image.quantize(32))),
        Probe("palette PNG with transparency", _png(image.quantize(8), transparency=0)),
        Probe("RGBA PNG", _png(alpha)),
        Probe("LA PNG", _png(grey_alpha)),
        Probe("grey PNG", _png(grey)),
        Probe("16-bit grey PNG", _png(deep)),
        Probe("1-bit PNG", _png(image.convert("1"))),
        Probe("lossy WebP", _saved(image, "WEBP", quality=80)),
        Probe("lossless WebP with alpha", _saved(alpha, "WEBP", lossless=True)),
        Probe("GIF", _saved(image, "GIF")),
    ]


def _noise(seed: int, size: tuple[int, int]) -> Image.Image:
    generator = np.random.default_rng(seed)
    return Image.fromarray(generator.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


def _png(image: Image.Image, **options: object) -> bytes:
    return _saved(image, "PNG", compress_level=1, **options)


def jpeg(image: Image.Image, **options: object) -> bytes:
    """Returns an image as a JPEG; the options are Pillow's."""
    return _saved(image, "JPEG", **options)


def _saved(image: Image.Image, format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()
