import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from lookwire_export.encoder import ExportedEncoder, Progress
from lookwire_export.graph import DIGESTS
from lookwire_export.manifest import Figure, digest
from lookwire_export.reference import ExportError, Reference
from lookwire_export.repository import key, publish, recover
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
    assert configs["tiny-text"].parameters["max_batch_tokens"].string_value == "1024"
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


def refused_another(reference: Reference, repo: Path) -> None:
    """An export of the name that has other settings, and fails as soon as it has begun."""
    with pytest.raises(ExportError, match="in an int8 export only"):
        publish(reference, "tiny", "fp32", repo, passing, keep_fp32=["blocks.0"], replace=True)


def instants(work: Callable[[], object], repo: Path, to: Path) -> list[Path]:
    """Does the work, and returns copies of the repository as a kill at each folder's move or removal would leave it."""
    copies: list[Path] = []

    def keep() -> None:
        copies.append(to / str(len(copies)))
        shutil.copytree(repo, copies[-1], symlinks=True)

    def watched(do: Callable[..., object]) -> Callable[..., None]:
        def do_watched(*arguments: Any, **options: Any) -> None:
            if Path(arguments[0]).name.startswith((".export-", "tiny")):
                keep()
            do(*arguments, **options)

        return do_watched

    with pytest.MonkeyPatch.context() as patch:
        for module, name in ((os, "rename"), (shutil, "rmtree")):
            patch.setattr(module, name, watched(getattr(module, name)))
        work()
    keep()
    return copies


def shown(repo: Path) -> dict[str, bytes]:
    """What a server sees of a repository."""
    return {name: content for name, content in contents(repo).items() if not name.startswith(".")}


