import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from lookwire_export.encoder import ExportedEncoder, Progress
from lookwire_export.manifest import Figure, digest
from lookwire_export.reference import ExportError, Reference
from lookwire_export.repository import key, publish
from tests.export.conftest import ROOT, TINY

PASSED = Figure("cosine", 1.0, at_least=0.9)
MODELS = ["tiny", "tiny-image", "tiny-text"]


def passing(reference: Reference, encoder: ExportedEncoder, progress: Progress) -> Sequence[Figure]:
    return [PASSED]


def refusing(reference: Reference, encoder: ExportedEncoder, progress: Progress) -> Sequence[Figure]:
    raise ExportError("refused")


def stopped(reference: Reference, encoder: ExportedEncoder, progress: Progress) -> Sequence[Figure]:
    raise KeyboardInterrupt


def contents(root: Path) -> dict[str, bytes]:
    return {str(file.relative_to(root)): file.read_bytes() for file in root.rglob("*") if file.is_file()}


@pytest.fixture(scope="module")
def published(tiny: Reference, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with one encoder; tests copy it."""
    repo = tmp_path_factory.mktemp("published") / "repo"
    publish(tiny, "tiny", "fp32", repo, passing)
    return repo


@pytest.fixture
def repo(published: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(published, tmp_path / "repo"))


def test_gate_sees_an_ungated_encoder_outside_the_repository(tiny: Reference, tmp_path: Path) -> None:
    """While the gate measures, the repository shows no model, and the manifest it measures has no parity record."""
    seen = []

    def looking(reference: Reference, encoder: ExportedEncoder, progress: Progress) -> Sequence[Figure]:
        seen.append([path.name for path in tmp_path.iterdir() if not path.name.startswith(".")])
        seen.append(json.loads((encoder.root / "tiny/1/manifest.json").read_text())["parity"])
        return [PASSED]

    publish(tiny, "tiny", "fp32", tmp_path, looking)

    assert seen == [[], None]
    assert sorted(path.name for path in tmp_path.iterdir()) == MODELS


def test_refused_export_leaves_the_old_one(tiny: Reference, repo: Path) -> None:
    """When the gate refuses a second export, the first one is still there, byte for byte, and nothing else."""
    before = contents(repo)

    with pytest.raises(ExportError, match="refused"):
        publish(tiny, "tiny", "fp32", repo, refusing, replace=True)

    assert before == contents(repo)
    assert sorted(path.name for path in repo.iterdir()) == MODELS


@pytest.mark.parametrize("model", MODELS)
def test_existing_model_is_refused_before_any_work(tiny: Reference, repo: Path, model: str) -> None:
    """A name that the encoder or a tower of it would take is not overwritten unless that is asked for."""
    for other in MODELS:
        if other != model:
            shutil.rmtree(repo / other)
    stages: list[str] = []

    with pytest.raises(ExportError, match=rf"{model} exists: give another --name, or --replace"):
        publish(tiny, "tiny", "fp32", repo, passing, progress=stages.append)

    assert stages == []


def test_replacing_leaves_nothing_of_the_first(tiny: Reference, repo: Path) -> None:
    """An export that replaces another takes its whole place and leaves nothing else behind."""
    (repo / "tiny" / "1" / "stray").write_text("of the first export")

    publish(tiny, "tiny", "fp32", repo, passing, replace=True)

    assert not (repo / "tiny" / "1" / "stray").exists()
    assert sorted(path.name for path in repo.iterdir()) == MODELS


def test_manifest_pins_the_files_beside_it(tiny: Reference, published: Path) -> None:
    """The hashes in the manifest are those of the files that were written."""
    written = json.loads((published / "tiny/1/manifest.json").read_text())
    assert digest(published / "tiny-image/1/model.onnx") == written["towers"]["image"]["sha256"]
    assert digest(published / "tiny-text/1/model.onnx") == written["towers"]["text"]["sha256"]
    assert digest(published / "tiny/1/tokenizer.json") == written["text"]["tokenizer_sha256"]
    assert tiny.sha256 == written["parity"]["checkpoint_sha256"]
    assert written["parity"]["passed"]
    assert (written["activation"], written["score"], written["logit_bias"]) == ("quick_gelu", "softmax", None)
    assert tiny.logit_scale == written["logit_scale"]


def test_configurations_are_tritons(published: Path) -> None:
    """Every config.pbtxt parses as Triton's ModelConfig, with shapes that leave out the batch."""
    configs = {}
    for name in MODELS:
        content = (published / name / "config.pbtxt").read_text()
        configs[name] = text_format.Parse(content, model_config_pb2.ModelConfig())
    assert all(name == config.name and config.max_batch_size == 64 for name, config in configs.items())
    assert list(configs["tiny-image"].input[0].dims) == [32, 32, 3]
    assert list(configs["tiny-text"].output[0].dims) == [24]
    assert configs["tiny-text"].parameters["length_buckets"].string_value == "8,16,24,32,48,77"
    assert [tensor.optional for tensor in configs["tiny"].input] == [True, True]


def test_stopped_export_goes_on(tiny: Reference, tmp_path: Path) -> None:
    """After a stop, the same export takes the graphs that are there; another one takes none, and removes them."""
    with pytest.raises(KeyboardInterrupt):
        publish(tiny, "tiny", "fp32", tmp_path, stopped)
    (staging,) = tmp_path.glob(".export-*")
    graph = staging / "tiny-image" / "1" / "model.onnx"
    (graph.parent / ".torn").mkdir()
    inode = graph.stat().st_ino
    assert [path for path in tmp_path.iterdir() if not path.name.startswith(".")] == []

    publish(tiny, "tiny", "fp32", tmp_path, passing)

    assert (tmp_path / "tiny-image/1/model.onnx").stat().st_ino == inode
    assert [path.name for path in (tmp_path / "tiny-image/1").iterdir()] == ["model.onnx"]
    assert sorted(path.name for path in tmp_path.iterdir()) == MODELS


def test_staging_of_another_export_of_the_name_is_removed(tiny: Reference, tmp_path: Path) -> None:
    """What a stopped export of other weights has left is not continued, and does not stay; another name's does."""
    other, theirs = tmp_path / ".export-tiny-0123456789abcdef", tmp_path / ".export-tiny-too-0123456789abcdef"
    for folder in (other, theirs):
        (folder / "tiny-image" / "1").mkdir(parents=True)
        (folder / "tiny-image" / "1" / "model.onnx").write_bytes(b"of other weights")

    publish(tiny, "tiny", "fp32", tmp_path, passing)

    assert not other.exists()
    assert theirs.exists()


def test_two_exports_of_one_name_do_not_meet(tiny: Reference, tmp_path: Path) -> None:
    """While one export of a name is at work, a second one is refused."""

    def nested(reference: Reference, encoder: ExportedEncoder, progress: Progress) -> Sequence[Figure]:
        with pytest.raises(ExportError, match="another export of tiny is at work"):
            publish(tiny, "tiny", "fp16", tmp_path, passing)
        return [PASSED]

    publish(tiny, "tiny", "fp32", tmp_path, nested)

    assert sorted(path.name for path in tmp_path.iterdir()) == MODELS


def test_key_is_of_all_that_decides(tiny: Reference) -> None:
    """Weights, rules, precision and layers each change the key; loading the same again does not."""
    image = replace(tiny.image, mean=(0.5, 0.5, 0.5))
    text = replace(tiny.text, pad_id=1)
    keys = [
        key(tiny, "fp32", []),
        key(tiny, "int8", []),
        key(tiny, "int8", ["blocks.0"]),
        key(replace(tiny, sha256="0"), "fp32", []),
        key(replace(tiny, image=image), "fp32", []),
        key(replace(tiny, text=text), "fp32", []),
        key(replace(tiny, encode_image=lambda pixels: tiny.encode_image(pixels) * 2), "fp32", []),
    ]

    assert len(set(keys)) == len(keys)
    assert key(tiny, "fp32", []) == keys[0]
    assert re.fullmatch(r"[0-9a-f]{16}", keys[0])


def test_disk_without_room(tiny: Reference, repo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An export that cannot fit is refused before it begins, with both sizes."""
    before = contents(repo)
    usage = shutil.disk_usage(repo)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1_000_000))

    with pytest.raises(ExportError, match=r"has 1 MB of free space, and the export takes about \d+ MB"):
        publish(tiny, "tiny", "fp32", repo, passing, replace=True)

    assert before == contents(repo)


def test_failed_move_is_taken_back(tiny: Reference, repo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the last model cannot be moved into place, the first export stands there whole."""
    before = contents(repo)
    rename = Path.rename

    def failing(source: Path, target: Path) -> Path:
        if target == repo / "tiny" and source.parent.parent == repo and ".replaced" not in str(source):
            raise OSError(28, "No space left on device")
        return rename(source, target)

    monkeypatch.setattr(Path, "rename", failing)

    with pytest.raises(ExportError, match="No space left on device; it is as it was"):
        publish(tiny, "tiny", "fp32", repo, passing, replace=True)

    assert before == contents(repo)
    assert sorted(path.name for path in repo.iterdir()) == MODELS


def command(tiny_file: Path, repo: Path) -> list[str]:
    """The command as a process of its own, which knows the tiny architecture."""
    program = (
        "import sys, open_clip; from pathlib import Path; from lookwire_export.__main__ import main;"
        f" open_clip.add_model_config(Path({str(tiny_file.parent / f'{TINY}.json')!r})); sys.exit(main(sys.argv[1:]))"
    )
    transform = tiny_file.parent / "transform.json"
    arguments = [TINY, "--pretrained", tiny_file, "--preprocess", transform, "--repo", repo, "--name", "tiny"]
    return [sys.executable, "-c", program, *(str(argument) for argument in arguments)]


def test_full_disk(tiny_file: Path, repo: Path) -> None:
    """A write that fails is told in a sentence, and leaves the repository as it was."""
    before = contents(repo)

    ended = subprocess.run(
        [*command(tiny_file, repo), "--replace"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000)),
    )

    assert ended.returncode == 1
    assert f"not exported: {repo} cannot be written: File too large" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert before == contents(repo)
    assert sorted(path.name for path in repo.iterdir()) == MODELS


def test_killed_command_goes_on(tiny_file: Path, tiny: Reference, tmp_path: Path) -> None:
    """A command that ends after its first graph leaves no model, and the next one keeps that graph."""
    repo = tmp_path / "repo"
    staging = repo / f".export-tiny-{key(tiny, 'fp32', [])}"
    graph = staging / "tiny-image" / "1" / "model.onnx"
    with subprocess.Popen(command(tiny_file, repo), cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 90
        while not graph.exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGKILL)
        _, output = process.communicate(timeout=60)
    assert graph.exists(), output
    assert [path for path in repo.iterdir() if not path.name.startswith(".")] == []
    inode = graph.stat().st_ino

    publish(tiny, "tiny", "fp32", repo, passing)

    assert (repo / "tiny-image/1/model.onnx").stat().st_ino == inode
    assert sorted(path.name for path in repo.iterdir()) == MODELS
