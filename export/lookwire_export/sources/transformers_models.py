"""References made of transformers' models: directories with config.json, preprocessor_config.json and a tokenizer."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image
from transformers import AutoTokenizer, CLIPConfig, CLIPModel, SiglipConfig, SiglipModel, SiglipTokenizer
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from lookwire_export.reference import ExportError, ImageRules, Reference, TextRules
from lookwire_export.sources import hub, siglip_tokenizer, weights
from lookwire_export.tokenizer import huggingface_tokenizer_json

MODELS = {"clip": (CLIPConfig, CLIPModel), "siglip": (SiglipConfig, SiglipModel)}
PROCESSORS = {"clip": CLIPImageProcessorPil, "siglip": SiglipImageProcessorPil}
INTERPOLATIONS = {2: "bilinear", 3: "bicubic"}
"""Pillow's numbers of resampling filters."""
WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
TOKENIZERS = ("tokenizer.json", "spiece.model", "vocab.json", "vocab.txt", "sentencepiece.bpe.model")
TOKENIZER_SETTINGS = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "merges.txt")


def load_directory(
    directory: Path, name: str, file: Path | None = None, preprocess: str | None = None, tokenizer: Path | None = None
) -> Reference:
    """Returns the reference of a directory as `save_pretrained` writes it.

    `file` are weights to take in place of the directory's, `preprocess` a preprocessor_config.json and `tokenizer` a
    directory to take in place of its own; `name` is what messages call the model.
    """
    kind, config = _config(directory, name)
    files = [file] if file else _weight_files(directory)
    state = weights.read_shards(files[0]) if files[0].suffix == ".json" else weights.read(files[0])
    model = _model(kind, config, state, files[0], name)
    size = config.vision_config.image_size
    processor, image = image_processor(Path(preprocess) if preprocess else directory, kind, size, name)
    return reference_of(model, name, processor, image, load_tokenizer(tokenizer or directory, name), _sha256(files))


def fetch(repository: str) -> Path:
    """Returns a folder with all that a repository of the hub has for a model of transformers."""
    instead = "give DIR as MODEL"
    if hub.file(repository, ["config.json"], instead) is None:
        raise ExportError(f"{repository} holds neither open_clip_config.json nor config.json: it is no model")
    settings = ["*config.json", *TOKENIZERS, *TOKENIZER_SETTINGS]
    weight = hub.required(repository, WEIGHTS, instead)
    shards = ["model-*.safetensors", "pytorch_model-*.bin"] if weight.suffix == ".json" else []
    return hub.folder(repository, [*settings, weight.name, *shards], instead)


def reference_of(
    model: Any, architecture: str, processor: Any, image: ImageRules, tokenizer: Any, sha256: str = ""
) -> Reference:
    """Returns the reference that a live CLIPModel or SiglipModel is, with any weights.

    `processor` and `image` are what `image_processor` returns; `tokenizer` is a tokenizer of transformers. The context length
    is the number of positions that the text tower was trained with, whatever the tokenizer says.
    """
    model = model.float().eval()
    context_length = int(model.config.text_config.max_position_embeddings)
    if (tokenizer.padding_side, tokenizer.truncation_side) != ("right", "right"):
        raise ExportError(
            f"the tokenizer of {architecture} pads on the {tokenizer.padding_side} and cuts on the"
            f" {tokenizer.truncation_side}; only the right is supported"
        )
    written = huggingface_tokenizer_json
    if isinstance(tokenizer, SiglipTokenizer):
        written = siglip_tokenizer.tokenizer_json
    rules = TextRules(written(tokenizer), "none", context_length, tokenizer.pad_token_id)

    def preprocess(opened: Image.Image) -> Any:
        prepared = processor(opened, do_convert_rgb=True, return_tensors="np")
        return torch.from_numpy(prepared["pixel_values"][0].astype(np.float32))

    def tokenize(texts: Sequence[str]) -> Any:
        return tokenizer(
            list(texts), padding="max_length", max_length=context_length, truncation=True, return_tensors="pt"
        ).input_ids

    def encode_image(pixels: Any) -> Any:
        with torch.no_grad():
            return model.get_image_features(pixel_values=pixels).pooler_output

    def encode_text(ids: Any) -> Any:
        with torch.no_grad():
            return model.get_text_features(input_ids=ids).pooler_output

    highest = int(tokenize(["a red dress, size 38"]).max())
    if highest >= model.config.text_config.vocab_size:
        raise ExportError(
            f"the tokenizer gives ids up to {highest}, but {architecture} knows {model.config.text_config.vocab_size}"
            " words: it is another model's"
        )
    bias = getattr(model, "logit_bias", None)
    return Reference(
        architecture=architecture,
        library=f"transformers {transformers.__version__}, torch {torch.__version__}",
        sha256=sha256,
        model=model,
        image=image,
        text=rules,
        preprocess=preprocess,
        tokenize=tokenize,
        encode_image=encode_image,
        encode_text=encode_text,
        dimension=int(encode_text(tokenize(["a red dress"])).shape[1]),
        activation={"gelu_pytorch_tanh": "gelu_tanh"}.get(
            model.config.text_config.hidden_act, model.config.text_config.hidden_act
        ),
        logit_scale=model.logit_scale.exp().item(),
        logit_bias=None if bias is None else bias.item(),
    )


