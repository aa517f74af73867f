"""References made of open_clip's models."""

import difflib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import open_clip
import torch
import transformers
from open_clip import tokenizer as cleaning
from open_clip.convert import convert_state_dict
from open_clip.model import convert_to_custom_text_state_dict
from open_clip.tokenizer import HFTokenizer, SimpleTokenizer
from open_clip.transform import PreprocessCfg
from open_clip.transformer import QuickGELU
from torch import nn

from lookwire_export.reference import ExportError, ImageRules, Reference, TextRules
from lookwire_export.sources import activation, hub, transformers_models, transforms, weights
from lookwire_export.sources.transformers_models import TOKENIZER_SETTINGS, TOKENIZERS, reading_tokenizer
from lookwire_export.tokenizer import huggingface_tokenizer_json, tokenizer_json

GARMENTS = "lookwire-garments"
"""The packaged architecture of the bundled encoder, trained with open_clip's default transform."""
CONFIG = "open_clip_config.json"
WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
"""What open_clip publishes weights as."""
LOCAL_WEIGHTS = (
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin",
    "open_clip_pytorch_model.pth",
    "model.safetensors",
    "pytorch_model.bin",
    "pytorch_model.pth",
    "model.pth",
)
"""What open_clip looks for in a directory, in its order (`open_clip.factory._find_checkpoint_in_dir`)."""
CLEANING: dict[Any, Literal["lower", "canonicalize", "whitespace"]] = {
    cleaning._clean_lower: "lower",
    cleaning._clean_canonicalize: "canonicalize",
    cleaning._clean_whitespace: "whitespace",
}

open_clip.add_model_config(Path(__file__).parents[1] / "configs")


def create(architecture: str) -> Reference:
    """Returns an architecture with random weights and open_clip's default transform, for training or for trying."""
    config = _config_of(architecture)
    model = build(config, architecture)
    image = transforms.rules(vars(PreprocessCfg()), model.visual.image_size, architecture)
    return reference_of(model, architecture, image, simple_tokenizer(config["text_cfg"]))


def load(
    architecture: str, pretrained: str | None, preprocess: str | None = None, tokenizer: Path | None = None
) -> Reference:
    """Returns an architecture by open_clip's name with the weights of one of its tags, or of a file."""
    config = _config_of(architecture)
    if pretrained is None:
        raise ExportError(f"{architecture} is an architecture: name its weights by --pretrained; {_tags(architecture)}")
    if Path(pretrained).is_file():
        file = Path(pretrained)
        if preprocess is not None:
            transform = transforms.told_for(architecture, preprocess)
        elif architecture == GARMENTS:
            transform = vars(PreprocessCfg())
        else:
            raise transforms.untold(architecture, file)
    elif transform := transforms.of_tag(architecture, pretrained):
        activation.require_of_tag(architecture, pretrained)
        file = _fetched(architecture, pretrained, transform)
        if preprocess is not None:
            transform = transforms.told_for(architecture, preprocess)
    else:
        raise ExportError(
            f"--pretrained {pretrained} is neither a file (safetensors or a torch state dict) nor a tag of"
            f" {architecture}; {_tags(architecture)}"
        )
    return _loaded(config, architecture, file, transform, tokenizer)


def load_directory(
    directory: Path,
    name: str,
    file: Path | None = None,
    preprocess: str | None = None,
    tokenizer: Path | None = None,
) -> Reference:
    """Returns the reference of a directory with an open_clip_config.json; `name` is what messages call it."""
    config, transform = _configuration(directory / CONFIG, name)
    file = file or _local_weights(directory)
    if preprocess is not None:
        transform = transforms.told(preprocess, name, bool(config.get("quick_gelu", False)))
    has_tokenizer = any((directory / known).is_file() for known in TOKENIZERS)
    if tokenizer is None and has_tokenizer and config["text_cfg"].get("hf_tokenizer_name"):
        tokenizer = directory
    return _loaded(config, name, file, transform, tokenizer)


