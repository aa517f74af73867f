"""Images for tests, as encoded bytes."""

import io
import struct
import zlib

import numpy as np
from PIL import Image

from lookwire_export.garments import ALL, draw


def jpeg(index: int = 0, seed: int = 2_000_000) -> bytes:
    """A drawing of one of the 480 garments as JPEG."""
    buffer = io.BytesIO()
    draw(ALL[index % len(ALL)], seed).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def noise(width: int, height: int, format: str, mode: str = "RGB", seed: int = 0) -> bytes:
    """Random pixels in a mode and format."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(buffer, format)
    return buffer.getvalue()


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and has a single, empty row of data behind it."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")
