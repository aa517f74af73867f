"""Images: encoded bytes in, the image tower's pixels out, as the reference's transform makes them.

They are exactly the reference's, unless the encoder's rules say that JPEGs are decoded fast.
"""

import asyncio
import io
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from lookwire_server.encoding.manifest import ImageRules
from lookwire_server.errors import InvalidImage, QueueFull
from lookwire_server.lanes import Lane, lower_priority

Pixels = np.ndarray[Any, np.dtype[np.uint8]]

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
INTERPOLATIONS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
# Pillow's own guard against decompression bombs is a global number; `decode` checks the header against the settings instead.
Image.MAX_IMAGE_PIXELS = None
# Images of a lane that may be decoded or wait for it: a bound on what one burst can pile up.
MAX_WAITING = 4096
# A JPEG that is decoded fast still has this many times the width and height that it is resized to: the resize, which
# filters, has the last word.
GAP = 2


@dataclass(frozen=True, slots=True)
class ImageLimits:
    """Bounds that are checked before anything is decoded."""

    max_bytes: int
    max_pixels: int


class ImageDecoder:
    """Decodes images in threads (Pillow's codecs and resizing run outside the interpreter's lock).

    Each lane has a pool of `threads` threads of its priority, so that a query does not wait behind an import: the system
    gives a contended core to the queries.
    """

    def __init__(self, threads: int, limits: ImageLimits) -> None:
        self.limits = limits
        self._pools = {
            lane: ThreadPoolExecutor(threads, f"decode-{lane}", initializer=lower_priority, initargs=(lane,))
            for lane in Lane
        }
        self._waiting = dict.fromkeys(Lane, 0)

    async def pixels(self, data: bytes, rules: ImageRules, lane: Lane) -> Pixels:
        """uint8 pixels of shape [size, size, 3]; raises InvalidImage, and QueueFull if too many of the lane wait.

        An image whose caller is cancelled before its turn is not decoded.
        """
        waiting = self._waiting[lane]
        if waiting >= MAX_WAITING:
            raise QueueFull(f"{waiting} {lane} images wait to be decoded, at most {MAX_WAITING} may", limit=MAX_WAITING)
        self._waiting[lane] += 1
        held = [data]
        try:
            work = asyncio.get_running_loop().run_in_executor(
                self._pools[lane], lambda: decode(held[0], rules, self.limits)
            )
            return await work
        finally:
            held.clear()  # one that is cancelled keeps its place in the line until its turn, but not its bytes
            self._waiting[lane] -= 1

    def close(self) -> None:
        """Ends the threads once the images in hand are decoded; those that wait are dropped."""
        for pool in self._pools.values():
            pool.shutdown(cancel_futures=True)


def decode(data: bytes, rules: ImageRules, limits: ImageLimits) -> Pixels:
    """Decodes one image and makes it the pixels that the rules want, uint8 of shape [size, size, 3]."""
    if not data:
        raise InvalidImage("the image is empty (0 bytes)")
    if len(data) > limits.max_bytes:
        raise InvalidImage(
            f"the image has {len(data)} bytes, at most {limits.max_bytes} are taken",
            bytes=len(data),
            limit=limits.max_bytes,
        )
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            check_size(image.size, "the image", limits)
            check_size(resized(image.size, rules), "resized for this encoder, the image", limits)
            return np.asarray(transform(image, rules))
    except (InvalidImage, MemoryError):
        raise
    except UnidentifiedImageError:
        raise InvalidImage(
            f"not an image of a known format ({', '.join(FORMATS)})", formats=",".join(FORMATS)
        ) from None
    except Exception as error:  # Pillow's decoders raise anything on damaged files
        raise InvalidImage("the image cannot be decoded: the file is damaged or cut short") from error


def check_size(size: tuple[int, int], what: str, limits: ImageLimits) -> None:
    """Raises InvalidImage if width x height is over the limit."""
    width, height = size
    if width * height > limits.max_pixels:
        raise InvalidImage(
            f"{what} has {width} x {height} pixels, at most {limits.max_pixels} in all are taken",
            width=width,
            height=height,
            limit=limits.max_pixels,
        )


def resized(size: tuple[int, int], rules: ImageRules) -> tuple[int, int]:
    """Width and height before the crop; torchvision and transformers truncate the longer edge."""
    width, height = size
    if rules.resize == "squash":
        return rules.size, rules.size
    if width <= height:
        return rules.size, int(rules.size * height / width)
    return int(rules.size * width / height), rules.size


def transform(image: Image.Image, rules: ImageRules) -> Image.Image:
    """Resizes, crops and converts as torchvision or transformers' Pillow processors do; returns `size` x `size` in RGB."""
    target = resized(image.size, rules)
    box = scale(image, target) if rules.decode == "fast" else None
    if rules.convert_rgb == "before_resize":
        image = on_white(image)
    if target != image.size:
        image = image.resize(target, INTERPOLATIONS[rules.interpolation], box)
    left, top = (crop_offset(edge - rules.size, rules) for edge in target)
    return image.crop((left, top, left + rules.size, top + rules.size)).convert("RGB")


def scale(image: Image.Image, target: tuple[int, int]) -> tuple[float, float, float, float] | None:
    """Has a JPEG that is not decoded yet decoded at 1/2, 1/4 or 1/8, if that leaves GAP times the target.

    Returns the box of the whole picture, whose scaled edges need not be whole numbers; None if it is no JPEG.
    """
    width, height = target
    scaled = image.draft(image.mode, (GAP * width, GAP * height))
    return scaled and scaled[1]


def crop_offset(surplus: int, rules: ImageRules) -> int:
    """Where the centre crop begins on an edge that is `surplus` pixels too long."""
    # Python rounds half to even, as torchvision does.
    return surplus // 2 if rules.crop == "floor" else round(surplus / 2)


def on_white(image: Image.Image) -> Image.Image:
    """The image in RGB without transparency; `transformers.image_transforms.convert_to_rgb` lays it on white.

    The pixels are those of `Image.alpha_composite`, which takes two images in RGBA more.
    """
    if "A" not in image.getbands() and image.info.get("transparency") is None:
        return in_mode(image, "RGB")
    image = in_mode(image, "RGBA")
    white = Image.new("RGB", image.size, "white")
    white.paste(image, mask=image)
    return white


def in_mode(image: Image.Image, mode: str) -> Image.Image:
    """The image itself if it has the mode; `Image.convert` would copy it."""
    return image if image.mode == mode else image.convert(mode)
