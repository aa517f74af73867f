"""What the reference makes of the probes, by its own transform, tokenizer and model."""

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

from lookwire_export.encoder import Progress
from lookwire_export.gate.agreement import Array
from lookwire_export.probes import Probe
from lookwire_export.reference import ExportError, Reference

BATCH = 16


@dataclass(frozen=True)
class Answers:
    """The probes of one tower: what the graph takes for them, and the reference's vectors.

    `inputs` is uint8 [n, S, S, 3] for images and int32 [n, context_length] for texts; `vectors` is float32 [n, D], not of
    length 1.
    """

    kinds: tuple[str, ...]
    contents: tuple[Any, ...]
    inputs: Array
    vectors: Array


@dataclass(frozen=True)
class Normalisation:
    """What a transform does to the bytes of pixels, measured: it takes 0 to `black` and 255 to `white`, by channel."""

    black: Any
    white: Any

    @classmethod
    def of(cls, reference: Reference) -> "Normalisation":
        """Measures the reference's transform on a black and a white image."""
        size = (reference.image.size,) * 2
        ends = [reference.preprocess(Image.new("RGB", size, value)).double() for value in ("black", "white")]
        return cls(*(pixels.mean(dim=(1, 2)) for pixels in ends))

    @property
    def mean(self) -> tuple[float, ...]:
        return tuple((-self.black / (self.white - self.black)).tolist())

    @property
    def std(self) -> tuple[float, ...]:
        return tuple((1 / (self.white - self.black)).tolist())

    def raw(self, pixels: Any) -> Array:
        """Returns the bytes, uint8 [n, S, S, 3], that were normalised to float32 [n, 3, S, S]; ExportError if none were."""
        black, white = (end[:, None, None] for end in (self.black, self.white))
        values = (pixels.double() - black) / (white - black) * 255
        whole = values.round()
        if (values - whole).abs().max() > 0.05:
            raise ExportError(
                "the checkpoint's transform does not give whole 8-bit pixels, which is what a server gives"
            )
        return np.asarray(whole.clamp(0, 255).byte().permute(0, 2, 3, 1).contiguous())


def image_answers(reference: Reference, probes: Sequence[Probe[bytes]], progress: Progress) -> Answers:
    """Runs the reference on encoded images; raises ExportError if its transform fails on one."""
    normalisation = Normalisation.of(reference)
    inputs, vectors = [], []
    for start, batch in in_batches(probes, BATCH):
        progress(f"images through {reference.library}: {start} of {len(probes)}")
        with torch.no_grad():
            pixels = torch.stack([_transformed(reference, probe) for probe in batch])
            vectors.append(np.asarray(reference.encode_image(pixels)))
        inputs.append(normalisation.raw(pixels))
    return _answers(probes, inputs, vectors)


def text_answers(reference: Reference, probes: Sequence[Probe[str]], progress: Progress) -> Answers:
    """Runs the reference on texts."""
    inputs, vectors = [], []
    for start, batch in in_batches(probes, 2 * BATCH):
        progress(f"texts through {reference.library}: {start} of {len(probes)}")
        ids = reference.tokenize([probe.content for probe in batch])
        with torch.no_grad():
            vectors.append(np.asarray(reference.encode_text(ids)))
        inputs.append(ids.int().numpy())
    return _answers(probes, inputs, vectors)


def embed_images(reference: Reference, images: Sequence[bytes]) -> Array:
    """Returns the reference's vectors of encoded images, float32 [n, D], not of length 1."""
    return image_answers(reference, [Probe("image", image) for image in images], lambda _: None).vectors


def embed_texts(reference: Reference, texts: Sequence[str]) -> Array:
    """Returns the reference's vectors of texts, float32 [n, D], not of length 1."""
    return text_answers(reference, [Probe("text", text) for text in texts], lambda _: None).vectors


def in_batches(rows: Sequence[Any] | Array, size: int) -> Iterator[tuple[int, Any]]:
    """Yields (index of the first row, rows) for at most `size` rows at a time."""
    for start in range(0, len(rows), size):
        yield start, rows[start : start + size]


def _transformed(reference: Reference, probe: Probe[bytes]) -> Any:
    with Image.open(io.BytesIO(probe.content)) as image:
        try:
            return reference.preprocess(image)
        except (ValueError, OSError, RuntimeError) as error:
            shape = f"{image.width} x {image.height} pixels, mode {image.mode}"
            raise ExportError(f"the checkpoint's own transform fails on {probe.kind} ({shape}): {error}") from error


def _answers(probes: Sequence[Probe[Any]], inputs: list[Array], vectors: list[Array]) -> Answers:
    return Answers(
        tuple(probe.kind for probe in probes),
        tuple(probe.content for probe in probes),
        np.concatenate(inputs),
        np.concatenate(vectors),
    )
