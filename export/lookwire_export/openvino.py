"""OpenVINO, which computes a bf16 export: the weights are those of fp32, their products are taken in bfloat16."""

import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lookwire_export.reference import ExportError

LANES = 16
"""Where attention is as wide as a multiple of this, a text's vector does not change with the width.

At other widths 0 to 11 % of the texts change, by up to 0.004 (measured: OpenVINO 2026.4, AVX512_BF16).
"""


@cache
def core() -> Any:
    """Returns OpenVINO's Core; raises ExportError if it is not installed, or the CPU has no bfloat16 to measure it by."""
    # Without this the import reports itself to Google Analytics, and writes into the home directory.
    sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
    try:
        import openvino
    except ModuleNotFoundError as error:
        raise ExportError(
            f"a bf16 export is computed by OpenVINO, which is not installed ({error}): pip install 'lookwire[openvino]'"
        ) from None
    core = openvino.Core()
    if "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        raise ExportError(
            "a bf16 export is measured and served on CPUs with instructions for bfloat16 (AVX512_BF16, AMX), and this one "
            "has none: export it there, or with another --precision"
        )
    return core


def executor(file: Path) -> Callable[[NDArray[Any]], NDArray[Any]]:
    """Returns what computes the embeddings of a batch by a tower's graph, as the server does."""
    properties = {"INFERENCE_PRECISION_HINT": "bf16", "NUM_STREAMS": 1, "PERFORMANCE_HINT": "LATENCY"}
    request = core().compile_model(core().read_model(file), "CPU", properties).create_infer_request()
    return lambda rows: np.asarray(request.infer({0: rows})["embedding"])
