"""The cut of each garment: closed curves and lines in a square of [-1, 1] x [-1, 1], y pointing down."""

from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random

Point = tuple[float, float]
Curve = list[Point]


@dataclass(frozen=True)
class Outline:
    """The parts of one garment in drawing order.

    `body` carries the pattern; `handles` are thick strokes under it; `trims` are filled in a darker shade, `soles` in
    off-white; `seams` are thin lines; `buttons` are centres of small discs.
    """

    body: list[Curve]
    handles: list[Curve] = field(default_factory=list)
    trims: list[Curve] = field(default_factory=list)
    soles: list[Curve] = field(default_factory=list)
    seams: list[Curve] = field(default_factory=list)
    buttons: list[Point] = field(default_factory=list)


def rounded(curve: Curve, times: int = 3) -> Curve:
    """Cuts the corners of a closed curve by Chaikin's algorithm: each edge keeps its middle three quarters."""
    for _ in range(times):
        cut: Curve = []
        for (x0, y0), (x1, y1) in zip(curve, curve[1:] + curve[:1], strict=True):
            cut.append((x0 + (x1 - x0) / 8, y0 + (y1 - y0) / 8))
            cut.append((x1 - (x1 - x0) / 8, y1 - (y1 - y0) / 8))
        curve = cut
    return curve


def both_sides(right: Curve) -> Curve:
    """Closes a right half, given from the top centre to the bottom centre, with its mirror image."""
    return right + [(-x, y) for x, y in reversed(right) if x != 0.0]


def mirrored(curve: Curve) -> Curve:
    """Returns the curve on the other side of the vertical axis."""
    return [(-x, y) for x, y in curve]


def t_shirt(rng: Random) -> Outline:
    """A short-sleeved top with a round neck."""
    sleeve, hem = rng.uniform(-0.05, 0.08), rng.uniform(0.46, 0.56)
    right = [(0.0, -0.5), (0.14, -0.54), (0.22, -0.68), (0.5, -0.58), (0.95 + sleeve, -0.14 + sleeve)]
    right += [(0.74 + sleeve, 0.08 + sleeve), (0.5, -0.14), (hem, 0.78), (0.0, 0.8)]
    collar = [(-0.22, -0.68), (-0.14, -0.54), (0.0, -0.5), (0.14, -0.54), (0.22, -0.68), (0.17, -0.7), (0.1, -0.61)]
    collar += [(0.0, -0.58), (-0.1, -0.61), (-0.17, -0.7)]
    cuff = [(0.62, -0.46), (0.5, -0.14)]
    return Outline([rounded(both_sides(right))], trims=[collar], seams=[cuff, mirrored(cuff)])


def shirt(rng: Random) -> Outline:
    """A long-sleeved top with a pointed collar, a button placket and cuffs."""
    reach, hem = rng.uniform(-0.06, 0.08), rng.uniform(0.42, 0.5)
    right = [(0.0, -0.56), (0.2, -0.72), (0.46, -0.62), (0.66, -0.3), (0.96, 0.5 + reach), (0.72, 0.6 + reach)]
    right += [(0.47, -0.06), (hem, 0.72), (0.25, 0.84), (0.0, 0.8)]
    collar = [(0.0, -0.54), (0.06, -0.76), (0.22, -0.78), (0.27, -0.5)]
    cuff = [(0.91, 0.37 + reach), (0.97, 0.52 + reach), (0.71, 0.61 + reach), (0.67, 0.46 + reach)]
    placket = [(-0.045, -0.5), (0.045, -0.5), (0.045, 0.8), (-0.045, 0.8)]
    buttons = [(0.0, -0.36 + 0.24 * i) for i in range(5)]
    trims = [placket, collar, mirrored(collar), cuff, mirrored(cuff)]
    pocket = [(0.16, -0.16), (0.34, -0.16), (0.34, 0.04), (0.25, 0.08), (0.16, 0.04), (0.16, -0.16)]
    return Outline([rounded(both_sides(right))], trims=trims, seams=[pocket], buttons=buttons)


