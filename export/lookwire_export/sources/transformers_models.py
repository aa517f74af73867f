"""References made of transformers' models: directories with config.json, preprocessor_config.json and a tokenizer."""

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
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
from lookwire_export.sources import hub, siglip_tokenizer, transforms, weights
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

    `file` are weights to take in place of the directory's, `preprocess` a preprocessor_config.json, or a transform in
    open_clip's words (`transforms.told`), and `tokenizer` a directory to take in place of its own; `name` is what messages
    call the model.
    """
    kind, config = _config(directory, name)
    file = file or _weight_file(directory)
    files = weights.shards(file) if file.suffix == ".json" else [file]
    state = {key: weight for shard in files for key, weight in weights.read(shard).items()}
    model = _model(kind, config, state, file, name)
    size = config.vision_config.image_size
    if preprocess is None or (Path(preprocess).is_file() and not transforms.is_open_clips(Path(preprocess))):
        transform, image = image_transform(Path(preprocess) if preprocess else directory, kind, size, name)
    else:
        quick_gelu = config.text_config.hidden_act == "quick_gelu"
        image = transforms.rules(transforms.told(preprocess, name, quick_gelu), size, name)
        transform = transforms.preprocess(image)
    words = load_tokenizer(tokenizer or directory, name)
    return reference_of(model, name, transform, image, words, weights.digest(files))


def is_cached(repository: str) -> bool:
    """Whether the hub's cache holds configuration and weights of the repository's model of transformers."""
    return hub.is_cached(repository, "config.json") and any(hub.is_cached(repository, file) for file in WEIGHTS)


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
    model: Any,
    architecture: str,
    preprocess: Callable[[Image.Image], Any],
    image: ImageRules,
    tokenizer: Any,
    sha256: str = "",
) -> Reference:
    """Returns the reference that a live CLIPModel or SiglipModel is, with any weights.

    `preprocess` and `image` are what `image_transform` returns; `tokenizer` is a tokenizer of transformers. The context length
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


def image_transform(source: Path, kind: str, size: int, name: str) -> tuple[Callable[[Image.Image], Any], ImageRules]:
    """Returns transformers' own transform by Pillow and its rules; `source` is a preprocessor_config.json or its directory.

    `kind` is "clip" or "siglip", `size` the side of the model's images. Raises ExportError if the transform is not
    known, or a manifest cannot say it.
    """
    settings = _settings(source, name)
    said = str(settings.get("image_processor_type") or settings.get("feature_extractor_type") or kind)
    family = next((family for family in PROCESSORS if re.match(rf"{family}(?!2)", said, re.IGNORECASE)), None)
    if family is None:
        raise ExportError(f"{name} prepares images by {said}, which is not supported; supported: CLIP's and SigLIP's")
    try:
        processor: Any = PROCESSORS[family](
            **{key: value for key, value in settings.items() if not key.endswith("_type")}
        )
        rules = _image_rules(processor, size, name)
    except ExportError:
        raise
    except Exception as error:
        # A value of the wrong kind makes transformers raise whatever comes.
        raise ExportError(f"{name} has a preprocessor_config.json that transformers cannot take: {error!r}") from error

    def transform(opened: Image.Image) -> Any:
        prepared = processor(opened, do_convert_rgb=True, return_tensors="np")
        return torch.from_numpy(prepared["pixel_values"][0].astype(np.float32))

    return transform, rules


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
    try:
        config = MODELS[kind][0].from_dict(content)
    except Exception as error:
        # A value of the wrong kind makes transformers raise whatever comes.
        raise _misconfigured(name, error) from error
    if not isinstance(size := config.vision_config.image_size, int):
        raise ExportError(f"{name} has image_size {size!r} in its config.json; expected one number, a side of a square")
    return kind, config


def _misconfigured(name: str, error: Exception) -> ExportError:
    reason = " ".join(str(error).split())
    return ExportError(
        f"transformers {transformers.__version__} cannot build {name} by its config.json: {type(error).__name__}: {reason}"
    )


def _json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise ExportError(f"{file} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise ExportError(f"{file} must be a JSON object")
    return content


def _model(kind: str, config: Any, state: Mapping[str, Any], file: Path, name: str) -> Any:
    """Returns the model with the weights, whose names and shapes must be those that this version of transformers writes."""
    try:
        empty = MODELS[kind][1](config)
    except Exception as error:
        # As in _config: what is checked here only are values that have to fit each other, or name something.
        raise _misconfigured(name, error) from error
    expected = empty.state_dict()
    given = {key: value for key, value in state.items() if key in expected or not key.endswith(".position_ids")}
    weights.require_fit(expected, given, file, name)
    empty.load_state_dict(given)
    return empty


def _weight_file(directory: Path) -> Path:
    for file in WEIGHTS:
        if (directory / file).is_file():
            return directory / file
    raise ExportError(f"{directory} holds no weights: put one of {', '.join(WEIGHTS)} there, or give --pretrained FILE")


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
    resample = int(processor.resample) if isinstance(processor.resample, int) else processor.resample
    if (interpolation := INTERPOLATIONS.get(resample)) is None:
        raise ExportError(f"{name} resizes by Pillow's filter {resample!r}; supported: 2 (bilinear), 3 (bicubic)")
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
        mean=transforms.three(processor.image_mean, "image_mean", name),
        std=transforms.three(processor.image_std, "image_std", name),
        convert_rgb="before_resize",
        crop="floor",
    )
