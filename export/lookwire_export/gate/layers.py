"""Which layers an int8 export had better leave in fp32, found by measuring."""

import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from lookwire_export import precision
from lookwire_export.encoder import ExportedEncoder, Progress
from lookwire_export.gate.agreement import Agreement
from lookwire_export.gate.graphs import Graph
from lookwire_export.gate.tower import Tower

PROBES = 12
"""So many probes, those that differ most, are measured with."""
SECONDS = 600.0
"""Ranking the layers of a tower ends after so long, with those that were measured until then."""
MOST = 8
"""No more layers than this are proposed: an export that needs more had better be fp16."""


def proposal(encoder: ExportedEncoder, towers: Sequence[Tower], progress: Progress) -> Iterator[str]:
    """Yields, for each int8 tower whose graph fails, which layers are worst and which of them to leave in fp32."""
    if encoder.manifest["precision"] != "int8":
        return
    for tower in towers:
        if tower.computed.min_cosine >= tower.bounds.graph:
            continue
        layers = Layers(encoder.fp32.graph(tower.name), tower, encoder.manifest["fp32_layers"], progress)
        losses = layers.losses()
        worst = ", ".join(f"{name} {1 - loss:.5g}" for name, loss in list(losses.items())[:3])
        unmeasured = len(layers.names) - len(losses)
        yield (
            f"the worst layers of the {tower.name} tower, by the smallest cosine with only that one in int8: {worst}"
            + (f" ({unmeasured} of {len(layers.names)} were not measured in {SECONDS:.0f} s)" if unmeasured else "")
        )
        keep = layers.smallest(losses, tower.bounds.graph)
        yield (
            f"to pass, leave these in fp32: --keep-fp32 {' '.join([*layers.kept, *keep])}"
            if keep
            else f"leaving the {MOST} worst in fp32 is not enough: export it as fp16"
        )


class Layers:
    """The layers of one tower that are computed in int8, and what each of them does to the probes that differ most."""

    def __init__(self, fp32_graph: Path, tower: Tower, kept: Sequence[str], progress: Progress) -> None:
        self._file, self._progress = fp32_graph, progress
        rows = tower.computed.worst(PROBES)
        self._inputs, self._vectors = tower.answers.inputs[rows], tower.answers.vectors[rows]
        self._kinds = tuple(tower.answers.kinds[row] for row in rows)
        self.kept = list(kept)
        self._all = precision.layers(fp32_graph)
        self.names = [name for name in self._all if name not in kept]

    def losses(self) -> dict[str, float]:
        """Returns 1 - the smallest cosine with only this layer in int8, by layer, the largest first."""
        losses, started = {}, time.monotonic()
        for index, name in enumerate(self.names):
            if time.monotonic() - started > SECONDS:
                break
            self._progress(f"layer {index + 1} of {len(self.names)} in int8: {name}")
            losses[name] = 1 - self.min_cosine([other for other in self.names if other != name])
        return dict(sorted(losses.items(), key=lambda item: -item[1]))

    def smallest(self, losses: Mapping[str, float], at_least: float) -> list[str] | None:
        """Returns how many of the layers, the worst first, have to stay in fp32 for this smallest cosine, by name.

        None if that takes more than a few.
        """
        worst = list(losses)[:MOST]
        for count in range(1, len(worst) + 1):
            self._progress(f"int8 but for {', '.join(worst[:count])}")
            if self.min_cosine(worst[:count]) >= at_least:
                return worst[:count]
        return None

    def min_cosine(self, keep_fp32: Sequence[str]) -> float:
        """Returns the smallest cosine with these layers, and those that are kept anyway, in fp32."""
        keep = {*keep_fp32, *self.kept}
        with tempfile.TemporaryDirectory(dir=self._file.parent, prefix=".") as folder:
            file = Path(folder) / "model.onnx"
            precision.quantize(self._file, file, [name for name in self._all if name in keep])
            rows = Graph(file, "int8").run(self._inputs)
        return Agreement.of(self._kinds, rows, self._vectors).min_cosine
