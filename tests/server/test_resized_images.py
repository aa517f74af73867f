"""An image that the client resized has the vector of the original."""

import io
import itertools
import warnings
from collections.abc import Iterator
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from lookwire import Client, Encoder, Item, Query, calls
from lookwire.resize import resized
from lookwire.v1 import encoder_service_pb2 as pb
from lookwire_server.encoding.images import ImageLimits, decode
from lookwire_server.encoding.manifest import ImageRules
from lookwire_server.errors import InvalidImage
from lookwire_server.rpc.encoders import image_rules

LIMITS = ImageLimits(1 << 24, 1 << 24)
# The rules that say how pixels are made; every combination of their values is tried.
WORDS = ("decode", "resize", "interpolation", "crop", "convert_rgb")
RULES = [
    ImageRules.model_validate(
        {"size": 32, "mean": (0, 0, 0), "std": (1, 1, 1), "exif_orientation": "ignored"}
        | dict(zip(WORDS, values, strict=True))
    )
    for values in itertools.product(*(get_args(ImageRules.model_fields[name].annotation) for name in WORDS))
]
MODES = {
    "JPEG": ("L", "RGB", "CMYK"),
    "PNG": ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"),
    "WEBP": ("RGB", "RGBA"),
    "GIF": ("L", "P"),
    "BMP": ("1", "L", "P", "RGB"),
    "TIFF": ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "I", "F"),
}


def told(rules: ImageRules) -> Encoder:
    """What a client is told of an encoder with these rules."""
    message = pb.Encoder(modalities=[pb.MODALITY_IMAGE], image_size=rules.size, image_rules=image_rules(rules))
    return calls.get_encoder("").parse(pb.GetEncoderResponse(encoder=message))


def drawing(width: int, height: int, mode: str, seed: int) -> Image.Image:
    """Noise on a gradient, with transparency where the mode has any."""
    noise = np.random.default_rng(seed).integers(0, 128, (height, width, 4))
    gradient = np.linspace(0, 127, width)[None, :, None]
    image = Image.fromarray((noise + gradient).astype(np.uint8))
    if mode == "I;16":
        return Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)
    return image.convert(mode) if mode in ("RGBA", "LA") else image.convert("RGB").convert(mode)


@st.composite
def files(draw: st.DrawFn) -> bytes:
    """Encoded images of every format and mode, some of them turned by EXIF or with a transparent colour."""
    format = draw(st.sampled_from(sorted(MODES)))
    mode = draw(st.sampled_from(MODES[format]))
    width, height = draw(st.tuples(st.integers(1, 300), st.integers(1, 300)))
    options: dict[str, Any] = {}
    if format in ("JPEG", "PNG", "WEBP", "TIFF") and draw(st.booleans()):
        options["exif"] = Image.Exif()
        options["exif"][0x0112] = draw(st.integers(1, 8))
    if format in ("PNG", "GIF") and mode in ("L", "P", "RGB") and draw(st.booleans()):
        options["transparency"] = (40, 50, 60) if mode == "RGB" else draw(st.integers(0, 255))
    buffer = io.BytesIO()
    drawing(width, height, mode, draw(st.integers(0, 1000))).save(buffer, format, **options)
    return buffer.getvalue()


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Pillow warns of some palettes, and is an error nowhere but in tests."""
    with warnings.catch_warnings(action="ignore", category=UserWarning):
        yield


@settings(max_examples=300, deadline=None)
@given(data=files(), rules=st.sampled_from(RULES))
def test_server_sees_the_same_pixels(data: bytes, rules: ImageRules) -> None:
    """What the server makes of the resized image is what it makes of the original, by every rule, in every mode and format."""
    try:
        expected = decode(data, rules, LIMITS)
    except InvalidImage:
        with pytest.raises(ValueError, match="cannot be decoded"):
            resized(data, told(rules))
        return

    assert np.array_equal(decode(resized(data, told(rules)), rules, LIMITS), expected)


@pytest.mark.parametrize("rules", RULES, ids=lambda rules: "-".join(getattr(rules, name) for name in WORDS))
def test_photograph_of_each_rule(rules: ImageRules) -> None:
    """A JPEG large enough to be decoded at 1/8 gives the same pixels by each combination of rules."""
    buffer = io.BytesIO()
    drawing(1031, 733, "RGB", 0).save(buffer, "JPEG")
    data = buffer.getvalue()

    assert np.array_equal(decode(resized(data, told(rules)), rules, LIMITS), decode(data, rules, LIMITS))


def test_vectors_are_equal(client: Client, collection: str) -> None:
    """Every call that takes images gives the same for the resized image as for the original, to the last bit."""
    encoder = client.get_encoder()
    buffer = io.BytesIO()
    drawing(1500, 1100, "RGB", 0).save(buffer, "JPEG")
    photo = buffer.getvalue()
    small = resized(photo, encoder)

    client.upsert(collection, [Item("photo", image=photo)])
    client.upsert(collection, [Item("small", image=small)])
    stored = client.get_items(collection, ["photo", "small"], include_vectors=True)

    assert np.array_equal(np.asarray(stored[0].vector), np.asarray(stored[1].vector))
    assert answers(client, collection, small) == answers(client, collection, photo)
    assert len(small) < len(photo) / 10


def answers(client: Client, collection: str, image: bytes) -> list[object]:
    """What each call that asks by an image answers."""
    mix = Query.mix((Query.image(image), 1.0), (Query.text("red"), 0.5))
    return [
        client.embed(images=[image]).vectors.tolist(),
        [(hit.id, hit.score) for hit in client.search(collection, image=image).hits],
        [(hit.id, hit.score) for hit in client.search(collection, query=mix).hits],
        client.classify([image], {"colour": ["red", "blue"]}).groups,
        client.score([(image, "a red dress"), ("a hat", image)]).cosines.tolist(),
    ]
