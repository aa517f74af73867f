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

    @property
    def fast_decode(self) -> float:
        """The smallest cosine of JPEGs that are read in part."""
        return min(FAST_DECODE, self.end_to_end)

    @property
    def fast_decode_deviation(self) -> float | None:
        """The largest deviation of JPEGs that are read in part."""
        return None if self.input_deviation is None else FAST_DECODE_DEVIATION

    @classmethod
    def of(cls, precision: str, reference: Reference) -> "Bounds":
        """Returns the bounds of a precision; fp16 is held to those of fp32 if the weights are half values already."""
        if precision == "int8":
            return cls(0.99, 0.99, None, None, None)
        if precision == "bf16" or (precision == "fp16" and not reference.is_half):
            return cls(0.999, 0.999, None, 0.01, 1e-5)
        return cls(0.99999, 0.9999, 0.01, 0.01, 1e-5)


BATCH_COSINE = 0.99
"""In int8 one scale is taken for all that is multiplied at once, so that a row's vector varies with its batch."""
FAST_DECODE, FAST_DECODE_DEVIATION = 0.998, 0.08
"""Measured over the gate's large JPEGs with a trained encoder and four random ones: 0.9989 to 0.9999 and 0.02 to 0.06.

Decoded to the target itself instead of twice that, they have 0.983 to 0.9996, and 0.05 to 0.30.
"""
RECALL = 0.99
"""Of the reference's nearest images, so many are still among the first ten in int8."""
