"""`manifest.json` and `config.pbtxt`: what the server needs to know of an encoder, written as it reads it."""

import hashlib
import json
import string
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import open_clip
import torch

from lookwire_export.checkpoint import Checkpoint

FIXED = "0123456789_-" + string.ascii_letters
"""What a model's name may consist of."""
MAX_BATCH = 64
LENGTHS = (8, 16, 24, 32, 48)
"""Texts are padded to the first of these that fits, or to the context length."""


@dataclass(frozen=True)
class Figure:
    """A figure of the gate with its bound; exactly one of `at_least` and `at_most` is set."""

    name: str
    value: float
    at_least: float | None = None
    at_most: float | None = None

    @property
    def holds(self) -> bool:
        """Whether the value keeps its bound; not-a-number keeps none."""
        if self.at_least is not None:
            return self.value >= self.at_least
        return self.at_most is not None and self.value <= self.at_most

    def record(self) -> dict[str, float | str]:
        """Returns the figure without the bound that it does not have."""
        return {key: value for key, value in asdict(self).items() if value is not None}
