"""open_clip in PyTorch, as its documentation calls it: a process of the export's environment, asked through pipes.

    .venv-export/bin/python -m benchmarks.bare.pytorch CHECKPOINT

reads lines of `texts SECONDS` or `images SECONDS` and answers each with a number a second.
"""

import sys
import time
from itertools import cycle
from pathlib import Path
from subprocess import PIPE, Popen
from types import TracebackType
from typing import Self

PYTHON = Path(".venv-export/bin/python")
CHECKPOINT = Path("build/models/vit-b-32.safetensors")
BATCH = 32


class PyTorch:
    """The process; used as a context."""

    def __enter__(self) -> Self:
        command = [str(PYTHON), "-m", "benchmarks.bare.pytorch", str(CHECKPOINT)]
        self._process = Popen(command, stdin=PIPE, stdout=PIPE, text=True, bufsize=1)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.communicate()

    def per_second(self, what: str, seconds: float) -> float:
        """Texts or images a second, in batches, from strings or files of JPEG."""
        if self._process.stdin is None or self._process.stdout is None:
            raise RuntimeError("the process has no pipes")
        self._process.stdin.write(f"{what} {seconds}\n")
        return float(self._process.stdout.readline())


def main() -> None:
    """The process's side."""
    import open_clip  # type: ignore[import-not-found, unused-ignore]  # in the export's environment only
    import torch  # type: ignore[import-not-found, unused-ignore]
    from PIL import Image

    from benchmarks.load.photographs import FOLDER
    from benchmarks.load.queries import product_searches

    model, _, preprocess = open_clip.create_model_and_transforms("ViT-B-32-quickgelu", pretrained=sys.argv[1])
    model.eval()
    tokenizer = open_clip.get_tokenizer("ViT-B-32-quickgelu")
    texts, paths = cycle(product_searches(BATCH * 8)), cycle(sorted(FOLDER.glob("*.jpg")))

    def encode_texts() -> None:
        model.encode_text(tokenizer([next(texts) for _ in range(BATCH)]), normalize=True)

    def encode_images() -> None:
        images = [preprocess(Image.open(next(paths))) for _ in range(BATCH)]
        model.encode_image(torch.stack(images), normalize=True)

    encode = {"texts": encode_texts, "images": encode_images}
    for line in sys.stdin:
        what, seconds = line.split()
        done, began = 0, time.perf_counter()
        with torch.inference_mode():
            while (taken := time.perf_counter() - began) < float(seconds):
                encode[what]()
                done += BATCH
        print(done / taken, flush=True)


if __name__ == "__main__":
    main()