@pytest.fixture(scope="module")
def replacing(tiny: Reference, published: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The instants of an export that replaces another, whose image tower is a link to a folder beside the repository."""
    folder = tmp_path_factory.mktemp("replacing")
    repo = Path(shutil.copytree(published, folder / "repo"))
    (repo / "tiny-image").rename(folder / "elsewhere")
    (repo / "tiny-image").symlink_to("../elsewhere")
    return instants(lambda: publish(tiny, "tiny", "fp16", repo, passing, replace=True), repo, folder)


def test_kill_at_any_instant_leaves_the_old_or_the_new(tiny: Reference, replacing: list[Path], tmp_path: Path) -> None:
    """Whenever an export is killed, any other one of its name first brings back what it had moved, and leaves nothing."""
    old, new = shown(replacing[0]), shown(replacing[-1])
    assert old != new
    whole = []
    for number, instant in enumerate(replacing):
        repo = Path(shutil.copytree(instant, replacing[0].parent / f"refused-{number}", symlinks=True))

        refused_another(tiny, repo)

        whole.append({str(old): "old", str(new): "new"}.get(str(shown(repo)), f"neither, at {number}"))
        assert sorted(path.name for path in repo.iterdir()) == MODELS
    assert whole == ["old"] * 6 + ["new"] * 3


def test_kill_of_a_recovery(replacing: list[Path]) -> None:
    """A recovery that is killed in its turn is gone on with, and keeps the graphs for the export to go on."""
    folder = replacing[0].parent
    for number, instant in enumerate(replacing[:6]):
        repo = Path(shutil.copytree(instant, folder / f"recovered-{number}", symlinks=True))
        (folder / f"again-{number}").mkdir()
        for again in instants(lambda repo=repo: recover(repo, "tiny"), repo, folder / f"again-{number}"):  # type: ignore[misc]
            beside = Path(shutil.copytree(again, folder / f"{again.parent.name}-{again.name}", symlinks=True))

            recover(beside, "tiny")

            assert shown(beside) == shown(replacing[0])
            (staging,) = beside.glob(".export-*")
            assert sorted(path.name for path in staging.iterdir() if path.is_dir()) == MODELS


def test_killed_first_export_goes_on(tiny: Reference, tmp_path: Path) -> None:
    """The same export after a kill in the midst of the moves takes back the towers that are in place, and goes on."""
    (tmp_path / "repo").mkdir()
    copies = instants(lambda: publish(tiny, "tiny", "fp32", tmp_path / "repo", passing), tmp_path / "repo", tmp_path)
    (repo,) = (copy for copy in copies if shown(copy) and len(list(copy.glob("tiny*"))) == 2)
    inode = (repo / "tiny-image/1/model.onnx").stat().st_ino

    publish(tiny, "tiny", "fp32", repo, passing)

    assert (repo / "tiny-image/1/model.onnx").stat().st_ino == inode
    assert sorted(path.name for path in repo.iterdir()) == MODELS


def test_place_taken_after_a_kill(tiny: Reference, replacing: list[Path]) -> None:
    """Where a model cannot be moved back because another has come, both stay, and the message says where."""
    instant = next(copy for copy in replacing if not (copy / "tiny-text").exists())
    repo = Path(shutil.copytree(instant, replacing[0].parent / "taken", symlinks=True))
    (repo / "tiny-text").mkdir()
    before = contents(repo)

    with pytest.raises(
        ExportError, match=r"tiny-text exists; what stood in .* before is in .*\.replaced: move it back"
    ):
        publish(tiny, "tiny", "fp32", repo, passing, replace=True)

    kept = {name: content for name, content in before.items() if ".replaced/tiny-text" in name}
    assert kept
    assert kept.items() <= contents(repo).items()
    assert (repo / "tiny-text").exists()


def test_name_taken_during_the_export(tiny: Reference, tmp_path: Path) -> None:
    """What has come while the export was at work is not replaced unless that is asked for."""

    def slow(reference: Reference, encoder: ExportedEncoder, progress: Progress) -> Sequence[Figure]:
        (tmp_path / "tiny-text").mkdir()
        (tmp_path / "tiny-text" / "theirs").write_text("of another")
        return [PASSED]

    with pytest.raises(ExportError, match="tiny-text exists: give another --name, or --replace"):
        publish(tiny, "tiny", "fp32", tmp_path, slow)

    assert contents(tmp_path) == {"tiny-text/theirs": b"of another"}


def test_name_taken_during_the_moves(tiny: Reference, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor is it where it comes when the first tower is already in its place, which is taken back."""
    rename = os.rename

    def late(source: Path, target: Path) -> None:
        rename(source, target)
        if Path(target) == tmp_path / "tiny-image":
            (tmp_path / "tiny").mkdir()
            (tmp_path / "tiny" / "theirs").write_text("of another")

    monkeypatch.setattr(os, "rename", late)

    with pytest.raises(ExportError, match="cannot be written: Directory not empty; it is as it was"):
        publish(tiny, "tiny", "fp32", tmp_path, passing)

    assert contents(tmp_path) == {"tiny/theirs": b"of another"}


def test_unforeseen_error_leaves_nothing(tiny: Reference, repo: Path) -> None:
    """An error of any kind goes on as it is, and leaves the first export, no staging folder and no lock."""
    before = contents(repo)

    def broken(reference: Reference, encoder: ExportedEncoder, progress: Progress) -> Sequence[Figure]:
        raise ZeroDivisionError("of the gate")

    with pytest.raises(ZeroDivisionError, match="of the gate"):
        publish(tiny, "tiny", "fp32", repo, broken, replace=True)

    assert before == contents(repo)
    assert sorted(path.name for path in repo.iterdir()) == MODELS


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
    digests = graph.with_name(DIGESTS)  # written last: without it a graph is made anew
    with subprocess.Popen(command(tiny_file, repo), cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 90
        while not digests.exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGKILL)
        _, output = process.communicate(timeout=60)
    assert digests.exists(), output
    assert [path for path in repo.iterdir() if not path.name.startswith(".")] == []
    inode = graph.stat().st_ino

    publish(tiny, "tiny", "fp32", repo, passing)

    assert (repo / "tiny-image/1/model.onnx").stat().st_ino == inode
    assert sorted(path.name for path in repo.iterdir()) == MODELS


def servers_of(repo: Path) -> list[int]:
    """The processes of servers that serve a folder in the repository."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes().decode().split("\0")
        except (FileNotFoundError, ProcessLookupError):
            continue
        if "lookwire_server" in words and any(word.startswith(str(repo)) for word in words):
            found.append(int(process.name))
    return found


@pytest.mark.timeout(240)
def test_terminated_command_ends_its_server(tiny_file: Path, tmp_path: Path) -> None:
    """SIGTERM while the gate asks its server ends both, and keeps the work as Ctrl-C does."""
    with subprocess.Popen(command(tiny_file, tmp_path), cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 90
        while not servers_of(tmp_path) and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        started = servers_of(tmp_path)
        process.terminate()
        _, output = process.communicate(timeout=60)
    left = servers_of(tmp_path)
    for orphan in left:
        os.kill(orphan, signal.SIGKILL)

    assert started, output
    assert left == []
    assert process.returncode == 130
    assert "the same command goes on from here" in output
    assert len(list(tmp_path.glob(".export-tiny-*"))) == 1
