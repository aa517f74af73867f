"""`lookwire-server check`: every mistake of a repository in a line that says what to do."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import MODEL_REPOSITORY
from tests.server.graphs import SCALE, save_scale, write_scale

ENSEMBLE = """
platform: "ensemble" max_batch_size: 8
input [{ name: "a" data_type: TYPE_FP32 dims: [4] }]
output [{ name: "b" data_type: TYPE_FP32 dims: [4] }]
ensemble_scheduling { step [{ model_name: "%s" model_version: -1
  input_map { key: "%s" value: "a" } output_map { key: "%s" value: "b" } }] }
"""


def run_check(*arguments: object) -> tuple[int, list[str]]:
    done = subprocess.run(
        [sys.executable, "-m", "lookwire_server", "check", *map(str, arguments)], capture_output=True, text=True
    )
    assert "Traceback" not in done.stderr
    return done.returncode, done.stdout.splitlines()


def write(root: Path, name: str, config: str, *versions: str) -> None:
    (root / name).mkdir(parents=True)
    (root / name / "config.pbtxt").write_text(config)
    for version in versions or ("1",):
        (root / name / version).mkdir()


def test_good_repository() -> None:
    """Nothing is wrong with the bundled repository, and the exit status says so."""
    assert run_check(MODEL_REPOSITORY) == (0, ["3 models, 0 errors, 0 warnings"])


@pytest.mark.parametrize("arguments", [(), ("nowhere",)])
def test_misuse(arguments: tuple[str, ...]) -> None:
    """A missing folder, or none, is exit status 2."""
    assert run_check(*arguments)[0] == 2


def test_empty_repository(tmp_path: Path) -> None:
    """A folder without models is an error that says what a model is."""
    assert run_check(tmp_path) == (
        1,
        [f"error: '{tmp_path}' holds no model: no <model>/config.pbtxt and no <model>/<version>/"],
    )


def test_every_mistake_is_told(tmp_path: Path) -> None:
    """Each broken model has its own line with the place, what is wrong and how to mend it; good ones have none."""
    write_scale(tmp_path, "scale", {1: 2.0})
    write(tmp_path, "field", "\nmax_batchsize: 4")
    write(tmp_path, "place", "max_queue_delay_microseconds: 4")
    write(tmp_path, "enum", 'input [{ name: "x" data_type: TYPE_FP31 }]')
    write(tmp_path, "backend", 'backend: "onxruntime"')
    write(tmp_path, "versions", SCALE, "next")
    write(tmp_path, "file", SCALE)
    (tmp_path / "file" / "1" / "modell.onnx").touch()
    write(tmp_path, "garbage", SCALE)
    (tmp_path / "garbage" / "1" / "model.onnx").write_bytes(b"\x08garbage")
    write(tmp_path, "graph", SCALE.replace("[4]", "[5]"))
    save_scale(tmp_path / "graph" / "1" / "model.onnx", 2.0)
    write(tmp_path, "script", 'backend: "python"')
    (tmp_path / "script" / "1" / "model.py").write_text("import numpy\ndef f(:\n")
    write(tmp_path, "stranger", ENSEMBLE % ("scal", "x", "y"))
    write(tmp_path, "tensors", ENSEMBLE % ("scale", "xx", "z"))
    write(tmp_path, "sequence", f"{SCALE} sequence_batching {{ }}")
    write(tmp_path, "binary", "")
    (tmp_path / "binary" / "config.pbtxt").write_bytes(b"\xff\xfe")

    status, lines = run_check(tmp_path)

    assert status == 1
    expected = {
        "field": ("field/config.pbtxt:2:1 : ", "Did you mean 'max_batch_size'?"),
        "place": ("'max_queue_delay_microseconds' is a field of dynamic_batching and of sequence_batching.direct",),
        "enum": ("config.pbtxt:1:", "Did you mean 'TYPE_FP32'?"),
        "backend": ("'onxruntime' is not one of onnxruntime, ", "Did you mean 'onnxruntime'?"),
        "versions": ("versions are folders named 1, 2, ...; found none",),
        "file": ("1/model.onnx does not exist; the folder holds modell.onnx",),
        "garbage": ("version 1: ", "model.onnx"),
        "graph": ("version 1: ", "'x'", "[5]", "[4]"),
        "script": ("1/model.py:2: not Python",),
        "stranger": ("step 1 of ensemble_scheduling: there is no model 'scal'. Did you mean 'scale'?",),
        "tensors": ("model 'scale' has no input 'xx', it has x. Did you mean 'x'?",),
        "sequence": ("sequence_batching is not served",),
        "binary": ("config.pbtxt: not UTF-8",),
    }
    for model, words in expected.items():
        line = next(line for line in lines if line.startswith(f"error: {model}: "))
        for word in words:
            assert word in line
    assert "error: tensors: step 1 of ensemble_scheduling: input_map: input 'x' of model 'scale' is missing" in lines
    assert not any(": scale: " in line for line in lines)
    assert lines[-1].startswith("14 models, 15 errors")


def test_warnings_are_no_errors(tmp_path: Path) -> None:
    """Settings without effect, absent versions and ignored folders are warnings; the exit status stays 0."""
    write_scale(
        tmp_path,
        "scale",
        {1: 2.0},
        f"{SCALE} version_policy {{ specific {{ versions: [1, 2] }} }} optimization {{ eager_batching: true }}",
    )
    (tmp_path / "scale" / "02").mkdir()
    (tmp_path / "notes").mkdir()

    status, lines = run_check(tmp_path)

    assert status == 0
    assert sum(line.startswith("warning: ") for line in lines) == 4
    assert any("'optimization.eager_batching' is known but has no effect" in line for line in lines)
    assert any("version_policy names version 2" in line for line in lines)
    assert lines[-1] == "1 model, 0 errors, 4 warnings"
