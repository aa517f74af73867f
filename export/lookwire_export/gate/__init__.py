"""The export gate: what is not the reference is not published.

First the graphs against PyTorch on the same pixels and token ids, then the whole encoder against the checkpoint's own
transform, tokenizer and model from bytes and strings, through the front door: a real server, asked by the real client.
"""

from lookwire_export.encoder import ExportedEncoder, Progress
from lookwire_export.gate.measure import measure
from lookwire_export.gate.report import GateError, Report
from lookwire_export.manifest import Figure
from lookwire_export.reference import Reference

__all__ = ["GateError", "Report", "gate", "measure"]


def gate(reference: Reference, encoder: ExportedEncoder, progress: Progress = lambda _: None) -> list[Figure]:
    """Returns the figures of an encoder that passes; raises GateError, which names those that fail, otherwise."""
    return measure(reference, encoder, progress).require()
