"""What a server that decodes fast makes of the JPEGs that it reads in part."""

from collections.abc import Iterator
from dataclasses import dataclass

from lookwire_export.gate.agreement import Agreement, Array
from lookwire_export.gate.answers import Answers
from lookwire_export.gate.bounds import Bounds
from lookwire_export.manifest import Figure


@dataclass(frozen=True)
class FastDecode:
    """How the vectors of these JPEGs agree with the reference's, which decodes all of them."""

    bounds: Bounds
    answered: Agreement

    @classmethod
    def of(cls, scaled: Answers, served: Array, bounds: Bounds) -> "FastDecode":
        """Compares the server's vectors, float32 [n, D], with the reference's."""
        return cls(bounds, Agreement.of(scaled.kinds, served, scaled.vectors))

    def figures(self) -> Iterator[Figure]:
        """Yields the smallest cosine, and the largest deviation where there is a bound for it."""
        yield Figure("fast_decode_min_cosine", self.answered.min_cosine, at_least=self.bounds.fast_decode)
        if self.bounds.fast_decode_deviation:
            yield Figure(
                "fast_decode_max_deviation", self.answered.max_deviation, at_most=self.bounds.fast_decode_deviation
            )

    def findings(self) -> Iterator[str]:
        """Yields which kinds of JPEGs differ by more than they may."""
        wrong = self.answered.kinds_beyond(self.bounds.fast_decode, self.bounds.fast_decode_deviation)
        if wrong:
            listed = ", ".join(f"{kind} {cosine:.5g}" for kind, cosine in wrong.items())
            yield (
                "reading JPEGs in part costs this encoder more than it may: it had better decode exact; smallest cosines: "
                f"{listed}"
            )
