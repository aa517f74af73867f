"""The image tower alone."""

import io
import itertools
import json
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks.bare.session import open_session

Pixels = NDArray[np.uint8]


class BareImages:
    """The image tower of an encoder: `workers` threads decode batches and run them in one session of `threads` threads."""

    def __init__(self, encoder: Path, threads: int, images: Sequence[bytes]) -> None:
        """`encoder` is its folder in the repository, as `fp32`; the tower lies beside it."""
        manifest = json.loads((encoder / "1" / "manifest.json").read_text())
        rules = manifest["image"]
        if (rules["resize"], rules["interpolation"], rules["crop"]) != ("shortest", "bicubic", "round"):
            raise ValueError(f"{encoder}: the bare loop resizes images as OpenAI's CLIP does, not otherwise")
        self._size: int = rules["size"]
        self._session = open_session(encoder, manifest["towers"]["image"], threads)
        self._images = images

    def _pixels(self, image: bytes) -> Pixels:
        """Resized to the shortest edge, and the centre cut out, as torchvision does."""
        size = self._size
        with Image.open(io.BytesIO(image)) as opened:
            width, height = opened.size
            target = (size, int(size * height / width)) if width <= height else (int(size * width / height), size)
            resized = opened.resize(target, Image.Resampling.BICUBIC)
        left, top = (round((edge - size) / 2) for edge in target)
        return np.asarray(resized.crop((left, top, left + size, top + size)).convert("RGB"))

    def vectors(self, count: int) -> NDArray[np.float32]:
        """The vectors of the first images, each computed alone."""
        return np.concatenate([self._run([image]) for image in self._images[:count]])

    def per_second(self, batch: int, workers: int, seconds: float) -> float:
        """Images a second from JPEG to vector."""
        turn = itertools.cycle(self._images)
        lock = threading.Lock()
        done = 0
        started = time.perf_counter()

        def work() -> None:
            nonlocal done
            while time.perf_counter() < started + seconds:
                with lock:
                    images = list(itertools.islice(turn, batch))
                self._run(images)
                with lock:
                    done += batch

        threads = [threading.Thread(target=work) for _ in range(workers)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return done / (time.perf_counter() - started)

    def decoded_per_second(self, seconds: float) -> float:
        """Images a second that one thread decodes and resizes."""
        started = time.perf_counter()
        for done, image in enumerate(itertools.cycle(self._images), 1):
            self._pixels(image)
            if time.perf_counter() > started + seconds:
                return done / (time.perf_counter() - started)
        raise ValueError("there are no images")

    def _run(self, images: Sequence[bytes]) -> NDArray[np.float32]:
        pixels = np.stack([self._pixels(image) for image in images])
        vectors: NDArray[np.float32] = self._session.run(["embedding"], {"pixels": pixels})[0]
        return vectors
