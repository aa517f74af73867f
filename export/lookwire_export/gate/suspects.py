"""What may have gone wrong before the towers: other ways to make pixels and token ids, and which of them fits what is seen.

Nothing here decides whether an export passes; it puts a cause beside a figure that failed.
"""

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
from open_clip.tokenizer import get_clean_fn
from PIL import Image, ImageOps
from tokenizers import Tokenizer

from lookwire_export.gate.agreement import Array
from lookwire_export.gate.answers import Answers
from lookwire_export.gate.graphs import Graph, padded
from lookwire_export.reference import ImageRules, Reference

EXPLAINED = 0.25
"""A cause is named if it leaves at most this share of the difference."""
INTERPOLATIONS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
CLEANINGS = ("lower", "canonicalize", "whitespace", "none")

Transform = Callable[[Image.Image], Image.Image]


def transform_findings(reference: Reference, answers: Answers, rows: Sequence[int]) -> Iterator[str]:
    """Yields what the checkpoint's own transform does to the images of these rows, if not what its rules say."""
    images, own = _images(answers, rows), answers.inputs[rows].astype(int)
    by_rules, others = _transforms(reference.image)

    def difference(transform: Transform) -> float:
        return float(np.abs(_pixels(images, transform) - own).mean())

    if not (now := difference(by_rules)):
        return
    cause = _cause(now, {words: difference(other) for words, other in others.items()})
    yield (
        "the checkpoint's own transform is not what its rules say: its pixels are "
        + (f"those of images {cause}" if cause else f"others by {now:.2f} of 255 in the mean")
    )


def server_findings(
    reference: Reference, graph: Graph, answers: Answers, rows: Sequence[int], served: Array
) -> Iterator[str]:
    """Yields what the server seems to do to the images of these rows; `served` are all its vectors, float32 [n, D]."""
    images = _images(answers, rows)
    by_rules, others = _transforms(reference.image)

    def distance(pixels: Array) -> float:
        return float(np.linalg.norm(graph.run(pixels) - served[rows], axis=1).mean())

    now = distance(answers.inputs[rows])
    if _cause(now, {"as the rules say": distance(_pixels(images, by_rules))}):
        return  # then it is the checkpoint's own transform that does otherwise
    if cause := _cause(now, {words: distance(_pixels(images, other)) for words, other in others.items()}):
        yield f"the server's vectors are nearest to those of images {cause}"


def tokenizer_findings(reference: Reference, manifest: Mapping[str, object], answers: Answers) -> Iterator[str]:
    """Yields how the token ids by the manifest's cleaning differ from those of the checkpoint's own tokenizer."""
    clean = str(manifest["clean"])
    wrong = {each: _other_ids(reference, each, answers) for each in dict.fromkeys((clean, *CLEANINGS))}
    if not wrong[clean]:
        return
    kinds = ", ".join(dict.fromkeys(answers.kinds[row] for row in wrong[clean]))
    finding = (
        f"cleaned by {clean!r}, {len(wrong[clean])} of {len(answers.kinds)} texts have other token ids than the"
        f" checkpoint's own tokenizer gives ({kinds})"
    )
    fitting = [each for each, rows in wrong.items() if not rows]
    yield finding + (f"; cleaned by {' or '.join(map(repr, fitting))}, none has" if fitting else "")


def _transforms(rules: ImageRules) -> tuple[Transform, dict[str, Transform]]:
    """Returns the transform by the rules, and others in words that follow "images"."""

    def by(**changed: str) -> Transform:
        return lambda image: _by_rules(image, replace(rules, **changed))  # type: ignore[arg-type]

    crop = "floor" if rules.crop == "round" else "round"
    offsets = {"floor": "always rounded down", "round": "rounded half to even"}
    convert = "before_resize" if rules.convert_rgb == "after_resize" else "after_resize"
    orders = {"before_resize": "before resizing", "after_resize": "after resizing"}
    other = "bilinear" if rules.interpolation == "bicubic" else "bicubic"
    resize = "squash" if rules.resize == "shortest" else "shortest"
    shapes = {"squash": "squashed to a square", "shortest": "resized by their shortest edge and cropped"}
    return by(), {
        f"cropped at an offset that is {offsets[crop]}": by(crop=crop),
        f"converted to RGB {orders[convert]}": by(convert_rgb=convert),
        f"resized by {other} interpolation instead of {rules.interpolation}": by(interpolation=other),
        shapes[resize]: by(resize=resize),
        "resized without antialias": lambda image: _by_rules(image.convert("RGB"), rules, antialias=False),
        "whose red and blue are swapped (BGR)": lambda image: _swapped(_by_rules(image, rules)),
        "turned as their EXIF orientation says": lambda image: _by_rules(ImageOps.exif_transpose(image), rules),
    }


def _by_rules(image: Image.Image, rules: ImageRules, antialias: bool = True) -> Image.Image:
    if rules.convert_rgb == "before_resize":
        image = _on_white(image).convert("RGB")
    size, (width, height) = rules.size, image.size
    if rules.resize == "squash":
        target = size, size
    else:
        target = (size, int(size * height / width)) if width <= height else (int(size * width / height), size)
    filter = INTERPOLATIONS[rules.interpolation]
    if target != image.size and antialias:
        image = image.resize(target, filter)
    elif target != image.size:
        image = image.transform(target, Image.Transform.EXTENT, (0, 0, width, height), filter)
    left, top = ((edge - size) // 2 if rules.crop == "floor" else round((edge - size) / 2) for edge in target)
    return image.crop((left, top, left + size, top + size)).convert("RGB")


def _on_white(image: Image.Image) -> Image.Image:
    """Transparent images are laid on white, as transformers does before it converts."""
    if "A" not in image.getbands() and image.info.get("transparency") is None:
        return image
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)


def _swapped(image: Image.Image) -> Image.Image:
    return Image.merge("RGB", image.split()[::-1])


def _images(answers: Answers, rows: Sequence[int]) -> list[Image.Image]:
    return [Image.open(io.BytesIO(answers.contents[row])) for row in rows]


def _pixels(images: Sequence[Image.Image], transform: Transform) -> Array:
    return np.stack([np.asarray(transform(image)) for image in images])


def _cause(now: float, differences: Mapping[str, float]) -> str | None:
    """Returns the one that leaves least of the difference, if it leaves little of it."""
    words = min(differences, key=differences.__getitem__)
    return words if differences[words] <= EXPLAINED * now else None


def _other_ids(reference: Reference, clean: str, answers: Answers) -> list[int]:
    """Returns the rows whose ids by tokenizer.json and this cleaning are not those of the checkpoint's own tokenizer."""
    rules = reference.text
    tokenizer = Tokenizer.from_str(rules.tokenizer)
    tokenizer.enable_truncation(rules.context_length)
    cleaned = answers.contents if clean == "none" else tuple(map(get_clean_fn(clean), answers.contents))
    ids = padded(
        [np.array(encoding.ids) for encoding in tokenizer.encode_batch(cleaned)], answers.inputs.shape[1], rules.pad_id
    )
    for replaced, by in rules.replace:
        ids[ids == replaced] = by
    return np.flatnonzero((ids != answers.inputs).any(axis=1)).tolist()
