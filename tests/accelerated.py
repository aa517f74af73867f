"""Models that OpenVINO executes, for tests."""

import json
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from tests.conftest import MODEL_REPOSITORY

ACCELERATOR = """
optimization { execution_accelerators { cpu_execution_accelerator [
  { name: "openvino" parameters { key: "precision_mode" value: "bf16" } }
] } }
"""
ASK = "from lookwire_server.models.backends.openvino import core; core()"


@cache
def missing() -> str:
    """Why OpenVINO cannot be used here; empty if it can. Asked in a process of its own: this one keeps it unloaded."""
    asked = subprocess.run([sys.executable, "-c", ASK], capture_output=True, text=True, check=False)
    return asked.stderr.strip().rpartition("\n")[2]


@pytest.fixture
def bf16() -> None:
    """Skips the test where OpenVINO or the CPU's bfloat16 is missing."""
    if reason := missing():
        pytest.skip(reason)


def write_accelerated(root: Path, precision: str = "bf16", towers: tuple[str, ...] = ("image", "text")) -> Path:
    """The bundled encoder, its towers accelerated and its manifest of this precision."""
    shutil.copytree(MODEL_REPOSITORY, root)
    for tower in towers:
        with (root / f"garments-{tower}" / "config.pbtxt").open("a") as config:
            config.write(ACCELERATOR)
    manifest = root / "garments/1/manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"precision": precision}))
    return root
