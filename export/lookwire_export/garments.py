"""The demo's catalogue: 480 garments, 10 kinds x 12 colours x 4 patterns, drawn from a seed.

A drawing is a pure function of (garment, seed, size): the same arguments give the same pixels.
"""

import itertools
import math
from dataclasses import dataclass
from random import Random

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from lookwire_export import captions
from lookwire_export.outlines import OUTLINES, Curve, Outline, Point

Colour = tuple[int, int, int]

KINDS = tuple(OUTLINES)
SHADES: dict[str, Colour] = {
    "red": (205, 32, 44),
    "orange": (243, 128, 28),
    "yellow": (246, 212, 48),
    "green": (42, 142, 66),
    "turquoise": (52, 192, 190),
    "blue": (38, 80, 196),
    "purple": (116, 56, 164),
    "pink": (247, 150, 188),
    "brown": (112, 70, 40),
    "black": (34, 34, 38),
    "white": (241, 240, 236),
    "grey": (134, 137, 142),
}
COLOURS = tuple(SHADES)
PATTERNS = ("plain", "striped", "dotted", "checked")

CREAM: Colour = (248, 244, 234)
CHARCOAL: Colour = (58, 60, 70)
BACKDROPS: tuple[Colour, ...] = (
    (226, 222, 214), (208, 214, 220), (222, 208, 198), (196, 204, 194), (178, 186, 196),
    (234, 230, 222), (188, 178, 168), (214, 204, 216), (168, 176, 172), (240, 234, 226),
)  # fmt: skip

OVERSAMPLE = 3
"""Shapes are drawn this many times larger and averaged down: the anti-aliasing."""


@dataclass(frozen=True)
class Garment:
    """One combination of the three factors."""

    kind: str
    colour: str
    pattern: str

    @property
    def caption(self) -> str:
        """The canonical caption, such as "a red striped dress"."""
        return captions.canonical(self.kind, self.colour, self.pattern)

    def varied_caption(self, rng: Random) -> str:
        """Returns a caption in casual words that names all three factors."""
        return captions.varied(rng, self.kind, self.colour, self.pattern)


ALL: tuple[Garment, ...] = tuple(Garment(k, c, p) for k in KINDS for c in COLOURS for p in PATTERNS)

HELD_OUT: tuple[Garment, ...] = tuple(
    garment
    for garment in ALL
    if (KINDS.index(garment.kind) + COLOURS.index(garment.colour) + 3 * PATTERNS.index(garment.pattern)) % 9 == 0
)
"""The combinations that training never sees: one in nine, spread so that each kind, colour and pattern is seen."""


def draw(garment: Garment, seed: int, size: int = 256) -> Image.Image:
    """Draws the garment in a pose, light and setting that follow from the seed; returns an RGB image size x size."""
    rng = Random(f"{garment.kind}/{garment.colour}/{garment.pattern}/{seed}")
    base = _tinted(SHADES[garment.colour], rng)
    canvas = _Canvas(size * OVERSAMPLE, _Pose.of(rng))
    outline = OUTLINES[garment.kind](rng)
    for handle in outline.handles:
        canvas.stroke(handle, 0.1, _shade(base, 0.8))
    body = canvas.fill(outline.body, base)
    _weave(canvas, garment.pattern, base, body, rng)
    _sew(canvas, outline, base)
    return _photograph(canvas, base, rng, size)


@dataclass(frozen=True)
class _Pose:
    """Where the garment lies: a point p goes to centre + scale * R(angle) * (p, x mirrored or not), in units of half
    the image's edge.
    """

    scale: float
    angle: float
    centre: Point
    mirror: float
    stretch: float

    @classmethod
    def of(cls, rng: Random) -> "_Pose":
        return cls(
            scale=rng.uniform(0.66, 0.88),
            angle=math.radians(rng.gauss(0.0, 7.0)),
            centre=(rng.uniform(-0.1, 0.1), rng.uniform(-0.1, 0.1)),
            mirror=rng.choice((-1.0, 1.0)),
            stretch=rng.uniform(0.92, 1.08),
        )

    def place(self, point: Point) -> Point:
        x, y = self.mirror * self.stretch * point[0], point[1]
        cosine, sine = math.cos(self.angle), math.sin(self.angle)
        return (
            self.centre[0] + self.scale * (x * cosine - y * sine),
            self.centre[1] + self.scale * (x * sine + y * cosine),
        )


