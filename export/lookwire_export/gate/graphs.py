"""The graphs on the reference's own pixels and token ids, by the batch and alone."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime

from lookwire_export import openvino
from lookwire_export.encoder import Progress
from lookwire_export.gate.agreement import Array, unit
from lookwire_export.gate.answers import BATCH, Answers, in_batches
from lookwire_export.gate.bounds import BATCH_COSINE
from lookwire_export.reference import Reference

BATCHES = (2, 3, 17)
IMAGE_SAMPLE, TEXT_SAMPLE = 17, 34
"""So many rows are run alone and in each size of batch."""


class Graph:
    """A tower's ONNX file, run on all cores by what the server runs it with in this precision."""

    def __init__(self, file: Path, precision: str) -> None:
        self._execute = openvino.executor(file) if precision == "bf16" else _executor(file)

    def run(self, rows: Array) -> Array:
        """Returns the embeddings of one batch, float32 [n, D]."""
        return self._execute(rows)

    def answer(self, answers: Answers, what: str, progress: Progress) -> Array:
        """Returns the embeddings of the reference's own inputs, float32 [n, D]."""
        rows = []
        for start, batch in in_batches(answers.inputs, BATCH):
            progress(f"{what} through the graph: {start} of {len(answers.inputs)}")
            rows.append(self.run(batch))
        return np.concatenate(rows)


@dataclass(frozen=True)
class Effect:
    """What a row's company does to its vector: `cause` is "batch" or "padding"; a row alone is what it is compared with.

    `difference` is the largest of any element; `min_cosine` is the smallest of any row.
    """

    tower: str
    cause: str
    difference: float
    min_cosine: float

    @classmethod
    def of(cls, tower: str, cause: str, alone: Array, together: Array) -> "Effect":
        """Compares rows in company with the same rows alone."""
        cosines = (unit(alone) * unit(together)).sum(axis=1)
        return cls(tower, cause, float(np.abs(alone - together).max()), float(cosines.min()))

    def holds(self, at_most: float | None) -> bool:
        """Whether the difference is small enough; without a bound for it, whether the cosine is large enough."""
        return self.min_cosine >= BATCH_COSINE if at_most is None else self.difference <= at_most


def image_effects(graph: Graph, answers: Answers, progress: Progress) -> list[Effect]:
    """Runs some images alone and in batches."""
    pixels = _sample(answers.inputs, IMAGE_SAMPLE)
    progress("images alone and in batches")
    alone = _run_in(1, graph, pixels)
    return [Effect.of("image", "batch", alone, _run_in(size, graph, pixels)) for size in BATCHES]


def text_effects(
    graph: Graph, answers: Answers, reference: Reference, padding: str, progress: Progress
) -> list[Effect]:
    """Runs some texts alone and in batches, and at every padding that `padding` allows."""
    ids = _sample(answers.inputs, TEXT_SAMPLE)
    progress("texts alone and in batches")
    if padding == "max_length":
        alone = _run_in(1, graph, ids)
        return [Effect.of("text", "batch", alone, _run_in(size, graph, ids)) for size in BATCHES]
    pad_id, length = reference.text.pad_id, reference.text.context_length
    cut = _cut(ids, reference)
    longer = [padded([row], min(len(row) + 1, length), pad_id)[0] for row in cut]
    alone, full = _run_in(1, graph, cut), _run_in(1, graph, ids)
    effects = [Effect.of("text", "padding", alone, rows) for rows in (_run_in(1, graph, longer), full)]
    for size in BATCHES:
        together = [graph.run(padded(batch, max(map(len, batch)), pad_id)) for _, batch in in_batches(cut, size)]
        effects.append(Effect.of("text", "padding", alone, np.concatenate(together)))
        effects.append(Effect.of("text", "batch", full, _run_in(size, graph, ids)))
    return effects


def _executor(file: Path) -> Callable[[Array], Array]:
    """Returns what computes the embeddings of a batch by onnxruntime."""
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda rows: np.asarray(session.run(["embedding"], {name: rows})[0])


def padded(rows: Sequence[Array], length: int, pad_id: int) -> Array:
    """Returns the rows' ids in one array, int32 [n, length]."""
    together = np.full((len(rows), length), pad_id, np.int32)
    for row, ids in zip(together, rows, strict=True):
        row[: len(ids)] = ids
    return together


def _cut(ids: Array, reference: Reference) -> list[Array]:
    """Returns each row up to its end token, which an over-long text ends with."""
    end = int(reference.tokenize(["red " * reference.text.context_length])[0, -1])
    return [row[: int((row == end).argmax()) + 1] for row in ids]


def _run_in(size: int, graph: Graph, rows: Sequence[Array] | Array) -> Array:
    return np.concatenate([graph.run(np.stack(batch)) for _, batch in in_batches(rows, size)])


def _sample(rows: Array, size: int) -> Array:
    """Returns so many of the rows, evenly spread."""
    return np.asarray(rows[np.linspace(0, len(rows) - 1, size).round().astype(int)])
