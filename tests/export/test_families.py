"""Every family is exported exactly: a small model of its real architecture, with random weights, passes the whole gate."""

import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import timm
import torch
from numpy.typing import NDArray
from open_clip.tokenizer import HFTokenizer
from timm.models import register_model
from torch import nn
from torch.nn.functional import normalize
from transformers import XLMRobertaConfig

from lookwire_export.encoder import ExportedEncoder, export
from lookwire_export.gate import measure
from lookwire_export.precision import layers
from lookwire_export.reference import ImageRules, Reference
from lookwire_export.sources import open_clip_models
from tests.export.conftest import stirred
from tests.export.test_tokenizer import bert, gemma, t5, xlm_roberta

SIZE = 64
CLIP_RULES = ImageRules(
    size=SIZE,
    resize="shortest",
    interpolation="bicubic",
    mean=(0.48145466, 0.4578275, 0.40821073),
    std=(0.26862954, 0.26130258, 0.27577711),
    convert_rgb="after_resize",
    crop="round",
)
SQUASH_RULES = replace(CLIP_RULES, resize="squash", mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
MOBILE_RULES = replace(CLIP_RULES, interpolation="bilinear", mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))

VIT: dict[str, Any] = {"image_size": SIZE, "patch_size": 16, "width": 32, "head_width": 16, "layers": 2}
TEXT: dict[str, Any] = {"width": 32, "heads": 2, "layers": 2}
WORDS = TEXT | {"context_length": 16, "vocab_size": 2000, "tokenizer_kwargs": {"clean": "canonicalize"}}
SIGLIP_TEXT = WORDS | {"no_causal_mask": True, "proj_bias": True, "pool_type": "last", "norm_kwargs": {"eps": 1e-6}}
CLIPA_TEXT = WORDS | {"no_causal_mask": True, "pool_type": "last", "tokenizer_kwargs": {"strip_sep_token": True}}
EVA = {"img_size": SIZE, "embed_dim": 48, "depth": 2, "num_heads": 3}


@dataclass(frozen=True)
class Family:
    """A small model of a family's architecture: open_clip's `model_cfg`, the transform and the tokenizer."""

    vision: dict[str, Any]
    text: dict[str, Any]
    rules: ImageRules = CLIP_RULES
    tokenizer: Callable[[], Any] | None = None
    """Makes transformers' tokenizer; none for open_clip's own."""
    others: dict[str, Any] = field(default_factory=dict)

    def reference(self, name: str, directory: Path) -> Reference:
        """The reference with random weights; the directory is for the files of transformers' parts."""
        text = dict(self.text)
        if self.tokenizer is not None:
            self.tokenizer().save_pretrained(directory)
            text["hf_tokenizer_name"] = str(directory)
        if "hf_model_name" in text:
            XLMRobertaConfig(
                vocab_size=2000,
                hidden_size=32,
                num_hidden_layers=2,
                num_attention_heads=2,
                intermediate_size=64,
                max_position_embeddings=80,
                type_vocab_size=1,
            ).save_pretrained(directory)
        config = {"embed_dim": 24, "vision_cfg": self.vision, "text_cfg": text, **self.others}
        torch.manual_seed(11)
        model = stirred(open_clip_models.build(config, name, directory))
        take_statistics(model.visual)
        return open_clip_models.reference_of(model, name, self.rules, self._open_clip_tokenizer(text, directory))

    def _open_clip_tokenizer(self, text: dict[str, Any], directory: Path) -> Any:
        if self.tokenizer is None:
            return open_clip_models.simple_tokenizer(text)
        length = text.get("context_length", 77)
        return HFTokenizer(str(directory), context_length=length, **text.get("tokenizer_kwargs", {}))


def take_statistics(visual: nn.Module) -> None:
    """Sets the statistics of batch normalisations to those of random images, as training does."""
    for module in visual.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
            module.train()
    with torch.no_grad():
        visual(torch.randn(16, 3, SIZE, SIZE) + 2 * torch.randn(16, 3, 1, 1))
    visual.eval()


