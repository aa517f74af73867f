"""`manifest.json`: everything about an encoder that decides its vectors and scores, written by the export."""

import hashlib
import json
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from lookwire_server.errors import InvalidArgument

FILE = "manifest.json"
SCHEMA_VERSION = 2
# What pins a tower's weights.
WEIGHTS = {"sha256", "data_sha256"}


class Strict(BaseModel):
    """Frozen; an unknown key is an error, since it may be a rule that this server does not obey."""

    model_config = ConfigDict(frozen=True, extra="forbid")


Digest = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class Tower(Strict):
    """A model that is one half of the encoder, pinned by the SHA-256 of its model file.

    `data_sha256` is of the file beside it that holds the weights, where the graph is too large to hold them itself.
    """

    model: str
    version: int = Field(ge=1)
    sha256: Digest
    data_sha256: Digest | None


class Towers(Strict):
    """The two halves; either may be missing, not both."""

    image: Tower | None = None
    text: Tower | None = None


class ImageRules(Strict):
    """How an image becomes the image tower's uint8 pixels of shape [size, size, 3].

    `resize`: "shortest" brings the shorter edge to `size` and crops the centre; "squash" ignores the aspect ratio.
    `crop`: where the crop begins when (resized - size) / 2 is no whole number: "round" to the even neighbour, as
    torchvision does, or "floor", as transformers does.
    `convert_rgb`: "after_resize" is open_clip's order: the file's own mode is resized and cropped, then converted.
    "before_resize" is transformers': what is transparent is laid on white and all is converted, then resized.
    `mean` and `std` are already part of the graph; they are kept for the record.
    `decode`: "exact" decodes all of an image. "fast" lets JPEGs be decoded at 1/2, 1/4 or 1/8 of their width and height, as
    long as that leaves twice those that they are resized to.
    """

    size: int = Field(ge=1, le=4096)
    resize: Literal["shortest", "squash"]
    interpolation: Literal["bicubic", "bilinear"]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    convert_rgb: Literal["before_resize", "after_resize"]
    crop: Literal["round", "floor"]
    exif_orientation: Literal["ignored"]
    decode: Literal["exact", "fast"] = "exact"


class TextRules(Strict):
    """How a text becomes token ids: cleaned, tokenised with begin and end by `tokenizer`, cut, replaced, padded.

    `clean`: open_clip's cleaning of that name; "none" leaves the text to the tokenizer's own normaliser.
    `context_length` is the most ids that a text may have, begin and end included.
    `padding`: "max_length" pads every text with `pad_id` to `context_length`. "longest" says that the ids after a text's
    end have no effect on its vector, so that a batch may be cut to its longest text.
    `replace`: each id `from` becomes `to` before padding.
    `pooling` and `causal` say what the graph does; they are kept for the record.
    """

    tokenizer: str
    tokenizer_sha256: Digest
    clean: Literal["lower", "canonicalize", "whitespace", "none"]
    context_length: int = Field(ge=2)
    pad_id: int = Field(ge=0)
    padding: Literal["longest", "max_length"]
    pooling: str
    causal: bool
    replace: tuple[tuple[int, int], ...]


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
    """The whole file. `fp32_layers` are those that an export of less precision left as they were."""

    schema_version: Literal[2]
    name: str
    description: str = ""
    dimension: int = Field(ge=1)
    precision: str
    fp32_layers: tuple[str, ...]
    towers: Towers
    image: ImageRules | None = None
    text: TextRules | None = None
    activation: str
    score: Literal["softmax", "sigmoid"]
    logit_scale: float
    logit_bias: float | None = None
    parity: Parity | None = None

    def fingerprint(self) -> str:
        """32 hexadecimal digits over all that decides a vector: the towers' weights and the rules before them.

        A rule with a default counts only where it is another: the fingerprints of encoders without it stay as they are.
        """
        decides: dict[str, object] = {
            "dimension": self.dimension,
            "image": self.image and self.image.model_dump(exclude_defaults=True),
            "image_tower": self.towers.image and self.towers.image.model_dump(include=WEIGHTS),
            "text": self.text and self.text.model_dump(exclude={"tokenizer"}),
            "text_tower": self.towers.text and self.towers.text.model_dump(include=WEIGHTS),
        }
        if self.precision == "bf16":  # in the towers' configuration: the weights are those of fp32
            decides["precision"] = self.precision
        return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:32]


def read(directory: Path) -> Manifest:
    """Reads and checks `directory`/manifest.json; InvalidArgument names the file, the key and what was expected."""
    path = directory / FILE
    if not path.is_file():
        raise InvalidArgument(f"{path} does not exist; an encoder's version folder is made by lookwire-export")
    try:
        manifest = Manifest.model_validate_json(path.read_bytes())
    except ValidationError as error:
        _check_schema(error, path)
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


def _check_schema(error: ValidationError, path: Path) -> None:
    """Raises InvalidArgument if the file is of another schema: then its other problems only follow from that."""
    for problem in error.errors():
        version = problem["input"]
        if problem["loc"] != ("schema_version",) or type(version) is not int:
            continue
        if version < SCHEMA_VERSION:
            remedy = "it was written by an older lookwire-export: export the encoder again"
        else:
            remedy = "it was written by a newer lookwire-export: update the server"
        raise InvalidArgument(f"{path}: schema_version is {version}, this server reads {SCHEMA_VERSION}; {remedy}")
