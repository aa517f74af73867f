"""Trains the bundled encoder on drawings: `python -m lookwire_export.train`.

Every batch holds distinct combinations, so that no two images share a full caption. Each image has a caption that names
all three factors and one that names one or two of them; the latter are true of several images of the batch, and the
target is spread evenly over all that match (multi-positive contrastive loss).
"""

import argparse
import math
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from safetensors.torch import save_file
from torch.nn import functional

from lookwire_export import captions
from lookwire_export.garments import ALL, HELD_OUT, Garment, draw
from lookwire_export.recall import recall, summary
from lookwire_export.reference import Reference
from lookwire_export.sources.open_clip_models import GARMENTS, create

SEEN: tuple[Garment, ...] = tuple(garment for garment in ALL if garment not in HELD_OUT)
FACTORS = ("kind", "colour", "pattern")
DRAWN_SIZE = 128
"""Training drawings are made at this size and scaled down to the encoder's."""
TOKENS = 24
"""Longer captions do not occur; the causal tower may be cut to this."""
SHIFT = 4
"""Training images are moved by up to this many pixels."""

console = Console()


@dataclass(frozen=True)
class Settings:
    """How long and on how much to train."""

    steps: int = 2600
    batch: int = 108
    drawings: int = 48
    learning_rate: float = 1e-3
    warmup: int = 150
    seed: int = 7


def drawings(size: int, count: int, cache: Path) -> NDArray[np.uint8]:
    """Returns `count` drawings of each seen combination, uint8 [432, count, size, size, 3], kept in `cache`."""
    if cache.is_file():
        return np.asarray(np.load(cache, mmap_mode="r"))
    cache.parent.mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(2) as pool, _progress() as progress:
        rows = pool.map(_row, SEEN, [count] * len(SEEN), [size] * len(SEEN), chunksize=4)
        drawn = np.stack(list(progress.track(rows, total=len(SEEN), description="drawing")))
    np.save(cache, drawn)
    return drawn


def _row(garment: Garment, count: int, size: int) -> NDArray[np.uint8]:
    scaled = [draw(garment, seed, DRAWN_SIZE).resize((size, size), Image.Resampling.BICUBIC) for seed in range(count)]
    return np.stack([np.asarray(image) for image in scaled])


class Batches:
    """Draws batches of distinct combinations from the cached drawings, moved and brightened a little."""

    def __init__(self, drawn: NDArray[np.uint8], encoder: Reference, settings: Settings) -> None:
        self._drawn = drawn
        self._tokenize = encoder.tokenize
        self._mean, self._std = (
            torch.tensor(values)[:, None, None] for values in (encoder.image.mean, encoder.image.std)
        )
        self._size = settings.batch
        self._rng = Random(settings.seed)
        self._order: list[int] = []

    def __next__(self) -> tuple[Any, Any, Any]:
        """Returns pixels float32 [batch, 3, S, S], ids int64 [2 x batch, TOKENS], and matches bool [batch, 2 x batch]:
        which caption is true of which image. Caption i names all of image i, caption batch + i a part.
        """
        if len(self._order) < self._size:
            self._order = self._rng.sample(range(len(SEEN)), len(SEEN))
        chosen, self._order = self._order[: self._size], self._order[self._size :]
        garments = [SEEN[index] for index in chosen]
        parts = [self._part(garment) for garment in garments]
        whole = [
            garment.varied_caption(self._rng) if self._rng.random() < 0.6 else garment.caption for garment in garments
        ]
        partial = [captions.varied(self._rng, *part) for part in parts]
        ids = self._tokenize(whole + partial)[:, :TOKENS]
        full = torch.eye(self._size, dtype=torch.bool)
        some = torch.tensor([[_names(part, garment) for part in parts] for garment in garments])
        return self._pixels(chosen), ids, torch.cat([full, some], dim=1)

    def _part(self, garment: Garment) -> tuple[str | None, str | None, str | None]:
        kept = self._rng.sample(FACTORS, self._rng.choice((1, 1, 2)))
        kind, colour, pattern = (getattr(garment, factor) if factor in kept else None for factor in FACTORS)
        return kind, colour, pattern

    def _pixels(self, chosen: list[int]) -> Any:
        count, size = self._drawn.shape[1:3]
        images = []
        for index in chosen:
            padded = np.pad(
                self._drawn[index, self._rng.randrange(count)], ((SHIFT,) * 2,) * 2 + ((0, 0),), mode="edge"
            )
            y, x = self._rng.randint(0, 2 * SHIFT), self._rng.randint(0, 2 * SHIFT)
            images.append(padded[y : y + size, x : x + size])
        gain = torch.tensor([self._rng.uniform(0.93, 1.07) for _ in chosen])[:, None, None, None]
        pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 255 * gain
        return (pixels.clamp(0, 1) - self._mean) / self._std


