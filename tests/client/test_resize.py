import io
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import PIL.Image
import pytest

from lookwire import Encoder, ImageRules
from lookwire.resize import resized

RULES = ImageRules("exact", "shortest", "bicubic", "round", "after_resize")
ENCODER = Encoder(
    name="small",
    fingerprint="ab" * 16,
    version=1,
    description="",
    dimension=2,
    modalities=frozenset({"text", "image"}),
    image_size=64,
    context_length=32,
    precision="fp32",
    logit_scale=100.0,
    logit_bias=None,
    parity=None,
    score_rule="softmax",
    image_rules=RULES,
)


def encoded(width: int, height: int, format: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    PIL.Image.radial_gradient("L").resize((width, height)).convert("RGB").save(buffer, format, **options)
    return buffer.getvalue()


def test_result_is_a_small_image(tmp_path: Path) -> None:
    """Bytes and a file become the same small RGB image, which is resized to itself."""
    path = tmp_path / "photo.jpg"
    path.write_bytes(encoded(900, 700, "JPEG"))

    small = resized(path, ENCODER)

    with PIL.Image.open(io.BytesIO(small)) as image:
        assert (image.size, image.mode) == ((64, 64), "RGB")
    assert resized(path.read_bytes(), ENCODER) == small
    assert resized(small, ENCODER) == small


def test_orientation_is_ignored() -> None:
    """A photograph that its EXIF says to turn is not turned, as the server does not turn it."""
    exif = PIL.Image.Exif()
    exif[0x0112] = 6

    assert resized(encoded(90, 70, exif=exif), ENCODER) == resized(encoded(90, 70), ENCODER)


def test_what_is_no_image_is_named(tmp_path: Path) -> None:
    """An error names the file, or tells how many bytes were given, and what is wrong with them."""
    text, cut = tmp_path / "notes.txt", tmp_path / "cut.jpg"
    text.write_text("no image")
    cut.write_bytes(encoded(200, 200, "JPEG")[:600])

    with pytest.raises(ValueError, match=r"notes\.txt is not an image of a known format \(JPEG, PNG, WEBP"):
        resized(text, ENCODER)
    with pytest.raises(ValueError, match=r"cut\.jpg cannot be decoded: the file is damaged or cut short"):
        resized(cut, ENCODER)
    with pytest.raises(ValueError, match=r"^the image of 8 bytes is not an image"):
        resized(b"no image", ENCODER)
    with pytest.raises(FileNotFoundError, match=r"missing\.jpg"):
        resized(tmp_path / "missing.jpg", ENCODER)
    with pytest.raises(TypeError, match=r"bytes or a pathlib\.Path, not str"):
        resized("photo.jpg", ENCODER)  # type: ignore[arg-type]


def test_too_many_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow's bound holds for the file and for what it is resized to, before anything is decoded."""
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", 100_000)

    with pytest.raises(ValueError, match=r"^the image of .* is too large: .*250000 pixels"):
        resized(encoded(500, 500), ENCODER)
    with pytest.raises(ValueError, match="is too large: resized it has 64 x 25600 pixels, at most 100000 are made"):
        resized(encoded(1, 400), ENCODER)
    assert resized(encoded(300, 300), ENCODER)


def test_encoder_that_cannot_be_followed() -> None:
    """An encoder of texts, one of a server too old to tell its rules, and one with rules of a newer one are refused."""
    image = encoded(90, 70)

    with pytest.raises(ValueError, match="'small' has no image tower"):
        resized(image, replace(ENCODER, modalities=frozenset({"text"}), image_size=0, image_rules=None))
    with pytest.raises(ValueError, match="does not tell the image rules of encoder 'small': update it"):
        resized(image, replace(ENCODER, image_rules=None))
    for rule in ("decode", "resize", "interpolation", "crop", "convert_rgb"):
        with pytest.raises(ValueError, match=rf"'small' has {rule} '7', this client knows .*: update it"):
            resized(image, replace(ENCODER, image_rules=replace(RULES, **{rule: "7"})))


def test_without_pillow() -> None:
    """Where Pillow is missing, the import says what to install."""
    code = "import sys; sys.modules['PIL'] = None; import lookwire.resize"

    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)

    assert run.stderr.endswith("ImportError: lookwire.resize needs Pillow: pip install 'lookwire[images]'\n")
