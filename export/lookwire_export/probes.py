"""The inputs of the gate: images in the formats, modes and shapes that decoders disagree on, and texts likewise."""

import io
from random import Random

import numpy as np
from PIL import Image

from lookwire_export.garments import ALL, draw

SEED = 2_000_000
"""Drawings from this seed on belong to the gate."""


def images() -> list[bytes]:
    """Returns 80 encoded images."""
    rng = Random(SEED)
    drawings = [_saved(draw(garment, SEED, 192), "PNG") for garment in rng.sample(ALL, 40)]
    sizes = ((1, 1), (2, 3), (1000, 20), (20, 1000), (64, 64), (63, 65), (300, 299), (640, 480))
    noise = [_saved(_noise(seed, size), "PNG") for seed, size in enumerate(sizes)]
    return drawings + noise + _formats(draw(ALL[7], SEED, 200)) + _formats(_noise(99, (141, 97)))


def texts() -> list[str]:
    """Returns more than 128 texts."""
    rng = Random(SEED)
    captions = [garment.caption for garment in rng.sample(ALL, 60)]
    captions += [garment.varied_caption(rng) for garment in rng.sample(ALL, 40)]
    long = " ".join(garment.caption for garment in ALL[:60])
    random = ["".join(chr(rng.choice(ALPHABET)) for _ in range(rng.randint(1, 40))) for _ in range(20)]
    return captions + ODD + [long, "a" * 3000, "red, " * 38] + random


def _noise(seed: int, size: tuple[int, int]) -> Image.Image:
    generator = np.random.default_rng(seed)
    return Image.fromarray(generator.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


def _formats(image: Image.Image) -> list[bytes]:
    """Returns one image in sixteen guises."""
    alpha = image.convert("RGBA")
    alpha.putalpha(Image.linear_gradient("L").resize(image.size))
    turned = Image.Exif()
    turned[0x0112] = 6  # orientation: turned by 90 degrees, which open_clip ignores
    return [
        _saved(image, "JPEG", quality=85, subsampling="4:2:0"),
        _saved(image, "JPEG", quality=95, subsampling="4:4:4"),
        _saved(image, "JPEG", quality=75, progressive=True),
        _saved(image, "JPEG", quality=85, exif=turned),
        _saved(image.convert("L"), "JPEG", quality=85),
        _saved(image.convert("CMYK"), "JPEG", quality=90),
        _saved(image.quantize(32), "PNG"),
        _saved(image.quantize(8), "PNG", transparency=0),
        _saved(image.convert("L"), "PNG"),
        _saved(image.convert("LA"), "PNG"),
        _saved(image.convert("1"), "PNG"),
        _saved(alpha, "PNG"),
        _saved(image, "WEBP", quality=80),
        _saved(alpha, "WEBP", lossless=True),
        _saved(image, "PNG", exif=turned),
        _saved(image.crop((0, 0, image.width, 9)), "PNG"),
    ]


def _saved(image: Image.Image, format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


ALPHABET = [
    *range(0x20, 0x7F),
    *range(0xA1, 0x250),
    *range(0x400, 0x460),
    *range(0x3041, 0x30FF),
    *range(0x1F600, 0x1F640),
]

ODD = [
    "", " ", "a", "7", "!", "_", "-", "the", "dress", "T-SHIRT", "Ünïcödé", "naïve café", "İstanbul", "straße", "ſhirt",
    "\u0345", "e\u0301", "ﬁne ﬂare", "x\u200by", "tab\tand\nnewline", "  spaces   everywhere  ", "snake_case_name",
    "__init__", "a_b", "kebab-case-name", "3.14159", "2026-01-31", "1,000,000", "#hashtag @mention", "100% cotton",
    "don't, we'll, it's, I'm, you've, he'd, they're", "DON'T", "'s", "''", "it’s ‘quoted’ “text”", "&amp;", "&lt;b&gt;",
    "&amp;lt;", "&#128512;", "&nbsp;", "caf&eacute;", "<start_of_text>", "<end_of_text>", "<END_OF_TEXT> red",
    "!<start_of_text>", "red <end_of_text> blue", "<|endoftext|>", "schÃ¶n", "â€œmojibakeâ€\x9d", "👗", "🎉🎉🎉", "👩‍👩‍👧",
    "🇫🇷 🇯🇵", "red 👠 shoes", "红色连衣裙", "赤いドレス", "빨간 드레스", "красное платье", "فستان أحمر", "שמלה אדומה",
    "κόκκινο φόρεμα", "ชุดสีแดง", "लाल पोशाक", "\U0001d5bb\U0001d5c5\U0001d5ce\U0001d5be", "½ ² ٣ Ⅷ", "a/b\\c|d", "~`^$+=<>",
]  # fmt: skip
