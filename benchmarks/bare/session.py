"""A session of onnxruntime as its documentation opens one, but for the number of threads."""

import os
from pathlib import Path
from typing import Any

import onnxruntime  # noqa: TID251 - the bare loop is what the server is compared with

SERVER_THREADS = len(os.sched_getaffinity(0))
"""The threads that a server gives a model where it is told nothing."""


def open_session(encoder: Path, tower: dict[str, Any], threads: int) -> onnxruntime.InferenceSession:
    """The tower that the manifest of `encoder` names."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    graph = encoder.parent / tower["model"] / str(tower["version"]) / "model.onnx"
    return onnxruntime.InferenceSession(graph, options, ["CPUExecutionProvider"])
