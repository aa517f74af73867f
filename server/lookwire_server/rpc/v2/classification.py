"""The classification extension: the best classes of an output in place of its scores."""

import math

import numpy as np

from lookwire_server.errors import InvalidArgument
from lookwire_server.models import datatypes
from lookwire_server.models.model import Tensor
from lookwire_server.rpc.v2.tensors import objects

# Scores of one row that are ranked, as in Triton.
MAX_SCORES = 1_000_000


def classify(scores: Tensor, classes: int, labels: tuple[str, ...], batched: bool) -> Tensor:
    """The `classes` highest scores of each row as BYTES "score:index" or "score:index:label", highest first.

    `scores` has shape [batch, ...] if `batched`, else it is one row; the result has shape [batch, k] or [k], where k is
    `classes`, or the number of scores if that is less. Equal scores come in the order of their indices, NaN last.
    """
    if scores.dtype.kind not in "iuf":
        raise InvalidArgument(
            f"class result not available for output due to unsupported type '{datatypes.of(scores)}'; ask for it without "
            "classification"
        )
    width = math.prod(scores.shape[1:] if batched else scores.shape)
    if width > MAX_SCORES:
        raise InvalidArgument(
            f"classification output tensor too large: it has {width} scores a row, at most {MAX_SCORES} are ranked"
        )
    rows = scores.reshape(-1, width) if width else np.empty((len(scores) if batched else 1, 0), scores.dtype)
    falling = -rows if rows.dtype.kind == "f" else ~rows  # ascending order of these is descending order of the scores
    best = np.argsort(falling, axis=1, kind="stable")[:, :classes]
    form = "{:f}:{}" if rows.dtype.kind == "f" else "{}:{}"
    highest = np.take_along_axis(rows, best, axis=1)
    texts = [
        (form.format(score, index) + (f":{labels[index]}" if index < len(labels) else "")).encode()
        for score, index in zip(highest.ravel().tolist(), best.ravel().tolist(), strict=True)
    ]
    return objects(texts).reshape(best.shape if batched else best.shape[1:])
