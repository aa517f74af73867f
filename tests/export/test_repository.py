import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from lookwire_export.checkpoint import Checkpoint, ExportError
from lookwire_export.encoder import ExportedEncoder
from lookwire_export.manifest import Figure, digest
from lookwire_export.repository import publish

PASSED = Figure("cosine", 1.0, at_least=0.9)


@pytest.fixture(scope="module")
def encoder(tiny: Checkpoint) -> ExportedEncoder:
    return ExportedEncoder.of(tiny, "tiny", "fp32")


def passing(checkpoint: Checkpoint, encoder: ExportedEncoder, repository: Path) -> Sequence[Figure]:
    return [PASSED]


def refusing(checkpoint: Checkpoint, encoder: ExportedEncoder, repository: Path) -> Sequence[Figure]:
    raise ExportError("refused")


def contents(root: Path) -> dict[str, bytes]:
    return {str(file.relative_to(root)): file.read_bytes() for file in root.rglob("*") if file.is_file()}


def test_gate_sees_an_ungated_encoder_outside_the_repository(
    tiny: Checkpoint, encoder: ExportedEncoder, tmp_path: Path
) -> None:
    """While the gate measures, the repository shows no model, and the manifest it measures has no parity record."""
    seen = []

    def looking(checkpoint: Checkpoint, encoder: ExportedEncoder, repository: Path) -> Sequence[Figure]:
        seen.append([path.name for path in tmp_path.iterdir() if not path.name.startswith(".")])
        seen.append(json.loads((repository / "tiny/1/manifest.json").read_text())["parity"])
        return [PASSED]

    publish(tiny, encoder, tmp_path, looking)

    assert seen == [[], None]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tiny", "tiny-image", "tiny-text"]


def test_refused_export_leaves_the_old_one(tiny: Checkpoint, encoder: ExportedEncoder, tmp_path: Path) -> None:
    """When the gate refuses a second export, the first one is still there, byte for byte."""
    publish(tiny, encoder, tmp_path, passing)
    before = contents(tmp_path)

    with pytest.raises(ExportError, match="refused"):
        publish(tiny, encoder, tmp_path, refusing)

    assert before == contents(tmp_path)


def test_second_export_replaces_the_first(tiny: Checkpoint, encoder: ExportedEncoder, tmp_path: Path) -> None:
    """An export under the same name takes the place of the old one and leaves nothing else behind."""
    publish(tiny, encoder, tmp_path, passing)
    (tmp_path / "tiny" / "1" / "stray").write_text("of the first export")

    publish(tiny, encoder, tmp_path, passing)

    assert not (tmp_path / "tiny" / "1" / "stray").exists()
    assert len(list(tmp_path.iterdir())) == 3


def test_manifest_pins_the_files_beside_it(tiny: Checkpoint, encoder: ExportedEncoder, tmp_path: Path) -> None:
    """The hashes in the manifest are those of the files that were written."""
    publish(tiny, encoder, tmp_path, passing)

    written = json.loads((tmp_path / "tiny/1/manifest.json").read_text())
    assert digest((tmp_path / "tiny-image/1/model.onnx").read_bytes()) == written["towers"]["image"]["sha256"]
    assert digest((tmp_path / "tiny-text/1/model.onnx").read_bytes()) == written["towers"]["text"]["sha256"]
    assert digest((tmp_path / "tiny/1/tokenizer.json").read_bytes()) == written["text"]["tokenizer_sha256"]
    assert tiny.sha256 == written["parity"]["checkpoint_sha256"]
    assert (written["activation"], written["score"], written["logit_bias"]) == ("quick_gelu", "softmax", None)
    assert tiny.model.logit_scale.exp().item() == written["logit_scale"]


def test_configurations_are_tritons(encoder: ExportedEncoder, tmp_path: Path) -> None:
    """Every config.pbtxt parses as Triton's ModelConfig, with shapes that leave out the batch."""
    encoder.write(tmp_path)

    configs = {}
    for name in encoder.models:
        configs[name] = text_format.Parse(
            (tmp_path / name / "config.pbtxt").read_text(), model_config_pb2.ModelConfig()
        )
    assert all(name == config.name and config.max_batch_size == 64 for name, config in configs.items())
    assert list(configs["tiny-image"].input[0].dims) == [32, 32, 3]
    assert list(configs["tiny-text"].output[0].dims) == [24]
    assert configs["tiny-text"].parameters["length_buckets"].string_value == "8,16,24,32,48,77"
    assert [tensor.optional for tensor in configs["tiny"].input] == [True, True]
