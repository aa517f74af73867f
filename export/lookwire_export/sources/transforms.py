"""The image transforms of open_clip: where they are known from, and as the manifest has them."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import open_clip
from open_clip.transform import PreprocessCfg, image_transform_v2

from lookwire_export.reference import ExportError, ImageRules
from lookwire_export.sources import activation

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
        mean=three(transform["mean"], "mean", source),
        std=three(transform["std"], "std", source),
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


def told(preprocess: str, model: str, quick_gelu: bool, choices: str = "") -> dict[str, Any]:
    """Returns the transform that `--preprocess` names for a model: a JSON file, or a tag of open_clip.

    All that open_clip publishes under the tag must have the same transform ("openai"). The file is a `preprocess_cfg`, or an
    `open_clip_config.json` that holds it; the activation that its `model_cfg` has must be the model's (`quick_gelu`). Raises
    ExportError, which ends in `choices`.
    """
    if Path(preprocess).is_file():
        return _of_file(Path(preprocess), model, quick_gelu)
    published = [of_tag(name, preprocess) for name in open_clip.list_pretrained_models_by_tag(preprocess)]
    if len({json.dumps([transform[key] for key in NEEDED]) for transform in published}) == 1:
        return published[0]
    if published:
        reason = "is a tag under which open_clip's models have different transforms: give a JSON file, with"
        raise ExportError(f"--preprocess {preprocess} {reason} {', '.join(NEEDED)}{choices}")
    raise ExportError(f"--preprocess {preprocess} is neither a JSON file nor a tag of open_clip{choices}")


def told_for(architecture: str, preprocess: str) -> dict[str, Any]:
    """Returns the transform that `--preprocess` names for open_clip's architecture, whose own tags come first."""
    if not Path(preprocess).is_file() and (transform := of_tag(architecture, preprocess)):
        activation.require_of_tag(architecture, preprocess)
        return transform
    return told(preprocess, architecture, activation.is_quick(architecture), f"; {_choices(architecture)}")


def is_open_clips(file: Path) -> bool:
    """Whether a JSON file says a transform in open_clip's words, in part at least."""
    try:
        content = json.loads(file.read_text())
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and ("preprocess_cfg" in content or any(key in content for key in NEEDED))


def untold(architecture: str, file: Path) -> ExportError:
    """Returns the error for a file of weights whose transform nobody has told."""
    return ExportError(
        f"{file} does not say how images are prepared for it: tell it by --preprocess, with a tag of {architecture} that"
        f" was trained with the same transform, or a JSON file with {', '.join(NEEDED)}; {_choices(architecture)}"
    )


def three(values: Any, key: str, source: str) -> tuple[float, float, float]:
    """Returns three numbers, or raises ExportError with the key."""
    try:
        red, green, blue = (float(value) for value in values)
    except (TypeError, ValueError) as error:
        raise ExportError(f"{source} has {key} {values!r}; expected three numbers") from error
    return red, green, blue


def _of_file(file: Path, model: str, quick_gelu: bool) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise ExportError(f"--preprocess {file} is no JSON file: {error}") from error
    transform = content.get("preprocess_cfg", content) if isinstance(content, dict) else None
    if not isinstance(transform, dict):
        raise ExportError(f"--preprocess {file} must be a JSON object with {', '.join(NEEDED)}")
    if isinstance(config := content.get("model_cfg"), dict):
        trained = bool(config.get("quick_gelu", False))
        activation.require(model, quick_gelu, trained, f"the model of --preprocess {file}")
    if missing := _missing(transform):
        raise ExportError(f"--preprocess {file} lacks {missing}")
    return dict(transform)


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
    has, only = activation.is_quick(architecture), activation.other(architecture) is None
    fitting = [tag for tag in tags if only or activation.trained_quick(architecture, tag) == has]
    listed = f"tags of {architecture}: {', '.join(tags)}"
    if len(transforms) > 1 or not fitting:
        return listed
    return f"{listed}; all have the same transform: write --preprocess {fitting[0]} if yours was fine-tuned from one"