def timm_tower(entry: str, pool: str, proj: str | None, **arguments: Any) -> dict[str, Any]:
    """open_clip's `vision_cfg` of one of timm's models, made small by arguments of its own."""

    def make(pretrained: bool = False, **kwargs: Any) -> Any:
        return timm.create_model(entry, pretrained=pretrained, **arguments | kwargs)

    make.__name__ = f"lookwire_{entry}"
    register_model(make)
    return {"image_size": SIZE, "timm_model_name": make.__name__, "timm_pool": pool, "timm_proj": proj}


SIGLIP_VIT = timm_tower("vit_base_patch16_siglip_224", "map", "none", img_size=SIZE, embed_dim=24, depth=2, num_heads=2)
CUSTOM = {"custom_text": True}
SIGMOID = CUSTOM | {"init_logit_bias": -10}
FAMILIES = {
    "vit-quickgelu": Family(VIT, TEXT, others={"quick_gelu": True}),
    "vit": Family(VIT, TEXT),
    "convnext": Family(timm_tower("convnext_base", "", "linear", depths=(1, 1, 1, 1), dims=(16, 24, 32, 48)), TEXT),
    "eva02": Family(timm_tower("eva02_base_patch16_clip_224", "token", None, **EVA), TEXT, others=CUSTOM),
    "siglip": Family(SIGLIP_VIT, SIGLIP_TEXT, SQUASH_RULES, t5, SIGMOID),
    "siglip2": Family(SIGLIP_VIT, SIGLIP_TEXT | {"act_kwargs": {"approximate": "tanh"}}, SQUASH_RULES, gemma, SIGMOID),
    "mobileclip-s": Family(
        timm_tower("fastvit_mci0", "avg", None, layers=(1, 1, 1, 1), embed_dims=(16, 32, 32, 64)),
        TEXT | {"no_causal_mask": True},
        MOBILE_RULES,
        others=CUSTOM,
    ),
    "mobileclip-b": Family(
        timm_tower("vit_base_mci_224", "token", None, img_size=SIZE, depth=1), TEXT, MOBILE_RULES, others=CUSTOM
    ),
    "clipa": Family(
        VIT | {"no_ln_pre": True, "pool_type": "avg", "final_ln_after_pool": True}, CLIPA_TEXT, SQUASH_RULES, bert
    ),
    "pe-core": Family(
        timm_tower("vit_pe_core_base_patch16_224", "map", None, attn_pool_num_heads=3, **EVA),
        TEXT | {"context_length": 32},
        replace(SQUASH_RULES, interpolation="bilinear"),
        others=CUSTOM,
    ),
    "xlm-roberta": Family(
        VIT, {"hf_model_name": "xlm-roberta", "hf_pooler_type": "mean_pooler"}, tokenizer=xlm_roberta
    ),
}


ABSENT = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "torchvision", "transformers", "open_clip", "timm"):
            raise ModuleNotFoundError(f"{name} is not installed here")

sys.meta_path.insert(0, Absent())
"""
"""A sitecustomize.py, which Python runs at its start."""


@pytest.fixture(scope="module", params=[*FAMILIES, "transformers-clip", "transformers-siglip"])
def reference(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Reference:
    """A small model of each family."""
    if request.param.startswith("transformers"):
        found: Reference = request.getfixturevalue(request.param.removeprefix("transformers-"))
        return found
    return FAMILIES[request.param].reference(request.param, tmp_path_factory.mktemp("files"))


@pytest.fixture(scope="module")
def integers(reference: Reference, tmp_path_factory: pytest.TempPathFactory) -> ExportedEncoder:
    """Its export in int8, which is made from one in fp32."""
    return export(reference, "family", "int8", tmp_path_factory.mktemp("repository"))


@pytest.fixture
def without_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes that are started find none of the packages that only the export has."""
    (tmp_path / "sitecustomize.py").write_text(ABSENT)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    imported = subprocess.run([sys.executable, "-c", "import torch"], capture_output=True, text=True, check=False)
    assert "torch is not installed here" in imported.stderr


