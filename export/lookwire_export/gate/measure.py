"""Takes the gate's measurements of one export."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from lookwire_export.encoder import ExportedEncoder, Progress
from lookwire_export.gate import suspects
from lookwire_export.gate.agreement import Agreement
from lookwire_export.gate.answers import Normalisation
from lookwire_export.gate.bounds import BATCH_COSINE, Bounds
from lookwire_export.gate.end_to_end import Served
from lookwire_export.gate.fast_decode import FastDecode
from lookwire_export.gate.graphs import Effect, Graph, image_effects, text_effects
from lookwire_export.gate.layers import proposal
from lookwire_export.gate.probed import Probed
from lookwire_export.gate.recall import recall_figures
from lookwire_export.gate.report import Report
from lookwire_export.gate.tower import Tower
from lookwire_export.manifest import Figure
from lookwire_export.reference import Reference

WORST = 12
"""So many probes, those that differ most, are looked into for a cause."""


def measure(reference: Reference, encoder: ExportedEncoder, progress: Progress = lambda _: None) -> Report:
    """Compares an export that stands, ungated, in a repository of its own with its reference.

    Rounding hides small faults, so that an int8 export is first compared as it was in fp32, with the rules of its own
    manifest; what fails there is not compared further. Raises ExportError if there is nothing to compare: the reference
    fails on an image, or no server starts.
    """
    probed = Probed.of(reference, encoder.manifest["image"].get("decode", "exact"), progress)
    if encoder.manifest["precision"] != "int8":
        return _report(reference, encoder, probed, progress)
    exact = _report(reference, _before_rounding(encoder), probed, lambda stage: progress(f"before rounding, {stage}"))
    before = tuple(replace(figure, name=f"fp32_{figure.name}") for figure in exact.figures)
    if not exact.passed:
        return replace(exact, figures=before)
    report = _report(reference, encoder, probed, progress)
    return replace(report, figures=(*before, *report.figures))


def _before_rounding(encoder: ExportedEncoder) -> ExportedEncoder:
    """Returns an int8 encoder with its graphs in fp32; the rest of its manifest is what will be served."""
    exact = encoder.fp32
    graphs = {key: exact.manifest[key] for key in ("precision", "fp32_layers", "towers")}
    exact = replace(exact, manifest=encoder.manifest | graphs)
    exact.write_manifest()
    return exact


def _report(reference: Reference, encoder: ExportedEncoder, probed: Probed, progress: Progress) -> Report:
    image, text, served = _towers(reference, encoder, probed, progress)
    figures = [*image.figures(), *text.figures(), _company([*image.effects, *text.effects], image.bounds)]
    kinds, findings = image.answered.by_kind(), list(served.refused)
    if probed.scaled and served.scaled is not None:
        fast = FastDecode.of(probed.scaled, served.scaled, image.bounds)
        figures += fast.figures()
        findings += fast.findings()
        kinds |= fast.answered.by_kind()
    if encoder.manifest["precision"] == "int8":
        figures += recall_figures(probed.images, probed.texts, image.served, text.served)
    report = Report(tuple(figures), kinds, text.answered.by_kind())
    if report.passed:
        return report
    return replace(report, findings=(*findings, *_findings(reference, encoder, image, text, progress)))


def _towers(
    reference: Reference, encoder: ExportedEncoder, probed: Probed, progress: Progress
) -> tuple[Tower, Tower, Served]:
    """Returns both towers as measured, and what the server answered."""
    images, texts, precision = probed.images, probed.texts, encoder.manifest["precision"]
    image_graph, text_graph = Graph(encoder.image_graph, precision), Graph(encoder.text_graph, precision)
    image_rows = image_graph.answer(images, "images", progress)
    text_rows = text_graph.answer(texts, "texts", progress)
    padding = encoder.manifest["text"]["padding"]
    effects = (
        image_effects(image_graph, images, progress),
        text_effects(text_graph, texts, reference, padding, progress),
    )
    served = Served(encoder, probed, progress)
    bounds = Bounds.of(precision, reference)
    image, text = (
        Tower(
            name,
            bounds,
            answers,
            graph,
            computed=Agreement.of(answers.kinds, rows, answers.vectors),
            effects=effects_of_tower,
            answered=Agreement.of(answers.kinds, served_rows, answers.vectors),
            prepared=Agreement.of(answers.kinds, served_rows, rows),
            served=served_rows,
        )
        for name, answers, graph, rows, effects_of_tower, served_rows in (
            ("image", images, image_graph, image_rows, effects[0], served.images),
            ("text", texts, text_graph, text_rows, effects[1], served.texts),
        )
    )
    return image, text, served


def _company(effects: Sequence[Effect], bounds: Bounds) -> Figure:
    """Returns the figure of a row alone against the same row in batches and paddings."""
    if bounds.batch_difference is None:
        return Figure("batch_min_cosine", min(effect.min_cosine for effect in effects), at_least=BATCH_COSINE)
    difference = float(np.max([effect.difference for effect in effects]))
    return Figure("batch_max_difference", difference, at_most=bounds.batch_difference)


def _findings(
    reference: Reference, encoder: ExportedEncoder, image: Tower, text: Tower, progress: Progress
) -> Iterator[str]:
    """Yields what differs, as far as it can be told."""
    progress("looking for what differs")
    yield from _normalisation_findings(reference, encoder)
    yield from image.findings()
    if not image.is_prepared:
        rows = image.prepared.worst(WORST)
        yield from suspects.transform_findings(reference, image.answers, rows)
        yield from suspects.server_findings(reference, image.graph, image.answers, rows, image.served)
    yield from text.findings()
    if not text.is_prepared:
        yield from suspects.tokenizer_findings(reference, encoder.manifest["text"], text.answers)
    yield from proposal(encoder, (image, text), progress)


def _normalisation_findings(reference: Reference, encoder: ExportedEncoder) -> Iterator[str]:
    measured = Normalisation.of(reference)
    for name, own in (("mean", measured.mean), ("std", measured.std)):
        exported = encoder.manifest["image"][name]
        if not np.allclose(own, exported, atol=1e-4):
            yield (
                f"the {name} of the pixels differs: the checkpoint's own transform has {_numbers(own)}, "
                f"the export {_numbers(exported)}"
            )


def _numbers(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.5g}" for value in values)
