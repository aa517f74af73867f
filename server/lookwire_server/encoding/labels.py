"""Labels: sets of alternatives that inputs are compared with, and their vectors, which are kept.

A label's vector is the mean of its prompts' vectors, normalised (Radford et al. 2021, Learning Transferable Visual Models From
Natural Language Supervision, section 3.1.4).
"""

import asyncio
import sys
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from lookwire_server.encoding.encoder import Encoder, Times, Vectors
from lookwire_server.errors import InvalidArgument
from lookwire_server.metrics import Metrics
from lookwire_server.models.model import Lane

# Enough for hundreds of sets of a hundred labels.
MAX_BYTES = 64 << 20
# What an entry and a label cost beside their texts and vectors, roughly: Python's objects.
ENTRY_BYTES = 1024
LABEL_BYTES = 128
# A mean of unit vectors that is shorter has no direction: what is left is rounding.
MIN_LENGTH = 1e-6


@dataclass(frozen=True, slots=True)
class Label:
    """One alternative. Without prompts of its own, the templates of its set are filled in with its name."""

    name: str
    prompts: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class LabelSet:
    """At least one label, and templates with "{}" in the place of a name. Sets that are equal have equal vectors."""

    labels: tuple[Label, ...]
    templates: tuple[str, ...]

    def prompts(self) -> Iterator[tuple[str, ...]]:
        """The prompts of each label."""
        for label in self.labels:
            yield label.prompts or tuple(template.replace("{}", label.name) for template in self.templates)

    @property
    def prompt_count(self) -> int:
        """The number of prompts of all labels, told without making them."""
        return sum(len(label.prompts) or len(self.templates) for label in self.labels)

    @property
    def prompt_characters(self) -> int:
        """The characters of all prompts, told without making them."""
        own = sum(len(prompt) for label in self.labels for prompt in label.prompts)
        filled_in = [len(label.name) for label in self.labels if not label.prompts]
        around = sum(len(template) - len("{}") for template in self.templates)
        return own + len(filled_in) * around + len(self.templates) * sum(filled_in)

    @property
    def nbytes(self) -> int:
        """What the set takes in memory, roughly."""
        texts = [*self.templates, *(label.name for label in self.labels)]
        texts += [prompt for label in self.labels for prompt in label.prompts]
        return LABEL_BYTES * len(self.labels) + sum(map(sys.getsizeof, texts))


# A set, and the fingerprint of the encoder: another encoder never finds the vectors of this one.
Key = tuple[str, LabelSet]


@dataclass(frozen=True, slots=True)
class LabelVectors:
    """Unit vectors of shape [labels, dimension], and the time that making them took; none for those that were kept."""

    vectors: Vectors
    times: Times


@dataclass(slots=True)
class Making:
    """Vectors that are being made, and how many callers wait for them."""

    task: asyncio.Task[LabelVectors]
    waiters: int = 0


class LabelCache:
    """Makes the vectors of labels and keeps them, the least recently used dropped when all exceed `max_bytes`.

    Equal sets that are asked for at once are made once. A caller that goes away does not end the work of the others; when
    the last has gone, the work ends. Failures are not kept. Used on the event loop only.
    """

    def __init__(self, metrics: Metrics, max_bytes: int = MAX_BYTES) -> None:
        self.max_bytes = max_bytes
        self.nbytes = 0
        self._entries: OrderedDict[Key, Vectors] = OrderedDict()
        self._making: dict[Key, Making] = {}
        self._hits = metrics.label_cache_hits
        self._misses = metrics.label_cache_misses

    def missing_prompts(self, encoder: Encoder, sets: Iterable[LabelSet]) -> int:
        """How many prompts must be embedded for the vectors of these sets that are neither kept nor being made."""
        keys = [(encoder.fingerprint, labels) for labels in sets]
        return sum(key[1].prompt_count for key in keys if key not in self._entries and key not in self._making)

    async def vectors(self, encoder: Encoder, labels: LabelSet, lane: Lane) -> LabelVectors:
        """The vectors of the labels; where they must be made, their prompts are embedded in `lane`.

        Raises InvalidArgument for a prompt that cannot be embedded and for prompts that cancel each other out; its `field`
        is the path below the set, ".labels[2].prompts[0]".
        """
        key = (encoder.fingerprint, labels)
        if (vectors := self._entries.get(key)) is not None:
            self._entries.move_to_end(key)
            self._hits.inc()
            return LabelVectors(vectors, Times())
        making = self._making.get(key)
        if making is None:
            self._misses.inc()
            making = self._making[key] = Making(asyncio.create_task(self._make(encoder, key, lane)))
        else:
            self._hits.inc()
        making.waiters += 1
        try:
            return await asyncio.shield(making.task)
        finally:
            making.waiters -= 1
            if not making.waiters:
                # Nothing happens to a task that is done; one that nobody waits for any more is no longer found.
                making.task.cancel()
                self._forget(key, making.task)

    async def _make(self, encoder: Encoder, key: Key, lane: Lane) -> LabelVectors:
        _, labels = key
        try:
            # Each caller waits as long as its own deadline lets it: the work has none.
            made = await embedded(encoder, labels, lane)
        finally:
            self._forget(key, asyncio.current_task())
        self._put(key, made.vectors)
        return made

    def _forget(self, key: Key, task: asyncio.Task[LabelVectors] | None) -> None:
        if key in self._making and self._making[key].task is task:
            del self._making[key]

    def _put(self, key: Key, vectors: Vectors) -> None:
        self._entries[key] = vectors
        self.nbytes += size(key, vectors)
        while self.nbytes > self.max_bytes:
            self.nbytes -= size(*self._entries.popitem(last=False))


def size(key: Key, vectors: Vectors) -> int:
    """What an entry takes in memory, roughly."""
    return ENTRY_BYTES + key[1].nbytes + vectors.nbytes


async def embedded(encoder: Encoder, label_set: LabelSet, lane: Lane) -> LabelVectors:
    """Embeds all prompts, and makes a vector of those of each label."""
    labels = label_set.labels
    prompts = list(label_set.prompts())
    places = [(label, number) for label, of_label in enumerate(prompts) for number in range(len(of_label))]
    answer = await encoder.embed([prompts[label][number] for label, number in places], lane=lane)
    for index, error in sorted(answer.errors.items()):
        label, number = places[index]
        field = f".labels[{label}].prompts[{number}]" if labels[label].prompts else f".labels[{label}]"
        raise type(error)(f"label '{labels[label].name}': {error.message}", field=field, **error.metadata)
    starts = [index for index, (_, number) in enumerate(places) if number == 0]
    sums = np.add.reduceat(answer.vectors, starts, axis=0, dtype=np.float64)
    means = sums / [[len(of_label)] for of_label in prompts]
    lengths = np.linalg.norm(means, axis=1, keepdims=True)
    if lengths.min() < MIN_LENGTH:
        label = int(lengths.argmin())
        raise InvalidArgument(
            f"the prompts of label '{labels[label].name}' cancel each other out: the mean of their vectors has no direction; "
            "describe it in other words",
            field=f".labels[{label}]",
        )
    vectors = (means / lengths).astype(np.float32)
    vectors.flags.writeable = False
    return LabelVectors(vectors, answer.times)
