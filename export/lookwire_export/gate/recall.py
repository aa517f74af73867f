"""Whether a quantised encoder still finds what its reference finds."""

import numpy as np

from lookwire_export.gate.agreement import Array, unit
from lookwire_export.gate.answers import Answers
from lookwire_export.gate.bounds import RECALL
from lookwire_export.manifest import Figure
from lookwire_export.probes import PICTURES

FIRST = 10


def recall_figures(images: Answers, texts: Answers, image_rows: Array, text_rows: Array) -> list[Figure]:
    """Returns recall@10 for images and for texts that search among the probes' pictures.

    Recall@R is the share of queries whose nearest neighbour, here the one by the reference's vectors, is among the first
    R found (Jegou, Douze, Schmid: Product Quantization for Nearest Neighbor Search, 2011). The reference has 1 by this
    measure, so that a loss of one point leaves 0.99. It says something about any model, trained or not, because no probe
    needs to be the right answer to another.
    """
    gallery = np.flatnonzero([kind in PICTURES for kind in images.kinds])
    own = gallery[None] == np.arange(len(images.kinds))[:, None]  # an image does not find itself
    expected, found = unit(images.vectors), unit(image_rows)
    figures = {
        "image_recall_at_10": _recall(
            np.where(own, -np.inf, expected @ expected[gallery].T), np.where(own, -np.inf, found @ found[gallery].T)
        ),
        "text_recall_at_10": _recall(unit(texts.vectors) @ expected[gallery].T, unit(text_rows) @ found[gallery].T),
    }
    return [Figure(name, value, at_least=RECALL) for name, value in figures.items()]


def _recall(expected: Array, found: Array) -> float:
    """Returns recall@10 for scores [queries, gallery] of the reference and of what is measured."""
    nearest = expected.argmax(axis=1)
    score = found[np.arange(len(found)), nearest]
    return float(((found > score[:, None]).sum(axis=1) < FIRST).mean())
