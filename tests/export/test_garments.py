import hashlib
import itertools
import subprocess
import sys

import numpy as np
import pytest

from lookwire_export.garments import ALL, COLOURS, HELD_OUT, KINDS, PATTERNS, SHADES, Garment, draw

SCRIPT = """
import hashlib, sys
from lookwire_export.garments import ALL, draw
print(hashlib.sha256(draw(ALL[123], 5).tobytes()).hexdigest(), "torch" in sys.modules)
"""


def test_another_process_draws_the_same_pixels_without_torch() -> None:
    """A drawing depends on its arguments only, and drawing needs no torch."""
    here = hashlib.sha256(draw(ALL[123], 5).tobytes()).hexdigest()

    printed = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True).stdout

    assert [here, "False"] == printed.split()


def test_seeds_and_garments_draw_differently() -> None:
    """Another seed and another garment each give another picture."""
    pictures = [draw(ALL[0], 1), draw(ALL[0], 2), draw(ALL[1], 1)]

    for a, b in itertools.combinations(pictures, 2):
        assert np.abs(np.asarray(a, int) - np.asarray(b, int)).mean() > 3


@pytest.mark.parametrize("colour", COLOURS)
def test_plain_cloth_has_its_colour(colour: str) -> None:
    """The middle of a plain shirt is nearest to its own colour's shade, in most lights."""
    own = 0
    for seed in range(12):
        pixels = np.asarray(draw(Garment("shirt", colour, "plain"), seed, 96), float)
        middle = np.median(pixels[36:60, 36:60].reshape(-1, 3), axis=0)
        own += colour == min(SHADES, key=lambda name: float(np.abs(middle - SHADES[name]).sum()))

    assert own >= 10


def test_held_out_combinations_leave_every_pair_of_factors_seen() -> None:
    """At least a tenth is held out, and every two values of different factors still occur together in training."""
    seen = set(ALL) - set(HELD_OUT)

    assert len(HELD_OUT) >= 48
    assert set(itertools.product(KINDS, COLOURS)) == {(g.kind, g.colour) for g in seen}
    assert set(itertools.product(KINDS, PATTERNS)) == {(g.kind, g.pattern) for g in seen}
    assert set(itertools.product(COLOURS, PATTERNS)) == {(g.colour, g.pattern) for g in seen}


def test_captions_tell_garments_apart() -> None:
    """The 480 canonical captions are distinct and read as English."""
    captions = [garment.caption for garment in ALL]

    assert len(set(captions)) == 480
    assert Garment("dress", "red", "striped").caption == "a red striped dress"
    assert Garment("hat", "orange", "dotted").caption == "an orange dotted hat"
    assert Garment("trousers", "blue", "plain").caption == "plain blue trousers"