def _names(part: tuple[str | None, str | None, str | None], garment: Garment) -> bool:
    return all(word in (None, getattr(garment, factor)) for factor, word in zip(FACTORS, part, strict=True))


def encode_short(model: Any, ids: Any) -> Any:
    """Returns open_clip's text embedding, normalised, of ids cut to fewer tokens than the context holds."""
    length = ids.shape[1]
    x = model.token_embedding(ids) + model.positional_embedding[:length]
    x = model.ln_final(model.transformer(x, attn_mask=model.attn_mask[:length, :length]))
    pooled = x[torch.arange(len(ids)), ids.argmax(dim=-1)] @ model.text_projection
    return functional.normalize(pooled.float(), dim=-1)


def loss_of(model: Any, pixels: Any, ids: Any, matches: Any) -> Any:
    """Returns the contrastive loss in both directions, for the whole captions and, at equal weight, the partial ones."""
    with torch.autocast("cpu", torch.bfloat16):
        images = model.encode_image(pixels)
        texts = encode_short(model, ids)
    logits = model.logit_scale.exp() * functional.normalize(images.float(), dim=-1) @ texts.T
    count = len(pixels)
    loss = torch.zeros(())
    for columns in (slice(0, count), slice(count, 2 * count)):
        target = matches[:, columns].float()
        loss = loss + _spread(logits[:, columns], target) + _spread(logits[:, columns].T, target.T)
    return loss / 4


def _spread(logits: Any, matches: Any) -> Any:
    """Cross entropy of each row with a target spread evenly over the row's matches; every row has at least one."""
    return functional.cross_entropy(logits, matches / matches.sum(dim=1, keepdim=True))


def train(settings: Settings, cache: Path) -> Reference:
    """Trains the packaged architecture from random weights and returns it with its weights rounded to fp16."""
    torch.set_num_threads(2)
    torch.manual_seed(settings.seed)
    encoder = create(GARMENTS)
    model, size = encoder.model, encoder.image.size
    drawn = drawings(size, settings.drawings, cache / f"drawings-{settings.drawings}-{size}.npy")
    batches = Batches(drawn, encoder, settings)
    optimizer = torch.optim.AdamW(_groups(model), lr=settings.learning_rate, betas=(0.9, 0.98), eps=1e-6)
    model.train()
    with _progress() as progress:
        task = progress.add_task("training", total=settings.steps)
        for step in range(settings.steps):
            for group in optimizer.param_groups:
                group["lr"] = settings.learning_rate * _pace(step, settings)
            loss = loss_of(model, *next(batches))
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            with torch.no_grad():
                model.logit_scale.clamp_(0, math.log(100))
            progress.update(task, advance=1, description=f"training, loss {loss.item():.3f}")
            if (step + 1) % 400 == 0:
                console.print(f"step {step + 1}: loss {loss.item():.3f}, {_measure(encoder)}")
    for parameter in model.parameters():
        parameter.data = parameter.data.half().float()
    console.print(f"rounded to fp16: {_measure(encoder)}")
    return encoder


def _measure(encoder: Reference) -> str:
    encoder.model.eval()
    figures = summary(recall(encoder))
    encoder.model.train()
    return figures


def _pace(step: int, settings: Settings) -> float:
    """Returns the learning rate's share: a linear warm-up, then a half cosine down to nothing."""
    if step < settings.warmup:
        return (step + 1) / settings.warmup
    return 0.5 * (1 + math.cos(math.pi * (step - settings.warmup) / (settings.steps - settings.warmup)))


def _groups(model: Any) -> list[dict[str, Any]]:
    """Weight decay is for matrices; the token table has none, so that words that never occur keep their place."""
    decayed = [p for name, p in model.named_parameters() if p.ndim >= 2 and "embedding" not in name]
    kept = [p for name, p in model.named_parameters() if p.ndim < 2 or "embedding" in name]
    return [{"params": decayed, "weight_decay": 0.05}, {"params": kept, "weight_decay": 0.0}]


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), console=console
    )


def main() -> None:
    """Trains and writes the reference checkpoint."""
    parser = argparse.ArgumentParser(prog="python -m lookwire_export.train", description=main.__doc__)
    parser.add_argument("--output", type=Path, default=Path("tests/data/garments.safetensors"))
    parser.add_argument("--cache", type=Path, default=Path("build"), help="where drawings are kept between runs")
    parser.add_argument("--steps", type=int, default=Settings.steps)
    arguments = parser.parse_args()
    encoder = train(Settings(steps=arguments.steps), arguments.cache)
    weights = {name: value.half().contiguous() for name, value in encoder.model.state_dict().items()}
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    save_file(weights, arguments.output)
    console.print(f"wrote {arguments.output}, {arguments.output.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
