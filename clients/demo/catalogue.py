"""The sample catalogue: 480 drawn garments with the attributes of a shop, as files that an import would find."""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random

from lookwire import FieldType, Item
from lookwire_export.garments import ALL, Garment, draw

SEED = 2_000_000
"""Of the catalogue's drawings; the bundled encoder was not trained on drawings from 1,000,000 on."""
FIELDS = {
    "kind": FieldType.STRING,
    "colour": FieldType.STRING,
    "pattern": FieldType.STRING,
    "price": FieldType.DOUBLE,
    "stock": FieldType.INT64,
    "sale": FieldType.BOOL,
}
"""The attributes that searches can filter by."""
_PRICES = {
    "t-shirt": 19,
    "shirt": 39,
    "dress": 69,
    "skirt": 45,
    "trousers": 59,
    "shorts": 29,
    "coat": 139,
    "hat": 25,
    "shoe": 79,
    "bag": 89,
}


@dataclass(frozen=True, slots=True)
class Product:
    """A line of the catalogue; `file` is its picture, relative to the catalogue's folder."""

    id: str
    title: str
    file: str
    kind: str
    colour: str
    pattern: str
    price: float
    stock: int
    sale: bool


def draw_catalogue(folder: Path) -> Iterator[Product]:
    """Draws a picture of each garment and writes catalogue.jsonl, yielding each product once its picture is there.

    The same files every time: pictures, prices and stock follow from fixed seeds.
    """
    (folder / "images").mkdir(parents=True, exist_ok=True)
    rng = Random(SEED)  # noqa: S311 - prices, not secrets
    with (folder / "catalogue.jsonl").open("w", encoding="utf-8") as lines:
        for garment in ALL:
            product = _product(garment, rng)
            draw(garment, SEED).save(folder / product.file, quality=90)
            lines.write(json.dumps(asdict(product)) + "\n")
            yield product


def read_items(folder: Path) -> Iterator[Item]:
    """Yields an item for each line of catalogue.jsonl: the picture to embed, and all else as payload."""
    with (folder / "catalogue.jsonl").open(encoding="utf-8") as lines:
        for line in lines:
            payload = json.loads(line)
            yield Item(payload.pop("id"), payload, image=folder / payload["file"])


def _product(garment: Garment, rng: Random) -> Product:
    sale = rng.random() < 0.2
    price = _PRICES[garment.kind] * rng.uniform(0.7, 1.5) * (0.7 if sale else 1.0)
    return Product(
        id=f"{garment.kind}-{garment.colour}-{garment.pattern}",
        title=garment.caption.removeprefix("a ").removeprefix("an ").capitalize(),
        file=f"images/{garment.kind}-{garment.colour}-{garment.pattern}.jpg",
        kind=garment.kind,
        colour=garment.colour,
        pattern=garment.pattern,
        price=round(price) - 0.05,
        stock=rng.choice((0, *range(1, 25))),
        sale=sale,
    )
