"""The inputs of the gate: images and texts of all the kinds that decoders, transforms and tokenizers disagree on."""

from lookwire_export.probes.images import PICTURES, images
from lookwire_export.probes.large_jpegs import HALF, large_jpegs
from lookwire_export.probes.probe import Probe
from lookwire_export.probes.texts import texts

__all__ = ["HALF", "PICTURES", "Probe", "images", "large_jpegs", "texts"]
