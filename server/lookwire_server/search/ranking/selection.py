"""The choice of hits from the best on: no more of one group than wanted, and no near-duplicates."""

from collections.abc import Sequence

import numpy as np

from lookwire_server.errors import InvalidArgument
from lookwire_server.search.fields import Value
from lookwire_server.search.vectors import Matrix

# A product of so many vectors with those that were chosen is as quick for each as a larger one.
BLOCK = 256
# The cosine of a float32 vector with itself may be that much below 1.
ROUNDING = 1e-6


def check_collapse(cosine: float) -> None:
    """Raises InvalidArgument unless it is a cosine in (0, 1]."""
    if not 0 < cosine <= 1:
        raise InvalidArgument(f"a cosine in (0, 1], got {cosine}", field="collapse_cosine")


def choose(
    vectors: Matrix, values: Sequence[Value | None] | None, *, size: int, count: int, cosine: float | None
) -> list[list[int]]:
    """Returns at most `count` groups of at most `size` positions, best first, of items that come best first.

    Goes through the items once, and passes over one whose group is full, or would be one too many, and one whose cosine with an
    item chosen before is `cosine` or more. So what is not chosen keeps nothing else away. `vectors` are [n, d] of length 1.
    `values` [n] name the groups, and None is for items that are to be left out; without values each item is a group of its own.
    """
    groups: dict[Value, list[int]] = {}
    chosen: list[int] = []
    for start in range(0, len(vectors), BLOCK):
        block = vectors[start : start + BLOCK]
        dropped = np.zeros(len(block), np.bool_)
        alike = np.zeros((len(block), len(block)), np.bool_)
        if cosine is not None:
            dropped = np.any(block @ vectors[chosen].T >= cosine - ROUNDING, axis=1)
            alike = block @ block.T >= cosine - ROUNDING
        for row in range(len(block)):
            position = start + row
            value = position if values is None else values[position]
            if value is None or dropped[row] or (len(groups) == count and value not in groups):
                continue
            group = groups.setdefault(value, [])
            if len(group) < size:
                group.append(position)
                chosen.append(position)
                dropped |= alike[row]
    return list(groups.values())