def dress(rng: Random) -> Outline:
    """A sleeveless dress with a fitted waist and a wide hem."""
    waist, hem, length = rng.uniform(0.2, 0.27), rng.uniform(0.62, 0.82), rng.uniform(0.84, 0.94)
    right = [(0.0, -0.6), (0.16, -0.66), (0.22, -0.94), (0.36, -0.94), (0.33, -0.62), (0.38, -0.44), (waist, -0.12)]
    right += [(waist + 0.03, -0.04), (hem, length - 0.08), (0.3, length), (0.0, length + 0.02)]
    sash = [(-waist - 0.01, -0.15), (waist + 0.01, -0.15), (waist + 0.03, -0.03), (-waist - 0.03, -0.03)]
    fold = [(waist * 0.5, 0.05), (hem * 0.45, length - 0.06)]
    middle = [(0.0, 0.08), (0.02, length - 0.1)]
    return Outline([rounded(both_sides(right))], trims=[sash], seams=[fold, mirrored(fold), middle])


def skirt(rng: Random) -> Outline:
    """A flared skirt with a waistband and pleats."""
    hem, length = rng.uniform(0.68, 0.88), rng.uniform(0.5, 0.68)
    right = [(0.0, -0.6), (0.34, -0.6), (0.36, -0.46), (hem, length - 0.08), (0.4, length), (0.0, length + 0.04)]
    band = [(-0.35, -0.61), (0.35, -0.61), (0.37, -0.45), (-0.37, -0.45)]
    pleats = [[(0.09 * i, -0.42), (hem / 4 * i, length - 0.03)] for i in range(-3, 4)]
    return Outline([rounded(both_sides(right))], trims=[band], seams=pleats)


def trousers(rng: Random) -> Outline:
    """Long trousers with a waistband, a fly and creases."""
    hem, width = rng.uniform(0.38, 0.52), rng.uniform(0.25, 0.32)
    right = [(0.0, -0.94), (0.34, -0.94), (0.38, -0.76), (0.44, -0.4), (hem, 0.94), (hem - width, 0.95), (0.06, -0.22)]
    right += [(0.0, -0.3)]
    band = [(-0.345, -0.95), (0.345, -0.95), (0.37, -0.82), (-0.37, -0.82)]
    fly = [(0.0, -0.8), (0.0, -0.3)]
    crease = [(0.24, -0.4), (hem - width / 2, 0.9)]
    pocket = [(0.26, -0.8), (0.4, -0.56)]
    seams = [fly, crease, mirrored(crease), pocket, mirrored(pocket)]
    return Outline([rounded(both_sides(right))], trims=[band], seams=seams, buttons=[(0.0, -0.88)])


def shorts(rng: Random) -> Outline:
    """Short trousers with a waistband and wide legs."""
    hem, length = rng.uniform(0.62, 0.74), rng.uniform(0.36, 0.52)
    right = [(0.0, -0.6), (0.44, -0.6), (0.48, -0.44), (hem, length), (0.1, length + 0.07), (0.03, 0.02), (0.0, -0.02)]
    band = [(-0.45, -0.61), (0.45, -0.61), (0.48, -0.46), (-0.48, -0.46)]
    fly = [(0.0, -0.44), (0.0, -0.02)]
    pocket = [(0.32, -0.44), (0.52, -0.14)]
    cuff = [(hem - 0.01, length - 0.1), (0.1, length - 0.03)]
    seams = [fly, pocket, mirrored(pocket), cuff, mirrored(cuff)]
    return Outline([rounded(both_sides(right))], trims=[band], seams=seams, buttons=[(0.0, -0.53)])


def coat(rng: Random) -> Outline:
    """A long coat with lapels, a belt and two rows of buttons."""
    hem, reach = rng.uniform(0.56, 0.7), rng.uniform(-0.05, 0.08)
    right = [(0.0, -0.82), (0.2, -0.9), (0.44, -0.78), (0.62, -0.5), (0.88, 0.24 + reach), (0.64, 0.34 + reach)]
    right += [(0.46, -0.16), (0.42, 0.04), (hem, 0.94), (0.0, 0.96)]
    lapel = [(0.0, -0.3), (0.1, -0.92), (0.24, -0.92), (0.38, -0.62), (0.27, -0.58), (0.3, -0.5)]
    cuff = [(0.84, 0.12 + reach), (0.89, 0.26 + reach), (0.63, 0.36 + reach), (0.6, 0.22 + reach)]
    belt = [(-0.43, -0.02), (0.43, -0.02), (0.44, 0.1), (-0.44, 0.1)]
    front = [(0.0, -0.3), (0.0, 0.94)]
    pocket = [(0.22, 0.34), (0.42, 0.3)]
    buttons = [(side * 0.14, y) for side in (-1, 1) for y in (-0.16, 0.24, 0.46)]
    trims = [belt, lapel, mirrored(lapel), cuff, mirrored(cuff)]
    return Outline([rounded(both_sides(right))], trims=trims, seams=[front, pocket, mirrored(pocket)], buttons=buttons)


