import io
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from lookwire_export import probes
from lookwire_export.reference import Reference


def test_images_are_many_and_of_many_kinds() -> None:
    """There are at least 64 different images and photographs at several sizes, in all modes that decoders give."""
    images = probes.images()
    opened = [Image.open(io.BytesIO(probe.content)) for probe in images]

    assert len({probe.content for probe in images}) == len(images) >= 64
    assert {image.mode for image in opened} == {"1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16"}
    assert {image.format for image in opened} == {"JPEG", "PNG", "WEBP", "GIF"}
    assert {(1, 1), (2, 3), (700, 20), (20, 700)} <= {image.size for image in opened}
    assert any(image.getexif().get(0x0112) == 6 for image in opened)
    assert any(image.info.get("progressive") for image in opened)


@pytest.mark.parametrize("size", [32, 224, 378])
def test_some_images_are_cropped_where_rounding_matters(size: int) -> None:
    """For every size of the pixels, the surplus of four images is 3 modulo 4 once their shorter edge has that size."""
    surplus = []
    for probe in probes.images(size):
        if probe.kind == "surplus of 3 modulo 4":
            shorter, longer = sorted(Image.open(io.BytesIO(probe.content)).size)
            surplus.append((int(size * longer / shorter) - size) % 4)

    assert surplus == [3, 3, 3, 3]


def test_texts_are_many_and_of_many_kinds() -> None:
    """There are at least 128 different texts, of at least 20 kinds."""
    texts = probes.texts()

    assert len({probe.content for probe in texts}) == len(texts) >= 128
    assert len(Counter(probe.kind for probe in texts)) >= 20


def test_texts_end_just_at_the_context_length(garments: Reference) -> None:
    """Some texts fill the context but for one token, fill it, and are one token too long for it."""
    texts = [probe.content for probe in probes.texts(77) if probe.kind == "as long as the context"]

    lengths = (garments.tokenize(texts) != garments.text.pad_id).sum(dim=1).tolist()

    words = np.array([len(text.split()) + 2 for text in texts])  # and a token at the beginning and the end
    assert set(words) >= {76, 77, 78}
    assert lengths == np.minimum(words, 77).tolist()