@pytest.mark.usefixtures("without_torch")
def test_family_is_exported_exactly(reference: Reference, integers: ExportedEncoder) -> None:
    """The graphs give the model's own vectors at any batch, and the encoder passes the gate on a server without torch."""
    check_images(reference, integers.fp32)
    check_texts(reference, integers.fp32)
    measure(reference, integers.fp32).require()


def test_family_is_rounded_to_integers(reference: Reference, integers: ExportedEncoder) -> None:
    """The int8 graphs of each family give the model's vectors but for rounding, and every layer that they round has a name."""
    check_images(reference, integers, 0.99)
    check_texts(reference, integers, 0.99)
    for tower in ("image", "text"):
        operators = [node.op_type for node in onnx.load(integers.graph(tower)).graph.node]
        assert operators.count("MatMulInteger") == len(layers(integers.fp32.graph(tower))) > 0
        assert "Gemm" not in operators


def test_family_is_stored_in_halves(reference: Reference, tmp_path: Path) -> None:
    """The fp16 graphs of each family give the model's vectors but for rounding."""
    encoder = export(reference, "family", "fp16", tmp_path)

    check_images(reference, encoder, 0.999)
    check_texts(reference, encoder, 0.999)


def check_images(reference: Reference, encoder: ExportedEncoder, at_least: float = 0.99999) -> None:
    """Raw bytes through the graph are normalised pixels through the model, at batches of 1, 2 and 3."""
    size = reference.image.size
    pixels = torch.randint(0, 256, (6, size, size, 3), dtype=torch.uint8)
    pixels[3:] = torch.tensor([[255, 0, 0], [0, 200, 20], [90, 80, 255]], dtype=torch.uint8)[:, None, None]
    mean, std = torch.tensor(reference.image.mean), torch.tensor(reference.image.std)
    expected = reference.encode_image(((pixels / 255 - mean) / std).permute(0, 3, 1, 2))

    check(in_batches(encoder.image_graph, "pixels", pixels.numpy()), normalize(expected, dim=-1).numpy(), at_least)


def check_texts(reference: Reference, encoder: ExportedEncoder, at_least: float = 0.99999) -> None:
    """Ids through the graph are ids through the model, at batches of 1, 2 and 3, cut where the encoder says so."""
    ids = reference.tokenize(["", "a red dress", "dress red a", "38", "two blue shoes, size 44", "x " * 90])
    expected = normalize(reference.encode_text(ids), dim=-1).numpy()
    graph = encoder.text_graph
    check(in_batches(graph, "input_ids", ids.int().numpy()), expected, at_least)
    if encoder.manifest["text"]["padding"] == "longest":
        assert int(ids[:5].argmax(dim=1).max()) < 20
        check(in_batches(graph, "input_ids", ids[:5, :20].int().numpy()), expected[:5], at_least)


def in_batches(graph: Path, name: str, rows: NDArray[Any]) -> NDArray[Any]:
    """The embeddings of rows in batches of 1, 2 and 3."""
    session = onnxruntime.InferenceSession(graph)
    batches = np.split(rows, [1, 3])
    return np.concatenate([session.run(["embedding"], {name: batch})[0] for batch in batches])


def check(rows: NDArray[Any], expected: NDArray[Any], at_least: float) -> None:
    """Rows are the expected ones up to rounding, and no two of those are alike."""
    cosines = rows @ expected.T
    assert rows.dtype == np.float32
    assert cosines.diagonal().min() >= at_least
    assert (expected @ expected.T - np.eye(len(rows))).max() < 0.9999
