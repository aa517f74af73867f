"""The live model that an export is compared with: its towers, its own image transform and its own tokenizer."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from PIL import Image


class ExportError(Exception):
    """The export cannot be done; the message tells the person who asked why, and what to do."""


@dataclass(frozen=True)
class ImageRules:
    """How an image becomes pixels, as the manifest has it; see the server's manifest for the words.

    All but `decode` says what the checkpoint's own transform does; that always decodes all of an image.
    """

    size: int
    resize: Literal["shortest", "squash"]
    interpolation: Literal["bicubic", "bilinear"]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    convert_rgb: Literal["before_resize", "after_resize"]
    crop: Literal["round", "floor"]
    decode: Literal["exact", "fast"] = "exact"


@dataclass(frozen=True)
class TextRules:
    """How a text becomes token ids, as the manifest has it; `tokenizer` is the text of tokenizer.json.

    `replace` maps ids to ids after tokenising (CLIPA makes its separator 0).
    """

    tokenizer: str
    clean: Literal["lower", "canonicalize", "whitespace", "none"]
    context_length: int
    pad_id: int
    replace: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True)
class Reference:
    """A model in float32 on the CPU, in evaluation mode, and what stands before it.

    `model` is open_clip's CLIP or CustomTextCLIP, or transformers' CLIPModel or SiglipModel.
    `preprocess` gives float32 [3, size, size] for an open Pillow image, normalised, by the library's own transform.
    `tokenize` gives int64 [n, context_length] for texts, by the library's own tokenizer, cleaning and padding included.
    `encode_image` gives features float32 [n, D] for such pixels [n, 3, size, size]; `encode_text` for such ids. Neither is
    of length 1.
    """

    architecture: str
    """What the person named, such as ViT-B-32."""
    library: str
    """What computes the reference, with versions, such as "open_clip 3.3.0, torch 2.15.0"."""
    sha256: str
    """Of the checkpoint's file, or of its shards one after the other; empty for random weights."""
    model: Any
    image: ImageRules
    text: TextRules
    preprocess: Callable[[Image.Image], Any]
    tokenize: Callable[[Sequence[str]], Any]
    encode_image: Callable[[Any], Any]
    encode_text: Callable[[Any], Any]
    dimension: int
    activation: str
    """Of the text tower: "quick_gelu", "gelu", "gelu_tanh", or the library's word."""
    logit_scale: float
    """What a cosine is multiplied by: exp of the trained parameter."""
    logit_bias: float | None

    @property
    def is_half(self) -> bool:
        """Whether every weight is a half-precision value, so that storing it as one loses nothing."""
        weights = self.model.state_dict().values()
        return all(bool((weight == weight.half().to(weight.dtype)).all()) for weight in weights)
