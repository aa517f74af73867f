"""Architectures at their full size, with random weights, through the whole gate: `make test-full-size`, about 20 minutes.

The vocabulary of SigLIP's tokenizer is not to be had offline; a small one of its kind stands in.
"""

from pathlib import Path

import open_clip
import pytest
import torch
from safetensors.torch import save_file

from lookwire_export import __main__ as command
from lookwire_export.captions import KIND_WORDS
from tests.export.conftest import save_t5_tokenizer


@pytest.fixture
def tokenizer(tmp_path: Path) -> Path:
    """A directory with a tokenizer of SigLIP's kind."""
    directory = tmp_path / "tokenizer"
    directory.mkdir()
    save_t5_tokenizer(directory, [word for words in KIND_WORDS.values() for word in words])
    return directory


@pytest.mark.timeout(3600)
@pytest.mark.parametrize(
    ("architecture", "transform"),
    [("ViT-B-32-quickgelu", "openai"), ("ViT-L-14", "laion2b_s32b_b82k"), ("ViT-B-16-SigLIP", "webli")],
)
def test_full_size(architecture: str, transform: str, tokenizer: Path, tmp_path: Path) -> None:
    """An architecture at its full size passes the gate."""
    torch.manual_seed(0)
    weights = tmp_path / "weights.safetensors"
    save_file(open_clip.create_model(architecture).state_dict(), weights)
    words = [architecture, "--pretrained", weights, "--preprocess", transform, "--repo", tmp_path / "repo", "--report"]
    if "SigLIP" in architecture:
        words += ["--tokenizer", tokenizer]

    assert command.main(list(map(str, words))) == 0
