"""What the export's tests share: the committed checkpoint, and a tiny one with random weights."""

import json
from pathlib import Path

import open_clip
import pytest
import torch
from safetensors.torch import save_file

from lookwire_export import checkpoint
from lookwire_export.checkpoint import GARMENTS, Checkpoint
from lookwire_export.encoder import ExportedEncoder

ROOT = Path(__file__).parents[2]
WEIGHTS = ROOT / "tests" / "data" / "garments.safetensors"
TINY = "lookwire-test-tiny"
CONFIG = {
    "embed_dim": 24,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 32, "patch_size": 16, "width": 32, "head_width": 16, "layers": 2},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2},
}


@pytest.fixture(scope="session", autouse=True)
def _two_threads() -> None:
    torch.set_num_threads(2)


@pytest.fixture(scope="session")
def garments() -> Checkpoint:
    """The bundled encoder's reference."""
    return checkpoint.load(GARMENTS, WEIGHTS)


@pytest.fixture(scope="session")
def garments_encoder(garments: Checkpoint) -> ExportedEncoder:
    """The bundled encoder, exported anew."""
    return ExportedEncoder.of(garments, "garments", "fp16")


@pytest.fixture(scope="session")
def tiny_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of the architecture TINY whose weights are large enough for every input to matter."""
    folder = tmp_path_factory.mktemp("tiny")
    (folder / f"{TINY}.json").write_text(json.dumps(CONFIG))
    open_clip.add_model_config(folder)
    torch.manual_seed(3)
    model = checkpoint.create(TINY).model
    weights = {name: weight + 0.1 * torch.randn_like(weight) for name, weight in model.state_dict().items()}
    save_file(weights, folder / "tiny.safetensors")
    return folder / "tiny.safetensors"


@pytest.fixture(scope="session")
def tiny(tiny_file: Path) -> Checkpoint:
    """A small model with random weights and the QuickGELU activation."""
    return checkpoint.load(TINY, tiny_file)
