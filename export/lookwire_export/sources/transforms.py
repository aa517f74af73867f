"""The image transforms of open_clip: where they are known from, and as the manifest has them."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import open_clip
from open_clip.transform import PreprocessCfg, image_transform_v2

from lookwire_export.reference import ExportError, ImageRules

NEEDED = ("mean", "std", "interpolation", "resize_mode")
"""What makes a transform known; its size is the model's."""


def rules(transform: Mapping[str, Any], size: Any, source: str) -> ImageRules:
    """Returns open_clip's transform (keys of its `preprocess_cfg`) as rules; `size` is the model's.

    Raises ExportError for a transform that is not known in full, or that a manifest cannot say.
    """
    if missing := _missing(transform):
        raise ExportError(
            f"{source} does not say how images are prepared: it lacks {missing}. Tell the transform that the checkpoint was"
            " trained with by --preprocess FILE"
        )
    height, width = (size, size) if isinstance(size, int) else size
    if height != width:
        raise ExportError(f"{source} takes images of {height} x {width}; only square ones are supported")
    if transform["resize_mode"] not in ("shortest", "squash"):
        raise ExportError(f"{source} resizes by {transform['resize_mode']!r}; supported: shortest, squash")
    if transform["interpolation"] not in ("bicubic", "bilinear"):
        raise ExportError(f"{source} resizes by {transform['interpolation']!r}; supported: bicubic, bilinear")
    if transform.get("mode", "RGB") != "RGB":
        raise ExportError(f"{source} takes images of mode {transform['mode']!r}; supported: RGB")
    return ImageRules(
        size=height,
        resize=transform["resize_mode"],
        interpolation=transform["interpolation"],
        mean=_three(transform["mean"], "mean", source),
        std=_three(transform["std"], "std", source),
        convert_rgb="after_resize",
        crop="round",
    )


def preprocess(image: ImageRules) -> Any:
    """Returns open_clip's own transform for the rules: a Pillow image to float32 [3, size, size]."""
    settings = PreprocessCfg(
        size=image.size,
        mean=image.mean,
        std=image.std,
        interpolation=image.interpolation,
        resize_mode=image.resize,
    )
    return image_transform_v2(settings, is_train=False)


def of_published(transform: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the transform that an `open_clip_config.json` publishes.

    One of only mean and std was written before open_clip 2.24, which knew no other way of resizing than this.
    """
    known = {key: value for key, value in transform.items() if value is not None}
    return known | {"interpolation": "bicubic", "resize_mode": "shortest"} if set(known) == {"mean", "std"} else known


def of_tag(architecture: str, tag: str) -> dict[str, Any]:
    """Returns the transform that a published checkpoint was trained with; empty if there is no such tag."""
    return dict(open_clip.get_pretrained_cfg(architecture, tag) or {})


def of_file(file: Path) -> dict[str, Any]:
    """Returns the transform in a JSON file: open_clip's `preprocess_cfg`, or an `open_clip_config.json` that holds it."""
    try:
        content = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise ExportError(f"--preprocess {file} is no JSON file: {error}") from error
    if not isinstance(content, dict):
        raise ExportError(f"--preprocess {file} must be a JSON object with {', '.join(NEEDED)}")
    transform = dict(content.get("preprocess_cfg", content))
    if missing := _missing(transform):
        raise ExportError(f"--preprocess {file} lacks {missing}")
    return transform


def told(architecture: str, preprocess: str) -> dict[str, Any]:
    """Returns the transform that `--preprocess` names: a JSON file, or a tag.

    The tag is one of the architecture's, or of others if these all have the same transform under it ("openai").
    """
    if Path(preprocess).is_file():
        return of_file(Path(preprocess))
    if transform := of_tag(architecture, preprocess):
        require_activation(architecture, preprocess)
        return transform
    others = [of_tag(other, preprocess) for other in open_clip.list_pretrained_models_by_tag(preprocess)]
    if len({json.dumps([transform[key] for key in NEEDED]) for transform in others}) == 1:
        return others[0]
    raise ExportError(
        f"--preprocess {preprocess} is neither a JSON file nor a tag of {architecture}; {_choices(architecture)}"
    )


def untold(architecture: str, file: Path) -> ExportError:
    """Returns the error for a file of weights whose transform nobody has told."""
    return ExportError(
        f"{file} does not say how images are prepared for it: tell it by --preprocess, with a tag of {architecture} that"
        f" was trained with the same transform, or a JSON file with {', '.join(NEEDED)}; {_choices(architecture)}"
    )


def require_activation(architecture: str, tag: str) -> None:
    """Raises ExportError if the tag was trained with another activation than the architecture has."""
    has = bool((open_clip.get_model_config(architecture) or {}).get("quick_gelu", False))
    trained = bool(of_tag(architecture, tag).get("quick_gelu", False))
    if has == trained:
        return
    words = {True: "QuickGELU", False: "GELU"}
    other = architecture.removesuffix("-quickgelu") if has else f"{architecture}-quickgelu"
    advice = f": use {other}" if other in open_clip.list_models() else ""
    raise ExportError(
        f"the tag {tag} was trained with {words[trained]}, but {architecture} has {words[has]}, which gives other"
        f" vectors{advice}"
    )


def _missing(transform: Mapping[str, Any]) -> str:
    """Names the keys that a transform lacks, and what open_clip would take for them."""
    defaults = {key: getattr(PreprocessCfg(), key) for key in NEEDED if transform.get(key) is None}
    return f"{', '.join(defaults)} (open_clip itself would take {json.dumps(defaults)})" if defaults else ""


def _choices(architecture: str) -> str:
    """Lists the architecture's tags, and says which one to write if they all agree."""
    tags = open_clip.list_pretrained_tags_by_model(architecture)
    if not tags:
        return f"{architecture} has no tags"
    transforms = {json.dumps([of_tag(architecture, tag).get(key) for key in NEEDED]) for tag in tags}
    has = bool((open_clip.get_model_config(architecture) or {}).get("quick_gelu", False))
    fitting = [tag for tag in tags if bool(of_tag(architecture, tag).get("quick_gelu", False)) == has]
    listed = f"tags of {architecture}: {', '.join(tags)}"
    if len(transforms) > 1 or not fitting:
        return listed
    return f"{listed}; all have the same transform: write --preprocess {fitting[0]} if yours was fine-tuned from one"


def _three(values: Any, key: str, source: str) -> tuple[float, float, float]:
    try:
        red, green, blue = (float(value) for value in values)
    except (TypeError, ValueError) as error:
        raise ExportError(f"{source} has {key} {values!r}; expected three numbers") from error
    return red, green, blue