def is_published(repository: str) -> bool:
    """Whether a repository of the hub holds a model of open_clip."""
    try:
        return hub.file(repository, [CONFIG], "give DIR as MODEL") is not None
    except hub.UnreachableError as error:
        # transformers, which fetched what the cache holds, does not ask for this file, so nothing records that there is none.
        if transformers_models.is_cached(repository):
            return False
        raise hub.UnreachableError(
            f"the hub cannot be reached, and its cache has no model of {repository}: neither {CONFIG} (open_clip) nor"
            f" config.json (transformers), with weights and a tokenizer. On a machine with network: `hf download {repository}"
            " --local-dir DIR`; then give DIR as MODEL"
        ) from error


def load_published(
    repository: str, file: Path | None = None, preprocess: str | None = None, tokenizer: Path | None = None
) -> Reference:
    """Returns the reference of a repository of the hub that `is_published`."""
    instead = f"download {CONFIG} likewise, and give local-dir:DIR as MODEL"
    config, transform = _configuration(hub.required(repository, [CONFIG], instead), repository)
    if preprocess is not None:
        transform = transforms.told(preprocess, repository, bool(config.get("quick_gelu", False)))
    return _loaded(config, repository, file or hub.required(repository, WEIGHTS, instead), transform, tokenizer)


def reference_of(model: Any, architecture: str, image: ImageRules, tokenizer: Any, sha256: str = "") -> Reference:
    """Returns the reference that a live model is.

    `model` is open_clip's CLIP or CustomTextCLIP, with any weights; it is put in evaluation mode. `tokenizer` is open_clip's
    SimpleTokenizer or HFTokenizer. Raises ExportError for rules that a manifest cannot say.
    """
    model = model.float().eval()
    preprocess = transforms.preprocess(image)
    text = _text_rules(tokenizer, architecture)
    hugging_face = f", transformers {transformers.__version__}" if isinstance(tokenizer, HFTokenizer) else ""

    def encode_image(pixels: Any) -> Any:
        with torch.no_grad():
            return model.encode_image(pixels)

    def encode_text(ids: Any) -> Any:
        with torch.no_grad():
            return model.encode_text(ids)

    def tokenize(texts: Sequence[str]) -> Any:
        return tokenizer(list(texts))

    return Reference(
        architecture=architecture,
        library=f"open_clip {open_clip.__version__}{hugging_face}, torch {torch.__version__}",
        sha256=sha256,
        model=model,
        image=image,
        text=text,
        preprocess=preprocess,
        tokenize=tokenize,
        encode_image=encode_image,
        encode_text=encode_text,
        dimension=_dimension(encode_text, tokenize, architecture),
        activation=_activation(model),
        logit_scale=model.logit_scale.exp().item(),
        logit_bias=None if model.logit_bias is None else model.logit_bias.item(),
    )


def build(config: Mapping[str, Any], architecture: str, hf_model: Path | None = None) -> Any:
    """Returns the model of a configuration (open_clip's `model_cfg`) with random weights; nothing is fetched.

    `hf_model` is a directory with the config.json of a text tower from Hugging Face, which only some configurations have.
    Raises ExportError, with the name and the reason, for what cannot be exported.
    """
    _require_supported(config, architecture)
    vision = {**config["vision_cfg"]}
    text = {**config["text_cfg"]}
    if vision.get("timm_model_name"):
        vision["timm_model_pretrained"] = False
    if text.get("hf_model_name"):
        text["hf_model_name"] = str(hf_model or text["hf_model_name"])
        text["hf_model_pretrained"] = False
    custom = config.get("custom_text") or text.get("hf_model_name")
    kind = open_clip.CustomTextCLIP if custom else open_clip.CLIP
    others = {key: value for key, value in config.items() if key not in ("custom_text", "vision_cfg", "text_cfg")}
    try:
        return kind(vision_cfg=vision, text_cfg=text, **others).eval()
    except Exception as error:
        # A value of the wrong kind makes open_clip, timm and torch raise whatever comes.
        raise ExportError(
            f"open_clip {open_clip.__version__} cannot build {architecture}: {error!r}; check its model_cfg, or use the"
            " version of open_clip (and timm) that it was made with"
        ) from error


def _require_supported(config: Mapping[str, Any], architecture: str) -> None:
    """Raises ExportError for families that cannot be exported, before anything is fetched or built."""
    if "multimodal_cfg" in config:
        raise ExportError(
            f"{architecture} is a CoCa, which is not supported: its text is pooled at a fixed place behind the padding,"
            " and it also generates captions"
        )
    if "naflex" in str(config["vision_cfg"].get("timm_model_name", "")).lower():
        raise ExportError(
            f"{architecture} is a NaFlex, which is not supported: it takes a number of patches that varies with the image"
        )


