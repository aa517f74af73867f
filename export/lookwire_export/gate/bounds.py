"""How close an export has to come to its reference, by precision."""

from dataclasses import dataclass

from lookwire_export.reference import Reference


@dataclass(frozen=True)
class Bounds:
    """Smallest cosines of the graphs and from bytes and strings, and largest deviations where there is a bound.

    `deviation` is between the graph and the reference on the same inputs. `input_deviation` is between the server and the
    graph on the reference's own inputs: how weights are stored does not matter for it, except in int8, where a row's
    vector varies with its batch.
    """

    graph: float
    end_to_end: float
    deviation: float | None
    input_deviation: float | None
    batch_difference: float | None

    @classmethod
    def of(cls, precision: str, reference: Reference) -> "Bounds":
        """Returns the bounds of a precision; fp16 is held to those of fp32 if the weights are half values already."""
        if precision == "int8":
            return cls(0.99, 0.99, None, None, None)
        if precision == "fp16" and not reference.is_half:
            return cls(0.999, 0.999, None, 0.01, 1e-5)
        return cls(0.99999, 0.9999, 0.01, 0.01, 1e-5)


BATCH_COSINE = 0.99
"""In int8 one scale is taken for all that is multiplied at once, so that a row's vector varies with its batch."""
RECALL = 0.99
"""Of the reference's nearest images, so many are still among the first ten in int8."""
