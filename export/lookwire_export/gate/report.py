"""What the gate found."""

from collections.abc import Sequence
from dataclasses import dataclass

from lookwire_export.manifest import Figure
from lookwire_export.reference import ExportError


@dataclass(frozen=True)
class Report:
    """The figures of an export, the smallest cosine of each kind of probe, and what differs, in sentences.

    `images` and `texts` are from bytes and strings through a server, by kind, the smallest first; JPEGs that are read in part
    are kinds of their own, at the end.
    """

    figures: tuple[Figure, ...]
    images: dict[str, float]
    texts: dict[str, float]
    findings: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        return all(figure.holds for figure in self.figures)

    def require(self) -> list[Figure]:
        """Returns the figures; raises GateError if one does not hold."""
        if not self.passed:
            raise GateError(self)
        return list(self.figures)


class GateError(ExportError):
    """The encoder does not agree with its reference; the message names the figures that fail, and what differs."""

    def __init__(self, report: Report) -> None:
        super().__init__(
            "\n- ".join(["the export does not agree with its reference:", *_failed(report), *report.findings])
        )
        self.report = report

    @property
    def figures(self) -> tuple[Figure, ...]:
        """All figures, those that hold too."""
        return self.report.figures


def _failed(report: Report) -> Sequence[str]:
    return [
        f"{figure.name} is {figure.value:.8g}, must be {figure.bound}" for figure in report.figures if not figure.holds
    ]
