"""Images made small before they are sent: the server need not decode large ones, and the vectors are the same.

    from lookwire.resize import resized

    encoder = client.get_encoder()
    client.embed(images=[resized(path, encoder) for path in paths])

It needs Pillow: pip install 'lookwire[images]'.
"""

import io
from pathlib import Path

try:
    import PIL.Image
except ImportError as error:
    raise ImportError("lookwire.resize needs Pillow: pip install 'lookwire[images]'") from error

from lookwire.images import image_bytes
from lookwire.types import Encoder, Image, ImageRules

# Those that the server takes.
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
_INTERPOLATIONS = {"bicubic": PIL.Image.Resampling.BICUBIC, "bilinear": PIL.Image.Resampling.BILINEAR}
_KNOWN = {
    "decode": {"exact", "fast"},
    "resize": {"shortest", "squash"},
    "interpolation": set(_INTERPOLATIONS),
    "crop": {"round", "floor"},
    "convert_rgb": {"after_resize", "before_resize"},
}
# A JPEG that is decoded fast keeps this many times the width and height that it is resized to.
_GAP = 2


def resized(image: Image, encoder: Encoder) -> bytes:
    """Returns the pixels that the encoder sees of an image, `image_size` x `image_size`, encoded without loss (WebP).

    Every method that takes an image takes the result, and the vector is that of the original, bit for bit where client and
    server have the same version of Pillow (another one may decode JPEGs a little differently). A photograph of 224 x 224
    takes some 65 KB and is decoded in about a millisecond, whatever the size of the original. A small JPEG may have fewer
    bytes than that, and is then better sent as it is.

    This is a function, and not an option of the client, so that an import can resize in threads or processes of its own while
    others send: most of the work runs outside the interpreter's lock. The result is for encoders with these rules and
    this `image_size`: ask for the encoder again if the server may serve another by now (`fingerprint` tells).

    Raises ValueError for what is no image, is damaged, or has more pixels than `PIL.Image.MAX_IMAGE_PIXELS` allows, and for
    an encoder without images or with rules that this client does not know; OSError if the file cannot be read.
    """
    rules = _rules(encoder)
    data = image_bytes(image)
    name = str(image) if isinstance(image, Path) else f"the image of {len(data)} bytes"
    try:
        with PIL.Image.open(io.BytesIO(data), formats=_FORMATS) as original:
            target = _resized_size(original.size, encoder.image_size, rules)
            _check_size(target)
            return _encoded(_pixels(original, target, encoder.image_size, rules))
    except (MemoryError, Warning):  # warnings are raised where the program wants them to be
        raise
    except PIL.Image.DecompressionBombError as error:
        raise ValueError(f"{name} is too large: {error}") from None
    except PIL.UnidentifiedImageError:
        raise ValueError(f"{name} is not an image of a known format ({', '.join(_FORMATS)})") from None
    except Exception as error:  # Pillow's decoders raise anything on damaged files
        raise ValueError(f"{name} cannot be decoded: the file is damaged or cut short") from error


def _rules(encoder: Encoder) -> ImageRules:
    """The encoder's rules; ValueError if they cannot be followed."""
    if "image" not in encoder.modalities:
        raise ValueError(f"encoder {encoder.name!r} has no image tower; it takes texts only")
    rules = encoder.image_rules
    if rules is None:
        raise ValueError(
            f"the server does not tell the image rules of encoder {encoder.name!r}: update it, or send images as they are"
        )
    for name, values in _KNOWN.items():
        if (value := getattr(rules, name)) not in values:
            raise ValueError(
                f"encoder {encoder.name!r} has {name} {value!r}, this client knows {', '.join(sorted(values))}: "
                "update it, or send images as they are"
            )
    return rules


def _check_size(target: tuple[int, int]) -> None:
    """Holds the size of the resized image to Pillow's bound on that of files: a narrow one grows out of all measure."""
    limit = PIL.Image.MAX_IMAGE_PIXELS
    if limit is not None and target[0] * target[1] > limit:
        raise PIL.Image.DecompressionBombError(
            f"resized it has {target[0]} x {target[1]} pixels, at most {limit} are made"
        )


def _encoded(pixels: PIL.Image.Image) -> bytes:
    # Of photographs, WebP with the least effort is made faster than PNG, is smaller, and is faster to decode.
    buffer = io.BytesIO()
    pixels.save(buffer, "WEBP", lossless=True, method=0, quality=0)
    return buffer.getvalue()


# What follows is the server's transform once more; a test holds them equal.


def _resized_size(size: tuple[int, int], edge: int, rules: ImageRules) -> tuple[int, int]:
    """Width and height before the crop."""
    width, height = size
    if rules.resize == "squash":
        return edge, edge
    if width <= height:
        return edge, int(edge * height / width)
    return int(edge * width / height), edge


def _pixels(image: PIL.Image.Image, target: tuple[int, int], edge: int, rules: ImageRules) -> PIL.Image.Image:
    """The image resized to `target`, cropped to `edge` x `edge`, in RGB."""
    # The box is that of the whole image: its scaled edges need not be whole numbers.
    scaled = image.draft(image.mode, (_GAP * target[0], _GAP * target[1])) if rules.decode == "fast" else None
    box = scaled[1] if scaled else None
    if rules.convert_rgb == "before_resize":
        image = _on_white(image)
    if target != image.size:
        image = image.resize(target, _INTERPOLATIONS[rules.interpolation], box)
    left, top = (_crop_offset(side - edge, rules) for side in target)
    return image.crop((left, top, left + edge, top + edge)).convert("RGB")


def _crop_offset(surplus: int, rules: ImageRules) -> int:
    return surplus // 2 if rules.crop == "floor" else round(surplus / 2)


def _on_white(image: PIL.Image.Image) -> PIL.Image.Image:
    """The image in RGB, with white where it is transparent."""
    if "A" not in image.getbands() and image.info.get("transparency") is None:
        return _in_mode(image, "RGB")
    image = _in_mode(image, "RGBA")
    white = PIL.Image.new("RGB", image.size, "white")
    white.paste(image, mask=image)
    return white


def _in_mode(image: PIL.Image.Image, mode: str) -> PIL.Image.Image:
    """The image itself if it has the mode; `convert` would copy it."""
    return image if image.mode == mode else image.convert(mode)