def image_processor(source: Path, kind: str, size: int, name: str) -> tuple[Any, ImageRules]:
    """Returns transformers' own Pillow processor and its rules; `source` is a preprocessor_config.json or its directory.

    `kind` is "clip" or "siglip", `size` the side of the model's images. Raises ExportError if the transform is not
    known, or a manifest cannot say it.
    """
    settings = _settings(source, name)
    said = str(settings.get("image_processor_type") or settings.get("feature_extractor_type") or kind)
    family = next((family for family in PROCESSORS if re.match(rf"{family}(?!2)", said, re.IGNORECASE)), None)
    if family is None:
        raise ExportError(f"{name} prepares images by {said}, which is not supported; supported: CLIP's and SigLIP's")
    processor = PROCESSORS[family](**{key: value for key, value in settings.items() if not key.endswith("_type")})
    return processor, _image_rules(processor, size, name)


def load_tokenizer(directory: Path, name: str) -> Any:
    """Returns the tokenizer of a directory."""
    with reading_tokenizer(directory, name):
        return AutoTokenizer.from_pretrained(str(directory), local_files_only=True)


@contextmanager
def reading_tokenizer(directory: Path, name: str) -> Iterator[None]:
    """Raises ExportError if the directory holds no tokenizer, or transformers stumbles over it."""
    if not any((directory / file).is_file() for file in TOKENIZERS):
        raise ExportError(
            f"{directory} holds no tokenizer for {name}: put tokenizer.json and tokenizer_config.json there, or give their"
            " directory by --tokenizer"
        )
    try:
        yield
    except Exception as error:
        # A damaged file makes transformers raise whatever comes.
        reason = str(error).strip().partition("\n")[0]
        raise ExportError(f"transformers cannot read the tokenizer in {directory}: {reason}") from error


def _config(directory: Path, name: str) -> tuple[str, Any]:
    content = _json(directory / "config.json")
    kind = content.get("model_type")
    if kind == "siglip2":
        raise ExportError(
            f"{name} is a NaFlex SigLIP 2 (model_type siglip2), which is not supported: it takes a number of patches that"
            " varies with the image; the fixed resolutions of SigLIP 2 have model_type siglip"
        )
    if kind not in MODELS:
        raise ExportError(f"{name} has model_type {kind!r}; supported: {', '.join(MODELS)}")
    return kind, MODELS[kind][0].from_dict(content)


def _json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise ExportError(f"{file} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise ExportError(f"{file} must be a JSON object")
    return content


def _model(kind: str, config: Any, state: Mapping[str, Any], file: Path, name: str) -> Any:
    """Returns the model with the weights, by transformers' own loading (it renames what older versions wrote)."""
    empty = MODELS[kind][1](config)
    expected = empty.state_dict()
    given = {key: value for key, value in state.items() if key in expected or not key.endswith(".position_ids")}
    weights.require_fit(expected, given, file, name)
    empty.load_state_dict(given)
    return empty


def _weight_files(directory: Path) -> list[Path]:
    for file in WEIGHTS:
        if (directory / file).is_file():
            return [directory / file]
    raise ExportError(f"{directory} holds no weights: put one of {', '.join(WEIGHTS)} there, or give --pretrained FILE")


def _sha256(files: Sequence[Path]) -> str:
    return weights.digest(files)


def _settings(source: Path, name: str) -> dict[str, Any]:
    if source.is_file():
        return _json(source)
    for file, part in (("preprocessor_config.json", None), ("processor_config.json", "image_processor")):
        if (source / file).is_file():
            content = _json(source / file)
            settings = content.get(part) if part else content
            if isinstance(settings, dict):
                return settings
    raise ExportError(
        f"{name} does not say how images are prepared: {source} has no preprocessor_config.json. Put the one that it was"
        " trained with there, or give it by --preprocess"
    )


def _image_rules(processor: Any, size: int, name: str) -> ImageRules:
    for step in ("do_resize", "do_rescale", "do_normalize"):
        if not getattr(processor, step):
            raise ExportError(f"{name} has {step} false in its preprocessor_config.json, which is not supported")
    if getattr(processor, "do_pad", False):
        raise ExportError(f"{name} pads its images (do_pad), which is not supported")
    if abs(processor.rescale_factor - 1 / 255) > 1e-9:
        raise ExportError(f"{name} has rescale_factor {processor.rescale_factor}; supported: 1/255")
    if (interpolation := INTERPOLATIONS.get(int(processor.resample))) is None:
        raise ExportError(
            f"{name} resizes by Pillow's filter {int(processor.resample)}; supported: 2 (bilinear), 3 (bicubic)"
        )
    resized, cropped = dict(processor.size), dict(processor.crop_size or {}) if processor.do_center_crop else None
    square = {"height": size, "width": size}
    if cropped not in (None, square):
        raise ExportError(f"{name} crops to {cropped}, but its image tower takes {size} x {size}")
    if resized == {"shortest_edge": size} and cropped:
        resize = "shortest"
    elif resized == square:
        resize = "squash"
    else:
        raise ExportError(
            f"{name} resizes to {resized}{' without cropping' if cropped is None else ''}; supported: the shortest edge to"
            f" {size}, cropped to {size} x {size}, or both edges to {size}"
        )
    return ImageRules(
        size=size,
        resize=resize,  # type: ignore[arg-type]
        interpolation=interpolation,  # type: ignore[arg-type]
        mean=tuple(processor.image_mean),
        std=tuple(processor.image_std),
        convert_rgb="before_resize",
        crop="floor",
    )
