"""What the export's tests share: the committed checkpoint, and tiny models of each library with random weights."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from open_clip import SimpleTokenizer
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer, SiglipConfig, SiglipModel

from lookwire_export import sources
from lookwire_export.captions import KIND_WORDS
from lookwire_export.encoder import ExportedEncoder, export
from lookwire_export.reference import Reference
from lookwire_export.sources.open_clip_models import GARMENTS, create

ROOT = Path(__file__).parents[2]
WEIGHTS = ROOT / "tests" / "data" / "garments.safetensors"
TINY = "lookwire-test-tiny"
CONFIG = {
    "embed_dim": 24,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 32, "patch_size": 16, "width": 32, "head_width": 16, "layers": 2},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2},
}
TRANSFORM = {
    "mean": [0.48145466, 0.4578275, 0.40821073],
    "std": [0.26862954, 0.26130258, 0.27577711],
    "interpolation": "bicubic",
    "resize_mode": "shortest",
}
"""open_clip's preprocess_cfg of the tiny architecture."""
TOWER = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
IMAGES = {"image_size": 32, "patch_size": 16}


def stirred(model: Any, seed: int = 3) -> Any:
    """Makes the weights of a model large enough for every input to matter, and returns it."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if not name.startswith("logit"):
                weight += 0.1 * torch.randn(weight.shape, generator=generator)
    return model.eval()


def save_clip_tokenizer(directory: Path) -> None:
    """Writes the tokenizer of CLIP, as transformers has it, from open_clip's copy of its vocabulary."""
    tokenizer = SimpleTokenizer()
    names = {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}
    vocabulary = {names.get(word, word): identity for word, identity in tokenizer.encoder.items()}
    CLIPTokenizer(vocab=vocabulary, merges=list(tokenizer.bpe_ranks)).save_pretrained(directory)


def save_t5_tokenizer(directory: Path, texts: Iterable[str]) -> int:
    """Trains a small tokenizer of T5's kind, as SigLIP has, and returns how many ids it has."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    special = ["<pad>", "</s>", "<unk>"]
    trainer = trainers.UnigramTrainer(vocab_size=400, special_tokens=special, unk_token="<unk>")
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    tokenizer.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text(
        json.dumps(
            {
                "tokenizer_class": "PreTrainedTokenizerFast",
                "pad_token": "</s>",
                "eos_token": "</s>",
                "unk_token": "<unk>",
                "model_max_length": 16,
                "model_input_names": ["input_ids"],
            }
        )
    )
    return int(tokenizer.get_vocab_size())


@pytest.fixture(scope="session", autouse=True)
def _two_threads() -> None:
    torch.set_num_threads(2)


@pytest.fixture(scope="session")
def garments() -> Reference:
    """The bundled encoder's reference."""
    return sources.load(GARMENTS, str(WEIGHTS))


@pytest.fixture(scope="session")
def garments_encoder(garments: Reference, tmp_path_factory: pytest.TempPathFactory) -> ExportedEncoder:
    """The bundled encoder, exported anew."""
    return export(garments, "garments", "fp16", tmp_path_factory.mktemp("garments"))


@pytest.fixture(scope="session")
def tiny_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of the architecture TINY, which open_clip then knows; its transform is TRANSFORM."""
    folder = tmp_path_factory.mktemp("tiny")
    (folder / f"{TINY}.json").write_text(json.dumps(CONFIG))
    open_clip.add_model_config(folder / f"{TINY}.json")
    (folder / "transform.json").write_text(json.dumps(TRANSFORM))
    torch.manual_seed(3)
    save_file(stirred(create(TINY).model).state_dict(), folder / "tiny.safetensors")
    return folder / "tiny.safetensors"


@pytest.fixture(scope="session")
def tiny_transform(tiny_file: Path) -> Path:
    """The file with the tiny architecture's transform."""
    return tiny_file.parent / "transform.json"


@pytest.fixture(scope="session")
def tiny(tiny_file: Path, tiny_transform: Path) -> Reference:
    """A small model with random weights and the QuickGELU activation."""
    return sources.load(TINY, str(tiny_file), preprocess=str(tiny_transform))


@pytest.fixture(scope="session")
def clip_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory of transformers with a small CLIPModel."""
    folder = tmp_path_factory.mktemp("clip")
    torch.manual_seed(5)
    text = {**TOWER, "vocab_size": 49408, "bos_token_id": 49406, "eos_token_id": 49407}
    config = CLIPConfig(text_config=text, vision_config={**TOWER, **IMAGES}, projection_dim=24)
    stirred(CLIPModel(config)).save_pretrained(folder)
    save_clip_tokenizer(folder)
    settings = {
        "image_processor_type": "CLIPImageProcessor",
        "do_resize": True,
        "size": {"shortest_edge": 32},
        "resample": 3,
        "do_center_crop": True,
        "crop_size": {"height": 32, "width": 32},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": TRANSFORM["mean"],
        "image_std": TRANSFORM["std"],
        "do_convert_rgb": True,
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    return folder


@pytest.fixture(scope="session")
def siglip_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory of transformers with a small SiglipModel."""
    folder = tmp_path_factory.mktemp("siglip")
    torch.manual_seed(7)
    captions = [f"a {word} for {size} euro" for words in KIND_WORDS.values() for word in words for size in range(9)]
    words = save_t5_tokenizer(folder, captions)
    text = {**TOWER, "vocab_size": words, "max_position_embeddings": 16, "projection_size": 32}
    text |= {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 1}
    config = SiglipConfig(text_config=text, vision_config={**TOWER, **IMAGES})
    stirred(SiglipModel(config)).save_pretrained(folder)
    settings = {
        "image_processor_type": "SiglipImageProcessor",
        "do_resize": True,
        "size": {"height": 32, "width": 32},
        "resample": 3,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    return folder


@pytest.fixture(scope="session")
def clip(clip_directory: Path) -> Reference:
    """A small CLIPModel of transformers."""
    return sources.load(str(clip_directory), None)


@pytest.fixture(scope="session")
def siglip(siglip_directory: Path) -> Reference:
    """A small SiglipModel of transformers."""
    return sources.load(str(siglip_directory), None)
