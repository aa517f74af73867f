"""Images as callers give them."""

from pathlib import Path

from lookwire.types import Image


def image_bytes(image: Image) -> bytes:
    """Returns the encoded bytes of `image`, read from its file if it is a path.

    Raises TypeError for anything but bytes and a path, OSError if the file cannot be read.
    """
    if isinstance(image, bytes):
        return image
    if isinstance(image, Path):
        return image.read_bytes()
    raise TypeError(f"an image is bytes or a pathlib.Path, not {type(image).__name__}")
