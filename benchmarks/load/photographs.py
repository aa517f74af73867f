"""Photographs as JPEGs of 320 to 2,000 pixels on the longer edge.

`.venv-export/bin/python -m benchmarks.load.photographs` makes them of those that scikit-image brings along, which are in
the public domain or free to use; the same each time.
"""

import importlib.util
import random
from pathlib import Path

from PIL import Image

FOLDER = Path("build/bench/photographs")
COUNT = 48
SOURCES = ("astronaut.png", "chelsea.png", "coffee.png", "motorcycle_left.png", "retina.jpg", "rocket.jpg")
LONGER_EDGE = (320, 2000)
SHORTER_SIDE = (0.6, 1.0)
QUALITIES = (75, 85, 92)


def read() -> list[bytes]:
    """The encoded photographs; raises FileNotFoundError where they were not made."""
    paths = sorted(FOLDER.glob("*.jpg"))
    if len(paths) != COUNT:
        raise FileNotFoundError(
            f"{FOLDER} has {len(paths)} of {COUNT} photographs: make {FOLDER} "
            f"(.venv-export/bin/python -m {__spec__.name})"
        )
    return [path.read_bytes() for path in paths]


def make(folder: Path) -> None:
    """Writes the photographs: parts of the sources, resized to edges between the two bounds, small ones as often as large."""
    package = importlib.util.find_spec("skimage")
    if package is None or package.origin is None:
        raise ModuleNotFoundError("photographs are made of those of scikit-image: pip install scikit-image")
    chance = random.Random(0)
    folder.mkdir(parents=True, exist_ok=True)
    smallest, largest = LONGER_EDGE
    for number in range(COUNT):
        with Image.open(Path(package.origin).parent / "data" / SOURCES[number % len(SOURCES)]) as source:
            photograph = source.convert("RGB")
        edge = round(smallest * (largest / smallest) ** (number / (COUNT - 1)))
        size = (edge, round(edge * chance.uniform(*SHORTER_SIDE)))
        if chance.random() < 0.5:
            size = (size[1], size[0])
        scale = min(photograph.width / size[0], photograph.height / size[1])
        width, height = int(size[0] * scale), int(size[1] * scale)
        left, top = chance.randint(0, photograph.width - width), chance.randint(0, photograph.height - height)
        part = photograph.resize(size, Image.Resampling.LANCZOS, (left, top, left + width, top + height))
        part.save(folder / f"{number:02}.jpg", quality=chance.choice(QUALITIES))


if __name__ == "__main__":
    make(FOLDER)