class _Canvas:
    """An enlarged RGB drawing with a mask of what is garment."""

    def __init__(self, edge: int, pose: _Pose) -> None:
        self.edge = edge
        self.pose = pose
        self.cloth = Image.new("RGB", (edge, edge))
        self.mask = Image.new("L", (edge, edge))
        self._pen = ImageDraw.Draw(self.cloth)
        self._mask_pen = ImageDraw.Draw(self.mask)

    def pixels(self, curve: Curve) -> Curve:
        """Returns the curve, given in garment coordinates, in pixels of the enlarged drawing."""
        half = self.edge / 2
        return [(half + half * x, half + half * y) for x, y in map(self.pose.place, curve)]

    def length(self, units: float) -> int:
        """Returns a length of garment coordinates in pixels of the enlarged drawing, at least 1."""
        return max(1, round(units * self.pose.scale * self.edge / 2))

    def fill(self, curves: list[Curve], colour: Colour) -> Image.Image:
        """Fills the curves, gives them a darker edge, and returns their mask, "L", edge x edge."""
        mask = Image.new("L", (self.edge, self.edge))
        pen = ImageDraw.Draw(mask)
        for curve in curves:
            points = self.pixels(curve)
            pen.polygon(points, fill=255)
            self._mask_pen.polygon(points, fill=255)
            self._pen.polygon(points, fill=colour)
        return mask

    def part(self, curve: Curve, colour: Colour) -> None:
        points = self.pixels(curve)
        self._mask_pen.polygon(points, fill=255)
        self._pen.polygon(points, fill=colour, outline=_shade(colour, 0.75), width=self.length(0.012))

    def stroke(self, curve: Curve, width: float, colour: Colour) -> None:
        self._draw_line(self.pixels(rounded_line(curve)), self.length(width), colour)

    def seam(self, curve: Curve, colour: Colour) -> None:
        self._draw_line(self.pixels(curve), self.length(0.016), colour)

    def _draw_line(self, points: Curve, width: int, colour: Colour) -> None:
        self._mask_pen.line(points, fill=255, width=width, joint="curve")
        self._pen.line(points, fill=colour, width=width, joint="curve")

    def disc(self, centre: Point, radius: float, colour: Colour) -> None:
        (x, y), r = self.pixels([centre])[0], self.length(radius)
        self._pen.ellipse((x - r, y - r, x + r, y + r), fill=colour)


def rounded_line(curve: Curve) -> Curve:
    """Cuts the corners of an open curve twice, keeping its ends."""
    for _ in range(2):
        cut = [curve[0]]
        for (x0, y0), (x1, y1) in itertools.pairwise(curve):
            cut += [(x0 + (x1 - x0) / 4, y0 + (y1 - y0) / 4), (x1 - (x1 - x0) / 4, y1 - (y1 - y0) / 4)]
        curve = [*cut, curve[-1]]
    return curve


def _weave(canvas: _Canvas, pattern: str, base: Colour, body: Image.Image, rng: Random) -> None:
    """Lays the pattern's second colour over the body."""
    accent = _accent(base, rng)
    period, turn = rng.uniform(0.24, 0.34), math.radians(rng.gauss(0.0, 5.0))
    if pattern == "striped":
        turn += rng.choice((0.0, 0.0, math.pi / 2, math.pi / 4))
        _lay(canvas, accent, body, [_strip(i * period, 0.42 * period, turn) for i in range(-7, 8)], 255)
    elif pattern == "checked":
        turn += rng.choice((0.0, 0.0, math.pi / 4))
        for across in (turn, turn + math.pi / 2):
            _lay(canvas, accent, body, [_strip(i * period, 0.46 * period, across) for i in range(-7, 8)], 140)
    elif pattern == "dotted":
        radius = rng.uniform(0.27, 0.34) * period
        spots = [(period * (i + 0.5 * (j % 2)), 0.87 * period * j) for i in range(-7, 8) for j in range(-8, 9)]
        _lay(canvas, accent, body, [_spot(_turned(spot, turn), radius) for spot in spots], 255)


def _lay(canvas: _Canvas, colour: Colour, body: Image.Image, curves: list[Curve], opacity: int) -> None:
    stencil = Image.new("L", body.size)
    pen = ImageDraw.Draw(stencil)
    for curve in curves:
        pen.polygon(canvas.pixels(curve), fill=opacity)
    clipped = Image.composite(stencil, Image.new("L", body.size), body)
    canvas.cloth.paste(colour, (0, 0), clipped)


def _strip(middle: float, width: float, turn: float) -> Curve:
    """A band across the whole garment, `middle` from its centre line, turned by `turn` radians."""
    low, high = middle - width / 2, middle + width / 2
    return [_turned(p, turn) for p in ((-1.6, low), (1.6, low), (1.6, high), (-1.6, high))]


def _spot(centre: Point, radius: float) -> Curve:
    angles = [math.tau * i / 16 for i in range(16)]
    return [(centre[0] + radius * math.cos(a), centre[1] + radius * math.sin(a)) for a in angles]


def _turned(point: Point, turn: float) -> Point:
    cosine, sine = math.cos(turn), math.sin(turn)
    return point[0] * cosine - point[1] * sine, point[0] * sine + point[1] * cosine