def hat(rng: Random) -> Outline:
    """A brimmed hat with a ribbon, seen from the side."""
    height, brim = rng.uniform(-0.66, -0.5), rng.uniform(0.86, 0.99)
    crown = [(-0.5, 0.36), (-0.44, height + 0.2), (-0.3, height), (0.0, height + 0.08), (0.3, height)]
    crown += [(0.44, height + 0.2), (0.5, 0.36)]
    rim = [(-brim, 0.2), (-0.5, 0.3), (0.0, 0.34), (0.5, 0.3), (brim, 0.2), (0.8 * brim, 0.5), (0.0, 0.62)]
    rim += [(-0.8 * brim, 0.5)]
    ribbon = [(-0.48, 0.08), (0.0, 0.13), (0.48, 0.08), (0.51, 0.31), (0.0, 0.36), (-0.51, 0.31)]
    return Outline([rounded(crown), rounded(rim)], trims=[ribbon])


def shoe(rng: Random) -> Outline:
    """A laced shoe with a pale sole, seen from the side."""
    toe, top = rng.uniform(-0.03, 0.06), rng.uniform(-0.56, -0.42)
    upper = [(-0.88, 0.4), (-0.86, top + 0.1), (-0.78, top), (-0.6, top + 0.1), (-0.34, top), (-0.2, top + 0.02)]
    upper += [(0.25, 0.0), (0.7, 0.08 + toe), (0.92, 0.26), (0.95, 0.42)]
    sole = [(-0.92, 0.34), (0.3, 0.38), (0.98, 0.36), (0.98, 0.52), (0.6, 0.58), (-0.9, 0.56)]
    laces = [[(-0.22 + 0.13 * i, top + 0.12 + 0.09 * i), (-0.07 + 0.13 * i, top + 0.05 + 0.1 * i)] for i in range(4)]
    cap = [(0.52, 0.06), (0.5, 0.36)]
    heel = [(-0.62, top + 0.12), (-0.58, 0.34)]
    return Outline([rounded(upper)], soles=[rounded(sole), *[_band(lace, 0.03) for lace in laces]], seams=[cap, heel])


def bag(rng: Random) -> Outline:
    """A handbag with two handles, a flap and a clasp."""
    top, bottom, arch = rng.uniform(0.52, 0.66), rng.uniform(0.66, 0.84), rng.uniform(-0.92, -0.78)
    body = both_sides([(0.0, -0.22), (top, -0.22), (bottom, 0.6), (bottom - 0.06, 0.74), (0.0, 0.76)])
    handle = [(-0.36, -0.1), (-0.34, arch + 0.3), (-0.22, arch + 0.06), (0.0, arch), (0.22, arch + 0.06)]
    handle += [(0.34, arch + 0.3), (0.36, -0.1)]
    rim = [(-top, -0.23), (top, -0.23), (top + 0.02, -0.1), (-top - 0.02, -0.1)]
    clasp = [(-0.08, -0.14), (0.08, -0.14), (0.08, 0.08), (-0.08, 0.08)]
    return Outline([rounded(body)], handles=[handle], trims=[rim, clasp], buttons=[(0.0, 0.02)])


def _band(line: Curve, half: float) -> Curve:
    """Widens a line of two points, not vertical, to a strip of twice `half`."""
    (x0, y0), (x1, y1) = line
    return [(x0, y0 - half), (x1, y1 - half), (x1, y1 + half), (x0, y0 + half)]


OUTLINES: dict[str, Callable[[Random], Outline]] = {
    "t-shirt": t_shirt,
    "shirt": shirt,
    "dress": dress,
    "skirt": skirt,
    "trousers": trousers,
    "shorts": shorts,
    "coat": coat,
    "hat": hat,
    "shoe": shoe,
    "bag": bag,
}
