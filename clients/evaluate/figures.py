"""The figures of retrieval: how often the right picture is among the first."""

from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO

import numpy as np
from numpy.typing import NDArray

from lookwire import Client
from lookwire_export.garments import ALL, HELD_OUT, Garment, draw

FIRST_SEED = 1_000_000
"""Drawings from this seed on are never trained on."""
_BATCH = 96


@dataclass(frozen=True, slots=True)
class Figure:
    """A share of queries in [0, 1], and the bar that it has to reach; None if it is for information."""

    name: str
    value: float
    bar: float | None

    @property
    def holds(self) -> bool:
        return self.bar is None or self.value >= self.bar


def measure(client: Client, seeds: int, advance: Callable[[], object]) -> list[Figure]:
    """Returns the figures as means over `seeds` galleries, each of one drawing of each garment.

    `advance` is called after each gallery; there is one more, for searching the last by drawings.
    """
    captions = client.embed([garment.caption for garment in ALL]).vectors
    held_out = [ALL.index(garment) for garment in HELD_OUT]
    by_text, by_image = [], []
    gallery = None
    for seed in range(FIRST_SEED, FIRST_SEED + seeds + 1):
        drawings = _embed_drawings(client, seed)
        if gallery is not None:
            by_text.append(ranks(captions, gallery))
            by_image.append(ranks(drawings, gallery))
        gallery = drawings
        advance()
    text, image = np.stack(by_text), np.stack(by_image)
    return [
        Figure(f"caption finds its garment first, all {len(ALL)}", share(text, 1), 0.90),
        Figure("  among the first 5", share(text, 5), 0.99),
        Figure(f"the same for the {len(HELD_OUT)} unseen in training", share(text[:, held_out], 1), 0.70),
        Figure("  among the first 5", share(text[:, held_out], 5), 0.95),
        Figure("drawing finds another of its garment first", share(image, 1), None),
        Figure("  among the first 5", share(image, 5), None),
    ]


def ranks(queries: NDArray[np.float32], gallery: NDArray[np.float32]) -> NDArray[np.intp]:
    """Returns, for each row of `queries` [n, d], how many rows of `gallery` [n, d] score above its own.

    Rows of equal score count as above it, so that an encoder which tells nothing apart finds nothing.
    """
    scores = queries @ gallery.T
    return np.asarray((scores >= np.diagonal(scores)[:, None]).sum(axis=1) - 1, np.intp)


def share(ranks: NDArray[np.intp], first: int) -> float:
    """Returns the share of `ranks` (any shape) that are below `first`."""
    return float((ranks < first).mean())


def _embed_drawings(client: Client, seed: int) -> NDArray[np.float32]:
    """Returns the vectors [480, d] of one drawing of each garment."""
    batches = [ALL[start : start + _BATCH] for start in range(0, len(ALL), _BATCH)]
    return np.vstack([client.embed(images=[_png(garment, seed) for garment in batch]).vectors for batch in batches])


def _png(garment: Garment, seed: int) -> bytes:
    file = BytesIO()
    draw(garment, seed).save(file, "PNG", compress_level=1)
    return file.getvalue()
