import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import open_clip
import pytest
import torch
from numpy.typing import NDArray

from lookwire_export import checkpoint, graph
from lookwire_export.checkpoint import Checkpoint, ExportError
from lookwire_export.towers import towers

END = 49407
Sessions = tuple[str, Any, Any]


@pytest.fixture(scope="module", params=graph.PRECISIONS)
def sessions(tiny: Checkpoint, request: pytest.FixtureRequest) -> Sessions:
    """Both graphs of the tiny model in one precision."""
    image, text = towers(tiny)
    image_graph, text_graph = graph.image_graph(image, 32, request.param), graph.text_graph(text, 77, request.param)
    return request.param, *(onnxruntime.InferenceSession(g) for g in (image_graph, text_graph))


def agrees(precision: str, rows: NDArray[Any], reference: torch.Tensor) -> bool:
    """Whether normalised rows are the reference's: to float32's rounding, or to that of weights stored as halves."""
    cosine = (rows * reference.numpy()).sum(axis=1).min()
    return bool(rows.dtype == np.float32 and cosine > (0.999999 if precision == "fp32" else 0.9999))


@pytest.mark.parametrize("batch", [1, 2, 3, 7])
def test_image_graph_is_open_clip_at_any_batch(sessions: Sessions, tiny: Checkpoint, batch: int) -> None:
    """Raw bytes through the graph are normalised pixels through open_clip, at any batch size."""
    precision, session, _ = sessions
    pixels = torch.randint(0, 256, (batch, 32, 32, 3), dtype=torch.uint8)
    mean, std = torch.tensor(tiny.model.visual.image_mean), torch.tensor(tiny.model.visual.image_std)

    (rows,) = session.run(["embedding"], {"pixels": pixels.numpy()})

    with torch.no_grad():
        reference = tiny.model.encode_image(((pixels / 255 - mean) / std).permute(0, 3, 1, 2), normalize=True)
    assert (batch, 24) == rows.shape
    assert agrees(precision, rows, reference)


@pytest.mark.parametrize("batch", [1, 2, 3, 7])
@pytest.mark.parametrize("length", [2, 3, 8, 17, 76, 77])
def test_text_graph_is_open_clip_at_any_batch_and_length(
    sessions: Sessions, tiny: Checkpoint, batch: int, length: int
) -> None:
    """Ids cut to their longest text give what open_clip gives for the same ids padded to 77."""
    precision, _, session = sessions
    ids = torch.zeros(batch, 77, dtype=torch.int32)
    for row in ids:
        end = int(torch.randint(1, length, ()))
        row[:end] = torch.randint(1, 49406, (end,))
        row[end] = END

    (rows,) = session.run(["embedding"], {"input_ids": ids[:, :length].numpy()})

    with torch.no_grad():
        reference = tiny.model.encode_text(ids.long(), normalize=True)
    assert (batch, 24) == rows.shape
    assert agrees(precision, rows, reference)


def test_what_follows_the_end_of_text_has_no_influence(sessions: Sessions) -> None:
    """The embedding is that of the first end-of-text token, whatever comes after it."""
    _, _, session = sessions
    plain = np.array([[49406, 320, 736, END, 0, 0, 0, 0]], np.int32)
    noisy = np.array([[49406, 320, 736, END, 9, END, 77, 5]], np.int32)

    (a,), (b,) = (session.run(["embedding"], {"input_ids": row}) for row in (plain, noisy))

    assert np.abs(a - b).max() < 1e-6


def test_half_precision_halves_the_file(tiny: Checkpoint) -> None:
    """Stored as halves the text graph takes half the bytes, and every half is cast to float32 before it is used."""
    _, text = towers(tiny)
    full, half = (graph.text_graph(text, 77, precision) for precision in ("fp32", "fp16"))

    nodes = onnx.load_from_string(half).graph.node
    stored = [i.name for i in onnx.load_from_string(half).graph.initializer if i.data_type == onnx.TensorProto.FLOAT16]
    assert len(half) < 0.53 * len(full)
    assert {"Cast"} == {node.op_type for node in nodes if set(node.input) & set(stored)}


def test_graphs_are_for_servers_of_onnxruntime_1_22(tiny: Checkpoint) -> None:
    """The graphs name their batch and length, and carry an IR version and opset that onnxruntime 1.22 reads."""
    image, text = (onnx.load_from_string(g) for g in (graph.image_graph(towers(tiny)[0], 32, "fp32"),
                                                      graph.text_graph(towers(tiny)[1], 77, "fp32")))  # fmt: skip

    for model in (image, text):
        assert model.ir_version == 10
        assert [opset.version for opset in model.opset_import if opset.domain == ""] == [18]
    assert [d.dim_param for d in text.graph.input[0].type.tensor_type.shape.dim] == ["batch", "length"]
    assert image.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"vision_cfg": {"layers": [1, 1, 1, 1], "image_size": 32, "width": 16}}, "ModifiedResNet"),
        ({"vision_cfg": {"pool_type": "avg"}}, "class token"),
        ({"vision_cfg": {"attentional_pool": True}}, "class token"),
        ({"text_cfg": {"pool_type": "last"}}, "pools texts by 'last'"),
        ({"text_cfg": {"no_causal_mask": True}}, "bidirectional"),
        ({"text_cfg": {"proj_bias": True}}, "projection"),
        ({"text_cfg": {"qk_norm": True}}, "attention blocks"),
        ({"custom_text": True}, "CustomTextCLIP"),
    ],
)
def test_unsupported_architectures_are_refused_by_name(
    tmp_path: Path, tiny: Checkpoint, change: dict[str, Any], reason: str
) -> None:
    """An architecture that the towers do not cover is refused with the reason, not exported wrongly."""
    config = open_clip.get_model_config(tiny.architecture)
    for key, value in change.items():
        config[key] = config[key] | value if isinstance(value, dict) else value
    name = f"refused-{abs(hash(json.dumps(change)))}"
    (tmp_path / f"{name}.json").write_text(json.dumps(config))
    open_clip.add_model_config(tmp_path / f"{name}.json")

    with pytest.raises(ExportError, match=f"{name}.*{reason}"):
        towers(checkpoint.create(name))
