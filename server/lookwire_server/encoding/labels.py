"""Labels: sets of alternatives that inputs are compared with.

A label's vector is the mean of its prompts' vectors, normalised (Radford et al. 2021, Learning Transferable Visual Models From
Natural Language Supervision, section 3.1.4).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lookwire_server.encoding.encoder import Encoder, Vectors
from lookwire_server.errors import InvalidArgument

# A mean of unit vectors that is shorter has no direction: what is left is rounding.
MIN_LENGTH = 1e-6


@dataclass(frozen=True, slots=True)
class Label:
    """One alternative. Without prompts of its own, the templates of its set are filled in with its name."""

    name: str
    prompts: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class LabelSet:
    """At least one label, and templates with "{}" in the place of a name."""

    labels: tuple[Label, ...]
    templates: tuple[str, ...]

    @property
    def prompt_characters(self) -> int:
        """The characters of all prompts, told without making them."""
        own = sum(len(prompt) for label in self.labels for prompt in label.prompts)
        filled_in = [len(label.name) for label in self.labels if not label.prompts]
        around = sum(len(template) - len("{}") for template in self.templates)
        return own + len(filled_in) * around + len(self.templates) * sum(filled_in)


class Prompts:
    """The prompts of all labels of some sets, in a row: `texts`."""

    def __init__(self, sets: Sequence[LabelSet]) -> None:
        self._sets = sets
        self.texts: list[str] = []
        # Where the prompts of each label begin.
        self._starts: list[int] = []
        for labels in sets:
            for label in labels.labels:
                self._starts.append(len(self.texts))
                self.texts += label.prompts or (template.replace("{}", label.name) for template in labels.templates)

    def check(self, encoder: Encoder) -> None:
        """Raises InvalidArgument for the first prompt that the encoder does not take; its `field` is the path of the prompt."""
        for index, text in enumerate(self.texts):
            if error := encoder.refusal(text):
                raise self._named(index, error)

    def label_vectors(self, vectors: Vectors) -> list[Vectors]:
        """Unit vectors of the labels of each set, shape [labels, dimension], from those of `texts`, [texts, dimension].

        Raises InvalidArgument for prompts that cancel each other out.
        """
        sums = np.add.reduceat(vectors, self._starts, axis=0, dtype=np.float64)
        lengths = np.linalg.norm(sums, axis=1, keepdims=True)
        counts = np.diff([*self._starts, len(self.texts)])
        label = int((lengths[:, 0] / counts).argmin())
        if lengths[label] < MIN_LENGTH * counts[label]:
            group, number = self._place(label)
            raise InvalidArgument(
                f"the prompts of label '{self._sets[group].labels[number].name}' cancel each other out: the mean of their "
                "vectors has no direction; describe it in other words",
                field=f"groups[{group}].labels[{number}]",
            )
        ends = np.cumsum([len(labels.labels) for labels in self._sets])[:-1]
        return np.split((sums / lengths).astype(np.float32), ends)

    def _named(self, index: int, error: InvalidArgument) -> InvalidArgument:
        """The error of a prompt, as that of what the caller wrote."""
        label = int(np.searchsorted(self._starts, index, side="right")) - 1
        group, number = self._place(label)
        which, of = index - self._starts[label], self._sets[group].labels[number]
        if of.prompts:
            field, what = f"groups[{group}].labels[{number}].prompts[{which}]", f"label '{of.name}'"
        else:
            field, what = f"groups[{group}].templates[{which}]", f"template {which} with label '{of.name}'"
        return error.at(field, f"{what}: ")

    def _place(self, label: int) -> tuple[int, int]:
        """The set of a label, and its number there."""
        for group, labels in enumerate(self._sets):
            if label < len(labels.labels):
                return group, label
            label -= len(labels.labels)
        raise IndexError(label)
