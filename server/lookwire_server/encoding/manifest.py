"""`manifest.json`: everything about an encoder that decides its vectors and scores, written by the export."""

import hashlib
import json
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from lookwire_server.errors import InvalidArgument

FILE = "manifest.json"


class Strict(BaseModel):
    """Frozen; an unknown key is an error, since it may be a rule that this server does not obey."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Tower(Strict):
    """A model that is one half of the encoder, pinned by the SHA-256 of its model file."""

    model: str
    version: int = Field(ge=1)
    sha256: str = Field(pattern="^[0-9a-f]{64}$")


class Towers(Strict):
    """The two halves; either may be missing, not both."""

    image: Tower | None = None
    text: Tower | None = None


class ImageRules(Strict):
    """How an image becomes the image tower's uint8 pixels of shape [size, size, 3].

    `resize`: "shortest" brings the shorter edge to `size` and crops the centre; "squash" ignores the aspect ratio.
    `convert_rgb` "after_resize" is open_clip's order: the file's own mode is resized and cropped, then converted.
    `mean` and `std` are already part of the graph; they are kept for the record.
    """

    size: int = Field(ge=1, le=4096)
    resize: Literal["shortest", "squash"]
    interpolation: Literal["bicubic", "bilinear"]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    convert_rgb: Literal["after_resize"]
    exif_orientation: Literal["ignored"]


class TextRules(Strict):
    """How a text becomes token ids. `clean` "lower" is open_clip's: repaired, unescaped, blanks collapsed, lower case.

    `causal` with `pooling` "eos" proves that ids after the end token have no effect, so that a batch may be cut to its
    longest text; otherwise texts are padded with `pad_id` to `context_length`.
    """

    tokenizer: str
    tokenizer_sha256: str = Field(pattern="^[0-9a-f]{64}$")
    clean: Literal["lower"]
    context_length: int = Field(ge=2)
    bos_id: int | None
    eos_id: int | None
    pad_id: int
    pooling: Literal["eos", "last"]
    causal: bool


class Figure(Strict):
    """One measurement of the export gate, and the bound that it had to hold."""

    name: str
    value: float
    at_least: float | None = None
    at_most: float | None = None


class Parity(Strict):
    """The comparison with the reference at export."""

    reference: str
    checkpoint_sha256: str
    passed: bool
    figures: tuple[Figure, ...]


class Manifest(Strict):
    """The whole file."""

    schema_version: Literal[1]
    name: str
    description: str = ""
    dimension: int = Field(ge=1)
    precision: str
    towers: Towers
    image: ImageRules | None = None
    text: TextRules | None = None
    activation: str
    score: Literal["softmax", "sigmoid"]
    logit_scale: float
    logit_bias: float | None = None
    parity: Parity | None = None

    def fingerprint(self) -> str:
        """32 hexadecimal digits over all that decides a vector: the towers' weights and the rules before them."""
        decides = {
            "dimension": self.dimension,
            "image": self.image and self.image.model_dump(),
            "image_sha256": self.towers.image and self.towers.image.sha256,
            "text": self.text and self.text.model_dump(exclude={"tokenizer"}),
            "text_sha256": self.towers.text and self.towers.text.sha256,
        }
        return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:32]


def read(directory: Path) -> Manifest:
    """Reads and checks `directory`/manifest.json; InvalidArgument names the file, the key and what was expected."""
    path = directory / FILE
    if not path.is_file():
        raise InvalidArgument(f"{path} does not exist; an encoder's version folder is made by lookwire-export")
    try:
        manifest = Manifest.model_validate_json(path.read_bytes())
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(map(str, problem['loc'])) or 'file'}: {problem['msg']}" for problem in error.errors()
        )
        raise InvalidArgument(f"{path}: {problems}") from None
    for name, tower, rules in (
        ("image", manifest.towers.image, manifest.image),
        ("text", manifest.towers.text, manifest.text),
    ):
        if (tower is None) != (rules is None):
            raise InvalidArgument(f"{path}: '{name}' and 'towers.{name}' must both be present or both be absent")
    return manifest
