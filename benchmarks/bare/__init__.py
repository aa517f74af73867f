"""What the servers are compared with: the graph in a loop in a process of its own, with nothing around it."""

import multiprocessing
from multiprocessing.managers import BaseManager
from typing import TYPE_CHECKING

from benchmarks.bare.images import BareImages
from benchmarks.bare.texts import BareTexts


class BareProcess(BaseManager):
    """A process that keeps towers loaded; used as a context, `texts` and `images` load one in it.

    What they return looks like the object itself: each call of a method runs there, and its result comes back.
    """

    if TYPE_CHECKING:
        texts = BareTexts
        images = BareImages

    def __init__(self) -> None:
        super().__init__(ctx=multiprocessing.get_context("spawn"))


BareProcess.register("texts", BareTexts)
BareProcess.register("images", BareImages)
