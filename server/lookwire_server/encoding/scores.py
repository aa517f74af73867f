"""Scores: what the cosine of two vectors says about their match, by the encoder's rule."""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from lookwire_server.encoding.manifest import Manifest

Floats = np.ndarray[Any, np.dtype[np.float32]]
Doubles = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True, slots=True)
class ScoreRule:
    """How an encoder turns cosines into logits, and logits into probabilities."""

    kind: Literal["softmax", "sigmoid"]
    scale: float
    bias: float

    @staticmethod
    def of(manifest: Manifest) -> "ScoreRule":
        """The rule of a manifest."""
        return ScoreRule(manifest.score, manifest.logit_scale, manifest.logit_bias or 0.0)

    def logits(self, cosines: Floats) -> Doubles:
        """Scale x cosine + bias, of the cosines' shape."""
        return self.scale * cosines.astype(np.float64) + self.bias

    def probabilities(self, logits: Doubles) -> Doubles:
        """Probabilities of logits of shape [inputs, labels]: the softmax of each row (CLIP), or the sigmoid of each (SigLIP)."""
        return softmax(logits) if self.kind == "softmax" else sigmoid(logits)


def cosines(left: Floats, right: Floats | Doubles) -> Floats:
    """Cosines of unit vectors: of shape [m, d] and [n, d], all with all, [m, n].

    The sums are in double precision, so that a cosine does not depend on what else is computed with it.
    """
    products: Doubles = left.astype(np.float64) @ right.astype(np.float64, copy=False).T
    return np.clip(products, -1, 1).astype(np.float32)


def paired_cosines(left: Floats, right: Floats) -> Floats:
    """Cosines of unit vectors, row by row: of shape [n, d] and [n, d], [n]."""
    products: Doubles = np.einsum("nd,nd->n", left, right, dtype=np.float64)
    return np.clip(products, -1, 1).astype(np.float32)


def clip_scores(cosines: Floats) -> Floats:
    """100 x max(cosine, 0): the CLIP score of torchmetrics. Hessel et al. 2021 (CLIPScore, section 3) multiply by 2.5 instead."""
    return 100 * np.maximum(cosines, 0)


def softmax(logits: Doubles) -> Doubles:
    """The softmax of each row; only differences count, so the largest logit of a row may be anything finite."""
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    shares: Doubles = powers / powers.sum(axis=-1, keepdims=True)
    return shares


def sigmoid(logits: Doubles) -> Doubles:
    """1 / (1 + exp(-logit)), without overflow, and exact to the last digits far below 0 too."""
    return np.exp(-np.logaddexp(0, -logits))
