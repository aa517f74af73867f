"""One tower of an export against its reference: the graph on the same inputs, and the server from bytes or strings."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from lookwire_export.gate.agreement import Agreement, Array
from lookwire_export.gate.answers import Answers
from lookwire_export.gate.bounds import Bounds
from lookwire_export.gate.graphs import Effect, Graph
from lookwire_export.manifest import Figure

KINDS = 6
"""So many kinds of probes are named that differ most."""


@dataclass(frozen=True)
class Tower:
    """What was measured of the tower `name`, "image" or "text".

    `computed` is how the graph agrees with the reference on the reference's own inputs, `effects` what a row's batch and
    padding do there. `answered` is how the server agrees with the reference from bytes or strings, and `prepared` how it
    agrees with the graph on the reference's own inputs: what lies between these is how the server makes its inputs.
    """

    name: str
    bounds: Bounds
    answers: Answers
    graph: Graph
    computed: Agreement
    effects: Sequence[Effect]
    answered: Agreement
    prepared: Agreement
    served: Array

    def figures(self) -> Iterator[Figure]:
        """Yields this tower's own figures."""
        bounds = self.bounds
        yield Figure(f"{self.name}_graph_min_cosine", self.computed.min_cosine, at_least=bounds.graph)
        if bounds.deviation:
            yield Figure(f"{self.name}_graph_max_deviation", self.computed.max_deviation, at_most=bounds.deviation)
        yield Figure(f"{self.name}_end_to_end_min_cosine", self.answered.min_cosine, at_least=bounds.end_to_end)
        if bounds.input_deviation:
            yield Figure(
                f"{self.name}_input_max_deviation", self.prepared.max_deviation, at_most=bounds.input_deviation
            )

    def findings(self) -> Iterator[str]:
        """Yields which probes differ, and where: in the graph, or before it."""
        bounds, own = self.bounds, "pixels" if self.name == "image" else "token ids"
        wrong = self.computed.kinds_beyond(bounds.graph, bounds.deviation)
        if wrong:
            yield (
                f"the {self.name} graph computes something else than the model from the model's own {own}, so the tower "
                f"differs (its layers, activation, mask, pooling, normalisation or weights): {_listed(wrong, self.answers)}"
            )
        if padded := [effect for effect in self.effects if effect.cause == "padding" and self._matters(effect)]:
            most = max(effect.difference for effect in padded)
            yield (
                f"a text's vector changes by up to {most:.2g} with the padding that follows its end: the causal mask is "
                "missing, or texts have to be padded to the context length"
            )
        unprepared = self.prepared.kinds_beyond(bounds.end_to_end, bounds.input_deviation)
        if unprepared and not padded:
            what = "decodes or transforms images" if self.name == "image" else "cleans, tokenises or pads texts"
            agrees = "" if wrong else f"the graph agrees on the model's own {own}; "
            yield (
                f"{self.name} end to end: {agrees}the server {what} otherwise than the checkpoint's own code: "
                f"{_listed(unprepared, self.answers)}"
            )

    @property
    def is_prepared(self) -> bool:
        """Whether the server's inputs are the reference's, as far as its vectors show."""
        return not self.prepared.kinds_beyond(self.bounds.end_to_end, self.bounds.input_deviation)

    def _matters(self, effect: Effect) -> bool:
        return not effect.holds(self.bounds.batch_difference)


def _listed(kinds: dict[str, float], answers: Answers) -> str:
    """Returns the kinds with the smallest cosine of each, the worst first."""
    listed = ", ".join(f"{kind} {cosine:.5g}" for kind, cosine in list(kinds.items())[:KINDS])
    if len(kinds) == len(set(answers.kinds)):
        return f"smallest cosines, all kinds of probes differ: {listed}, ..."
    return f"smallest cosines: {listed}" + (f", and {len(kinds) - KINDS} more kinds" if len(kinds) > KINDS else "")
