"""The probes of both towers, answered by the reference."""

import io
from dataclasses import dataclass

from PIL import Image

from lookwire_export import probes
from lookwire_export.encoder import Progress
from lookwire_export.gate.answers import Answers, image_answers, text_answers
from lookwire_export.probes import HALF, Probe
from lookwire_export.reference import Reference


@dataclass(frozen=True)
class Probed:
    """The reference's answers; `scaled` are to the JPEGs that a fast decoding reads in part, None where it is exact."""

    images: Answers
    texts: Answers
    scaled: Answers | None

    @classmethod
    def of(cls, reference: Reference, decode: str, progress: Progress) -> "Probed":
        """Runs the reference on the probes for a server that decodes "exact" or "fast"."""
        size = reference.image.size
        images, scaled = probes.images(size), None
        if decode == "fast":
            parted = [probe for probe in images if _is_scaled(probe, size)]
            images = [probe for probe in images if probe not in parted]
            parted = [Probe(f"{probe.kind} read in part", probe.content) for probe in parted]
            scaled = image_answers(reference, [*parted, *probes.large_jpegs(size)], progress)
        return cls(
            image_answers(reference, images, progress),
            text_answers(reference, probes.texts(reference.text.context_length), progress),
            scaled,
        )


def _is_scaled(probe: Probe[bytes], size: int) -> bool:
    """Whether a fast decoding reads the image in part, for size x size pixels."""
    with Image.open(io.BytesIO(probe.content)) as image:
        return image.format == "JPEG" and min(image.size) >= HALF * size
