from pathlib import Path

import pytest
import torch

from lookwire_export import __main__ as command
from lookwire_export.checkpoint import GARMENTS, Checkpoint


def run(*arguments: object) -> int:
    return command.main([str(argument) for argument in arguments])


def test_missing_file_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without a checkpoint the command fails and says which file it wants."""
    status = run(GARMENTS, "--pretrained", tmp_path / "none.pt", "--repo", tmp_path / "repo")

    assert status == 1
    assert "none.pt: give a safetensors file" in capsys.readouterr().err
    assert not (tmp_path / "repo").exists()


def test_unknown_architecture_names_close_ones(tiny_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A misspelt architecture is answered with those that it may have meant."""
    status = run("ViT-B32", "--pretrained", tiny_file, "--repo", tiny_file.parent)

    assert status == 1
    assert "did you mean" in (error := capsys.readouterr().err)
    assert "ViT-B-32" in error


@pytest.mark.parametrize(("model", "reason"), [("ViT-B-16-SigLIP", "timm"), ("roberta-ViT-B-32", "Hugging Face")])
def test_unsupported_architecture_is_refused(
    tiny_file: Path, capsys: pytest.CaptureFixture[str], model: str, reason: str
) -> None:
    """An architecture of open_clip that cannot be exported is refused with the reason, and nothing is fetched."""
    status = run(model, "--pretrained", tiny_file, "--repo", tiny_file.parent)

    assert status == 1
    assert reason in capsys.readouterr().err


def test_weights_of_another_architecture_are_refused(
    tiny_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A checkpoint of another shape is refused by name."""
    status = run(GARMENTS, "--pretrained", tiny_file, "--repo", tmp_path)

    assert status == 1
    assert f"holds no weights for {GARMENTS}" in capsys.readouterr().err


def test_torch_state_dict_is_exported_and_served(tiny: Checkpoint, tmp_path: Path) -> None:
    """A torch file passes the whole gate, a real server included, and lands in the repository under its name."""
    torch.save(tiny.model.state_dict(), tmp_path / "tiny.pt")

    status = run(tiny.architecture, "--pretrained", tmp_path / "tiny.pt", "--repo", tmp_path / "repo", "--name", "mine")

    assert status == 0
    assert (tmp_path / "repo" / "mine" / "1" / "manifest.json").is_file()