def _sew(canvas: _Canvas, outline: Outline, base: Colour) -> None:
    thread = _shade(base, 0.68) if sum(base) > 150 else _shade(base, 1.9)
    for curve in outline.body:
        canvas.seam([*curve, curve[0]], thread)
    for trim in outline.trims:
        canvas.part(trim, _shade(base, 0.84) if sum(base) > 150 else _shade(base, 1.35))
    for seam in outline.seams:
        canvas.seam(seam, thread)
    for sole in outline.soles:
        canvas.part(sole, CREAM)
    for button in outline.buttons:
        canvas.disc(button, 0.035, _button(base))


def _photograph(canvas: _Canvas, base: Colour, rng: Random, size: int) -> Image.Image:
    """Averages the drawing down and sets it before a lit backdrop with a soft shadow and sensor noise."""
    noise = np.random.default_rng(rng.getrandbits(32))
    cloth = np.asarray(canvas.cloth.reduce(OVERSAMPLE), np.float32)
    mask = canvas.mask.reduce(OVERSAMPLE)
    cover = np.asarray(mask, np.float32)[..., None] / 255
    blur = mask.filter(ImageFilter.GaussianBlur(size * rng.uniform(0.015, 0.035)))
    drop = (round(size * rng.uniform(-0.03, 0.03)), round(size * rng.uniform(0.01, 0.04)))
    shadow = np.roll(np.asarray(blur, np.float32)[..., None] / 255, drop, axis=(1, 0))
    scene = _backdrop(base, rng, size) * (1 - rng.uniform(0.25, 0.45) * shadow)
    # The drawing is black outside the garment, so its averaged edge is already weighted by the cover.
    scene = cloth * _folds(rng, size) + scene * (1 - cover)
    scene = scene * (1 + rng.uniform(0.0, 0.16) * _ramp(rng, size)) * rng.uniform(0.9, 1.06)
    scene = scene * np.array([1 + rng.uniform(-0.03, 0.03) for _ in range(3)], np.float32)
    scene += noise.normal(0.0, rng.uniform(0.5, 5.0), scene.shape).astype(np.float32)
    return Image.fromarray(np.clip(scene + 0.5, 0, 255).astype(np.uint8))


def _backdrop(base: Colour, rng: Random, size: int) -> NDArray[np.float32]:
    """Returns a wall, plain or shaded or above a floor, that differs from the garment; float32 [size, size, 3]."""
    apart = [c for c in BACKDROPS if sum(abs(a - b) for a, b in zip(c, base, strict=True)) > 60]
    wall = np.array(rng.choice(apart), np.float32)
    scene = np.broadcast_to(wall, (size, size, 3)).copy()
    style = rng.randrange(3)
    if style == 1:
        scene *= 1 + 0.18 * _ramp(rng, size)
    elif style == 2:
        scene[round(size * rng.uniform(0.6, 0.85)) :] *= rng.uniform(0.8, 0.92)
    return scene


def _ramp(rng: Random, size: int) -> NDArray[np.float32]:
    """Returns a linear gradient from -1 to 1 in a random direction; float32 [size, size, 1]."""
    angle = rng.uniform(0.0, math.tau)
    along = np.linspace(-1, 1, size, dtype=np.float32)
    ramp = along[None, :] * math.cos(angle) + along[:, None] * math.sin(angle)
    return np.asarray(ramp[..., None] / 1.42, np.float32)


def _folds(rng: Random, size: int) -> NDArray[np.float32]:
    """Returns the light of soft, slanting folds, a factor about 1; float32 [size, size, 1]."""
    along = np.linspace(-1, 1, size, dtype=np.float32)
    light = np.ones((size, size), np.float32)
    for _ in range(3):
        slope, phase, pitch = rng.uniform(-0.6, 0.6), rng.uniform(0, math.tau), rng.uniform(4.0, 9.0)
        light += 0.025 * np.sin(pitch * (along[None, :] + slope * along[:, None]) + phase)
    return light[..., None]


def _tinted(shade: Colour, rng: Random) -> Colour:
    """Returns the shade a little lighter or darker and a little off in each channel, as dyes vary."""
    value = rng.uniform(0.88, 1.08)
    red, green, blue = (min(255, max(0, round(c * value + rng.uniform(-5, 5)))) for c in shade)
    return red, green, blue


def _shade(colour: Colour, factor: float) -> Colour:
    red, green, blue = (min(255, round(c * factor)) for c in colour)
    return red, green, blue


def _accent(base: Colour, rng: Random) -> Colour:
    """Returns the second colour of a pattern: a darker tone of itself on light cloth, off-white on dark cloth, either
    between. White takes charcoal.
    """
    if min(base) > 190:
        return CHARCOAL
    if _lightness(base) > 165:
        return _shade(base, 0.5)
    if _lightness(base) < 110:
        return CREAM
    return rng.choice((CREAM, _shade(base, 0.5)))


def _button(base: Colour) -> Colour:
    return CREAM if _lightness(base) < 110 else CHARCOAL


def _lightness(colour: Colour) -> float:
    """Returns the luma by ITU-R BT.601, 0 to 255."""
    return 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2]
