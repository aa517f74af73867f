"""Texts of unequal lengths in one batch without computing what is padding."""

from typing import Any

import torch


class Packing:
    """Where the tokens that count stand: padded [batch, length, ...], or packed one after the other [tokens, ...].

    All layers but attention treat each token for itself, and so may compute the packed ones. Only where no token sees those
    after it may the padding of a text, which stands after its end, hold anything.
    """

    def __init__(self, ends: Any, length: Any) -> None:
        """`ends` int64 [batch] is the place of the last token that counts of each text."""
        kept = torch.arange(length)[None] <= ends[:, None]
        self.shape = kept.shape
        rows, self.places = kept.nonzero().unbind(1)
        self._kept = rows * length + self.places
        # What is padding reads the last token before it.
        self._packed = kept.flatten().long().cumsum(0) - 1
        self.ends = self._packed.unflatten(0, self.shape).gather(1, ends[:, None])[:, 0]

    def packed(self, x: Any) -> Any:
        """[batch, length, ...] to [tokens, ...]."""
        return x.flatten(0, 1).index_select(0, self._kept)

    def padded(self, x: Any) -> Any:
        """[tokens, ...] to [batch, length, ...]."""
        return x.index_select(0, self._packed).unflatten(0, self.shape)
