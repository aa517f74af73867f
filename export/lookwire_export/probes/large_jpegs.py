"""JPEGs that are large enough for a fast decoding to read them at a part of their size."""

from collections.abc import Sequence
from random import Random

from PIL import Image

from lookwire_export.garments import ALL, draw
from lookwire_export.probes.images import GREY, PHOTOGRAPHS, SEED, TEXTURES, jpeg, photograph
from lookwire_export.probes.probe import Probe

HALF, QUARTER, EIGHTH = 4, 8, 16
"""The shorter edges in `size` from which on so much is read; just there, least is left."""
LONGEST = 4096
TILE = (240, 160)


def large_jpegs(size: int = 224) -> list[Probe[bytes]]:
    """Returns more than 30 JPEGs of at least 4 x size and at most 4,096 pixels on each edge, for `size` x `size` pixels.

    Raises ValueError for a size that leaves no room between the two.
    """
    rng = Random(SEED)
    edges = [round(factor * size) for factor in (HALF, 1.6 * HALF, QUARTER, 1.6 * QUARTER, EIGHTH)]
    if edges[0] > LONGEST:
        raise ValueError(f"no JPEG of at most {LONGEST} pixels is read in part for {size} x {size} pixels")
    return [probe for edge in edges if edge <= LONGEST for probe in _of_edge(edge, rng)]


def _of_edge(edge: int, rng: Random) -> list[Probe[bytes]]:
    """Returns JPEGs of all kinds whose shorter edge is this."""
    longer = min(round(1.34 * edge), LONGEST)
    landscape, portrait = (longer, edge), (edge, longer)
    shapes = (edge, edge), landscape, portrait
    photographs = [photograph(rng.choice(PHOTOGRAPHS)).resize(shape) for shape in shapes]
    drawing = draw(rng.choice(ALL), SEED, min(edge, 640)).resize((edge, edge))
    return [
        *(Probe("large photograph", jpeg(image, quality=rng.choice((75, 85, 92)))) for image in photographs),
        *(Probe("large collage", jpeg(_collage(PHOTOGRAPHS, shape, rng), quality=90)) for shape in shapes[:2]),
        Probe("large texture", jpeg(_collage(TEXTURES, landscape, rng), quality=90)),
        Probe("large drawing", jpeg(drawing, quality=90)),
        Probe("large 4:4:4 JPEG", jpeg(_collage(PHOTOGRAPHS, portrait, rng), quality=95, subsampling="4:4:4")),
        Probe("large progressive JPEG", jpeg(_collage(PHOTOGRAPHS, portrait, rng), quality=75, progressive=True)),
        Probe("large grey JPEG", jpeg(_collage(GREY, landscape, rng).convert("L"), quality=85)),
        Probe("large CMYK JPEG", jpeg(_collage(PHOTOGRAPHS, landscape, rng).convert("CMYK"), quality=90)),
    ]


def _collage(names: Sequence[str], size: tuple[int, int], rng: Random) -> Image.Image:
    """Returns parts of photographs side by side, each as sharp as its photograph is."""
    collage = Image.new("RGB", size)
    width, height = TILE
    for top in range(0, size[1], height):
        for left in range(0, size[0], width):
            part = photograph(rng.choice(names))
            x, y = rng.randint(0, part.width - width), rng.randint(0, part.height - height)
            collage.paste(part.crop((x, y, x + width, y + height)), (left, top))
    return collage
