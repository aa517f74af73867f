"""What a benchmark found: figures with their bounds, as a table and as JSON, with the machine and the versions."""

import json
import os
import platform
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path

from rich.console import Console
from rich.table import Table

PACKAGES = ("lookwire", "grpcio", "onnxruntime", "numpy", "faiss-cpu", "protobuf")


@dataclass(frozen=True, slots=True)
class Figure:
    """One measurement. `reference` says what it is compared with or how it was taken; at most one bound is set."""

    name: str
    value: float
    unit: str
    reference: str
    at_least: float | None = None
    at_most: float | None = None

    @property
    def holds(self) -> bool:
        """Whether the bound is kept; a figure without one always holds."""
        return (self.at_least is None or self.value >= self.at_least) and (
            self.at_most is None or self.value <= self.at_most
        )


@dataclass(slots=True)
class Report:
    """The figures of one run of a benchmark."""

    name: str
    figures: list[Figure] = field(default_factory=list)

    @property
    def holds(self) -> bool:
        return all(figure.holds for figure in self.figures)

    def add(self, figure: Figure) -> None:
        self.figures.append(figure)

    def write(self, folder: Path) -> None:
        """Prints the table and writes `folder`/NAME.json."""
        table = Table("figure", "value", "unit", "bound", "holds", "reference", title=self.name)
        for figure in self.figures:
            bound = "" if figure.at_least is None else f">= {figure.at_least:g}"
            bound = bound if figure.at_most is None else f"<= {figure.at_most:g}"
            holds = ("yes" if figure.holds else "NO") if bound else ""
            table.add_row(figure.name, f"{figure.value:.4g}", figure.unit, bound, holds, figure.reference)
        Console().print(table)
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{self.name}.json"
        content = {
            "machine": {"processor": processor(), "cores": len(os.sched_getaffinity(0)), "system": platform.platform()},
            "versions": {"python": platform.python_version()} | {name: version(name) for name in PACKAGES},
            "figures": [asdict(figure) | {"holds": figure.holds} for figure in self.figures],
        }
        path.write_text(json.dumps(content, indent=2) + "\n")
        print(f"written to {path}")


def processor() -> str:
    """The processor's name as Linux tells it, else as Python does."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor()