def simple_tokenizer(text: Mapping[str, Any]) -> SimpleTokenizer:
    """Returns open_clip's byte-pair tokenizer for a configuration (its `text_cfg`)."""
    settings = text.get("tokenizer_kwargs") or {}
    try:
        return SimpleTokenizer(context_length=text.get("context_length", cleaning.DEFAULT_CONTEXT_LENGTH), **settings)
    except (TypeError, AssertionError, KeyError) as error:
        raise ExportError(
            f"open_clip's tokenizer does not take the tokenizer_kwargs {settings!r}: {error!r}"
        ) from error


def _config_of(architecture: str) -> dict[str, Any]:
    config = open_clip.get_model_config(architecture)
    if config is None:
        close = difflib.get_close_matches(architecture, open_clip.list_models(), n=4, cutoff=0.4)
        hint = f"; did you mean {', '.join(close)}?" if close else ""
        raise ExportError(f"open_clip has no architecture {architecture!r}, and there is no such directory{hint}")
    _require_supported(config, architecture)
    return dict(config)


def _tags(architecture: str) -> str:
    tags = open_clip.list_pretrained_tags_by_model(architecture)
    return f"its tags: {', '.join(tags)}" if tags else "it has no tags, so give a file"


def _configuration(file: Path, name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns the model's configuration and its transform, which may be empty or lack keys."""
    try:
        content = json.loads(file.read_text())
        config, transform = dict(content["model_cfg"]), transforms.of_published(content.get("preprocess_cfg") or {})
        vision, text = dict(config["vision_cfg"]), dict(config["text_cfg"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ExportError(f"{file} is no configuration of open_clip with a model_cfg: {error!r}") from error
    config |= {"vision_cfg": vision, "text_cfg": text}
    _require_supported(config, name)
    return config, transform


def _fetched(architecture: str, tag: str, published: Mapping[str, Any]) -> Path:
    """Returns the file of a tag's weights, from the hub's cache or the hub."""
    repository, _, name = str(published["hf_hub"]).rpartition("/")
    safe = [f"{Path(name).stem}.safetensors"] if name.endswith((".bin", ".pth")) else []
    instead = f"give that file: {architecture} --pretrained DIR/FILE --preprocess {tag}"
    return hub.required(repository, [*safe, name] if name else WEIGHTS, instead, advised=name)


def _local_weights(directory: Path) -> Path:
    """Returns the directory's file of weights: the first of LOCAL_WEIGHTS, or the only one that it can be."""
    for name in LOCAL_WEIGHTS:
        if (directory / name).is_file():
            return directory / name
    others = sorted(directory.glob("*.safetensors")) or sorted([*directory.glob("*.bin"), *directory.glob("*.pth")])
    if not others:
        raise ExportError(
            f"{directory} holds no weights: put one of {', '.join(LOCAL_WEIGHTS)} there, or give --pretrained FILE"
        )
    if len(others) > 1:
        names = ", ".join(other.name for other in others)
        raise ExportError(f"{directory} holds several files that may be its weights: give one by --pretrained; {names}")
    return others[0]


def _loaded(
    config: Mapping[str, Any], name: str, file: Path, transform: Mapping[str, Any], tokenizer: Path | None
) -> Reference:
    text = config["text_cfg"]
    if tokenizer is not None and not text.get("hf_tokenizer_name"):
        raise ExportError(f"{name} has open_clip's own tokenizer: leave --tokenizer out")
    if text.get("hf_tokenizer_name"):
        words: Any = hf_tokenizer(text, tokenizer or _hf_tokenizer_folder(text), name)
    else:
        words = simple_tokenizer(text)
    model = build(config, name, _hf_model(text, tokenizer) if text.get("hf_model_name") else None)
    image = transforms.rules(transform, model.visual.image_size, name)
    load_weights(model, file, name)
    return reference_of(model, name, image, words, weights.digest([file]))


def load_weights(model: Any, file: Path, architecture: str) -> None:
    """Puts a file's weights into open_clip's model; a position embedding of another size is an error, not resized.

    Raises ExportError too for weights of OpenAI's archives, which have QuickGELU, where the model has not.
    """
    given = weights.read(file)
    if any(constant in given for constant in weights.OPENAI):
        activation.require(
            architecture, _activation(model) == "quick_gelu", True, f"{file}, of an archive of OpenAI's,"
        )
        given = {name: weight for name, weight in given.items() if name not in weights.OPENAI}
    given = convert_state_dict(model, given)
    if "positional_embedding" in given and not hasattr(model, "positional_embedding"):
        given = convert_to_custom_text_state_dict(given)
    expected = model.state_dict()
    given = {name: weight for name, weight in given.items() if name in expected or not name.endswith(".position_ids")}
    for scalar in ("logit_scale", "logit_bias"):
        if scalar in given and scalar in expected and given[scalar].numel() == 1:
            given[scalar] = given[scalar].reshape(expected[scalar].shape)
    weights.require_fit(expected, given, file, architecture)
    model.load_state_dict(given)


def hf_tokenizer(text: Mapping[str, Any], directory: Path, architecture: str) -> HFTokenizer:
    """Returns open_clip's tokenizer of transformers for a configuration (its `text_cfg`) and a directory."""
    with reading_tokenizer(directory, architecture):
        return HFTokenizer(
            str(directory),
            context_length=text.get("context_length", cleaning.DEFAULT_CONTEXT_LENGTH),
            tokenizer_mode=text.get("tokenizer_mode"),
            **(text.get("tokenizer_kwargs") or {}),
        )


def _hf_tokenizer_folder(text: Mapping[str, Any]) -> Path:
    repository = text["hf_tokenizer_name"]
    return hub.folder(repository, [*TOKENIZERS, *TOKENIZER_SETTINGS], "give --tokenizer DIR")


def _hf_model(text: Mapping[str, Any], tokenizer: Path | None) -> Path:
    """Returns a directory with the config.json of the text tower from Hugging Face."""
    if tokenizer is not None:
        if not (tokenizer / "config.json").is_file():
            raise ExportError(
                f"{tokenizer} lacks the config.json of {text['hf_model_name']}, the text tower: put it there"
            )
        return tokenizer
    if Path(text["hf_model_name"]).is_dir():
        return Path(text["hf_model_name"])
    instead = "give --tokenizer DIR, with the tokenizer's files there too"
    return hub.required(text["hf_model_name"], ["config.json"], instead).parent


def _text_rules(tokenizer: Any, architecture: str) -> TextRules:
    clean = CLEANING[tokenizer.clean_fn]
    if isinstance(tokenizer, SimpleTokenizer):
        if tokenizer.reduction_fn is not None:
            raise ExportError(f"{architecture} drops words by a reduction mask, which is for training only")
        if clean != "lower":
            raise ExportError(
                f"{architecture} cleans texts by {clean!r} before open_clip's tokenizer; supported: 'lower'"
            )
        return TextRules(tokenizer_json(tokenizer), clean, tokenizer.context_length, pad_id=0)
    if tokenizer.tokenizer_mode:
        raise ExportError(f"{architecture} has tokenizer_mode {tokenizer.tokenizer_mode!r}, which is not supported")
    inner = tokenizer.tokenizer
    replace = ((inner.sep_token_id, 0),) if tokenizer.strip_sep_token else ()
    return TextRules(huggingface_tokenizer_json(inner), clean, tokenizer.context_length, inner.pad_token_id, replace)


def _dimension(encode_text: Any, tokenize: Any, architecture: str) -> int:
    """Returns the length of the vectors, by embedding a text; so a tokenizer of another model is found early."""
    try:
        return int(encode_text(tokenize(["a red dress, size 38"])).shape[1])
    except (IndexError, RuntimeError) as error:
        raise ExportError(f"the tokenizer's ids do not fit {architecture}: {error}") from error


def _activation(model: Any) -> str:
    text = getattr(model, "text", model)
    if hasattr(text, "config"):
        return str(getattr(text.config, "hidden_act", "") or getattr(text.config, "dense_act_fn", "unknown"))
    activation = text.transformer.resblocks[0].mlp.gelu
    if isinstance(activation, QuickGELU):
        return "quick_gelu"
    if isinstance(activation, nn.GELU):
        return "gelu" if activation.approximate == "none" else "gelu_tanh"
    return type(activation).__name__.lower()
