"""The export gate: what is not the reference is not published.

First the graphs against PyTorch on the same pixels and token ids, then the whole encoder against the checkpoint's own
transform, tokenizer and model from bytes and strings, through the front door: a real server, asked by the real client.
An int8 export is compared twice: what it was made from, by the bounds of fp32, and what rounding has made of that.
"""

from lookwire_export.gate.measure import measure
from lookwire_export.gate.report import GateError, Report

__all__ = ["GateError", "Report", "measure"]
