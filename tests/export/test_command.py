import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lookwire import Client
from lookwire.local import LocalServer
from lookwire_export import __main__ as command
from lookwire_export.reference import Reference
from lookwire_export.sources.open_clip_models import GARMENTS
from tests.export.conftest import TINY


def run(*arguments: object) -> int:
    return command.main([str(argument) for argument in arguments])


def unit(rows: Any) -> Any:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.mark.parametrize("library", ["tiny", "clip", "siglip"])
def test_fine_tune_is_exported_and_served_exactly(
    library: str,
    request: pytest.FixtureRequest,
    tiny_transform: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A training checkpoint of each library passes the whole gate, and a server gives its live model's vectors."""
    live: Reference = request.getfixturevalue(library)
    state = {f"module.{name}": weight for name, weight in live.model.state_dict().items()}
    torch.save({"model_state_dict": state, "epoch": 3}, tmp_path / "tuned.pt")
    model = [TINY, "--preprocess", tiny_transform]
    if library != "tiny":
        model = [request.getfixturevalue(f"{library}_directory")]

    status = run(
        *model, "--pretrained", tmp_path / "tuned.pt", "--repo", tmp_path / "repo", "--name", "mine", "--report"
    )

    output = capsys.readouterr().err
    assert status == 0, output
    assert f"exported {tmp_path / 'repo' / 'mine'}, " in output
    assert f"serve it: lookwire-server --model-repository {tmp_path / 'repo'}" in output
    assert "image_graph_min_cosine" in output
    assert "kind of probe" in output
    texts = ["a red dress", "", "Trousers, 2 for 30"]
    with LocalServer(tmp_path / "repo") as server, Client(server.address) as client:
        served = client.embed(texts=texts, encoder="mine").vectors
    expected = unit(live.encode_text(live.tokenize(texts)).numpy())
    assert np.abs(served - expected).max() < 1e-5


def test_refusal_is_a_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without a checkpoint the command fails, says which file it wants, and makes no repository."""
    status = run(GARMENTS, "--pretrained", tmp_path / "none.pt", "--repo", tmp_path / "repo")

    assert status == 1
    assert "not exported: --pretrained" in (error := capsys.readouterr().err)
    assert "none.pt is neither a file (safetensors or a torch state dict) nor a tag" in error
    assert not (tmp_path / "repo").exists()


def test_brackets_in_a_message_are_shown(
    tiny: Reference, tiny_transform: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A message is printed as it is, shapes in brackets included."""
    state = dict(tiny.model.state_dict()) | {"visual.proj": torch.zeros(32, 8)}
    torch.save(state, tmp_path / "other.pt")

    status = run(
        TINY, "--pretrained", tmp_path / "other.pt", "--preprocess", tiny_transform, "--repo", tmp_path / "repo"
    )

    assert status == 1
    assert "visual.proj, [32, 8] where" in capsys.readouterr().err


def test_existing_name_is_refused_before_loading(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A name that the repository has is refused even before the checkpoint is looked at."""
    (tmp_path / "mine").mkdir()

    status = run(GARMENTS, "--pretrained", tmp_path / "none.pt", "--repo", tmp_path, "--name", "mine")

    assert status == 1
    assert "mine exists: give another --name, or --replace" in capsys.readouterr().err


def test_killed_move_is_taken_back_before_loading(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The tower that a killed export had moved into place does not take the name: it is moved back before anything else."""
    staging = tmp_path / ".export-mine-0123456789abcdef"
    for folder in (tmp_path / "mine-image", staging / "mine-text", staging / "mine", staging / ".replaced"):
        folder.mkdir(parents=True)

    status = run(GARMENTS, "--pretrained", tmp_path / "none.pt", "--repo", tmp_path, "--name", "mine")

    assert status == 1
    assert "none.pt is neither a file" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == [staging.name]
    assert sorted(path.name for path in staging.iterdir()) == ["mine", "mine-image", "mine-text"]


def test_stop_is_no_failure(
    tiny_file: Path,
    tiny_transform: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Ctrl-C ends the command with the status of an interrupt, and says that the work is not lost."""

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "measure", interrupted)

    status = run(TINY, "--pretrained", tiny_file, "--preprocess", tiny_transform, "--repo", tmp_path, "--name", "mine")

    assert status == 130
    assert "the same command goes on from here" in capsys.readouterr().err
    assert len(list(tmp_path.glob(".export-mine-*"))) == 1


def test_unforeseen_error_is_told_and_written_down(
    tiny_file: Path,
    tiny_transform: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """An error that no message was made for is told in a line, with the file that has its traceback."""

    def broken(*_: object) -> None:
        raise ValueError("no such axis [3]\nand more")

    monkeypatch.setattr(command, "measure", broken)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    repo = tmp_path / "repo"

    status = run(TINY, "--pretrained", tiny_file, "--preprocess", tiny_transform, "--repo", repo, "--name", "mine")

    assert status == 1
    output = capsys.readouterr().err
    (log,) = tmp_path.glob("lookwire-export-*.log")
    assert (
        f"not exported: an error that was not foreseen, ValueError: no such axis [3]; the whole of it is in {log}"
        in output
    )
    assert "Traceback" not in output
    assert "Traceback" in log.read_text()
    assert "and more" in log.read_text()
    assert list(repo.iterdir()) == []


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("ViT-B-32-quickgelu", "vit-b-32-quickgelu"),
        ("hf-hub:Marqo/marqo-fashionSigLIP", "marqo-fashionsiglip"),
        ("local-dir:/data/My Model 1.5/", "my-model-1-5"),
        ("/data/fashion_clip", "fashion_clip"),
    ],
)
def test_name_comes_from_the_model(model: str, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without --name, the encoder has the model's last name, in letters that a repository takes."""
    (tmp_path / name).mkdir()

    assert run(model, "--repo", tmp_path) == 1
    assert f"{name} exists" in capsys.readouterr().err


def test_name_that_is_none(
    tiny_file: Path, tiny_transform: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A name that no model can have is refused before any work."""
    status = run(TINY, "--pretrained", tiny_file, "--preprocess", tiny_transform, "--repo", tmp_path, "--name", "../x")

    assert status == 1
    assert "'../x' is no name" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_manifest_tells_the_library(siglip_directory: Path, tmp_path: Path) -> None:
    """A directory's own weights are exported under its name, by the rules of its files."""
    assert run(siglip_directory, "--repo", tmp_path, "--precision", "fp16", "--name", "mine") == 0

    manifest = json.loads((tmp_path / "mine/1/manifest.json").read_text())
    assert manifest["description"].startswith("transformers siglip")
    assert (manifest["score"], manifest["precision"], manifest["text"]["padding"]) == ("sigmoid", "fp16", "max_length")
    assert manifest["parity"]["reference"].startswith("transformers 5")
