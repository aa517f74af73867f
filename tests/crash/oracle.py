"""What a collection must hold after any number of writes, acknowledged or cut off."""

import hashlib
import random
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

DIMENSION = 64
MEMBERS = 60


@dataclass(frozen=True, slots=True)
class State:
    """One version of an item: `version` decides its vector, `mark` is changed by updates of the payload alone."""

    version: int
    mark: int


def vector_of(id: str, version: int) -> NDArray[np.float32]:
    """The vector that this version of this item has, and no other."""
    seed = int.from_bytes(hashlib.sha256(f"{id} {version}".encode()).digest()[:8])
    row = np.random.default_rng(seed).standard_normal(DIMENSION)
    unit: NDArray[np.float32] = (row / np.linalg.norm(row)).astype(np.float32)
    return unit


@dataclass
class Group:
    """The items that one writer writes, one request after the other.

    `items` are those that were acknowledged, `pending` what the request in flight makes of some ids: None for gone.
    """

    name: str
    items: dict[str, State] = field(default_factory=dict)
    pending: Mapping[str, State | None] = field(default_factory=dict)
    version: int = 0

    @property
    def ids(self) -> list[str]:
        return [f"{self.name}-{member:02d}" for member in range(MEMBERS)]

    def some_ids(self, most: int) -> list[str]:
        return random.sample(self.ids, random.randint(1, most))

    def acknowledged(self) -> None:
        """The request in flight has succeeded."""
        self.items = applied(self.items, self.pending)
        self.pending = {}

    def settle(self, found: Mapping[str, State]) -> None:
        """Compares with what a server has that was started after a crash: all of the request in flight, or nothing of it."""
        after = applied(self.items, self.pending)
        assert found in (self.items, after), (
            f"{self.name}: lost {set(self.items) - set(found)}, risen {set(found) - set(self.items)}, "
            f"wrong {[(id, found[id], self.items[id]) for id in found.keys() & self.items.keys() if found[id] != self.items[id]]}"
            f"; in flight {dict(self.pending)}"
        )
        self.items, self.pending = dict(found), {}


def applied(items: Mapping[str, State], changes: Mapping[str, State | None]) -> dict[str, State]:
    merged = {**items, **changes}
    return {id: state for id, state in merged.items() if state is not None}
