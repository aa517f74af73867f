"""How well an encoder finds garments by their captions."""

from typing import Any

import torch
from torch.nn import functional

from lookwire_export.garments import ALL, HELD_OUT, draw
from lookwire_export.reference import Reference

EVALUATION_SEED = 1_000_000
"""Drawings from this seed on are never trained on."""


def recall(encoder: Reference, seed: int = EVALUATION_SEED) -> dict[str, float]:
    """Returns the share of canonical captions whose own garment is among the first 1 and 5 of the gallery.

    The gallery is one drawing of each of the 480 combinations; `all_*` asks for each of them, `held_out_*` only for
    the combinations that training never saw.
    """
    pixels = torch.stack([encoder.preprocess(draw(garment, seed)) for garment in ALL])
    images = functional.normalize(encoder.encode_image(pixels), dim=-1)
    texts = functional.normalize(encoder.encode_text(encoder.tokenize([garment.caption for garment in ALL])), dim=-1)
    scores = texts @ images.T
    rank = (scores > scores.diagonal()[:, None]).sum(dim=1)
    held_out = [ALL.index(garment) for garment in HELD_OUT]
    return {
        "all_recall_at_1": _share(rank, 1),
        "all_recall_at_5": _share(rank, 5),
        "held_out_recall_at_1": _share(rank[held_out], 1),
        "held_out_recall_at_5": _share(rank[held_out], 5),
    }


def _share(rank: Any, first: int) -> float:
    return round(float((rank < first).float().mean()), 4)


def summary(figures: dict[str, float]) -> str:
    """Returns the figures in one line."""
    return ", ".join(f"{name.replace('_', ' ')} {value:.3f}" for name, value in figures.items())
