"""The text tower alone."""

import html
import json
import time
from collections.abc import Sequence
from itertools import cycle
from pathlib import Path

import ftfy
import numpy as np
import onnxruntime  # noqa: TID251 - the bare loop is what the server is compared with
from numpy.typing import NDArray
from tokenizers import Tokenizer

from benchmarks.bare.session import open_session

Tokens = NDArray[np.int32]
CONTEXT = 77


class BareTexts:
    """The text tower of an encoder: one session of `threads` threads, called in a loop on tokens that are ready."""

    def __init__(self, encoder: Path, threads: int, texts: Sequence[str]) -> None:
        """`encoder` is its folder in the repository, as `fp32`; the tower lies beside it."""
        manifest = json.loads((encoder / "1" / "manifest.json").read_text())
        if manifest["text"]["clean"] != "lower" or manifest["text"]["pad_id"] != 0:
            raise ValueError(f"{encoder}: the bare loop cleans and pads texts as OpenAI's CLIP does, not otherwise")
        self._tokenizer = Tokenizer.from_file(str(encoder / "1" / manifest["text"]["tokenizer"]))
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(CONTEXT)
        self._session: onnxruntime.InferenceSession = open_session(encoder, manifest["towers"]["text"], threads)
        self._texts = texts
        self._ids = [self._tokens(text) for text in texts]

    def _tokens(self, text: str) -> list[int]:
        """Cleaned as open_clip does, and tokenised."""
        clean = " ".join(html.unescape(html.unescape(ftfy.fix_text(text))).split()).lower()
        ids: list[int] = self._tokenizer.encode(clean).ids
        return ids

    def vectors(self, count: int) -> NDArray[np.float32]:
        """The vectors of the first texts, each computed alone and padded to the context length."""
        return np.concatenate([self._run(padded([ids], CONTEXT)) for ids in self._ids[:count]])

    def padded_per_second(self, batch: int, seconds: float) -> float:
        """Texts a second in batches in the order given, for a tower that computes the padding to the context length too.

        This one does not: its texts end where the padding would. A graph that pads takes as long to some hundredths.
        """
        padding = [[ids[1]] * (CONTEXT - len(ids)) for ids in self._ids]
        full = [[*ids[:-1], *rest, ids[-1]] for ids, rest in zip(self._ids, padding, strict=True)]
        return self._per_second(full, batch, seconds, CONTEXT)

    def cut_per_second(self, batch: int, seconds: float) -> float:
        """Texts a second in batches of texts of like length, each cut to its longest."""
        return self._per_second(sorted(self._ids, key=len), batch, seconds, None)

    def _per_second(self, ids: Sequence[list[int]], batch: int, seconds: float, length: int | None) -> float:
        batches = [
            padded(ids[first : first + batch], length or max(map(len, ids[first : first + batch])))
            for first in range(0, len(ids), batch)
        ]
        # Sorted by length, the first seconds of batches would all be short: in an order that knows nothing of it.
        order = np.random.default_rng(0).permutation(len(batches))
        done = 0
        started = time.perf_counter()
        for number in cycle(order):
            self._run(batches[number])
            done += len(batches[number])
            if time.perf_counter() > started + seconds:
                break
        return done / (time.perf_counter() - started)

    def lone_seconds(self, seconds: float) -> list[float]:
        """The times of one text after the other: tokenised, and run alone at its own length."""
        times = []
        started = time.perf_counter()
        for number in cycle(range(len(self._texts))):
            began = time.perf_counter()
            ids = self._tokens(self._texts[number])
            self._run(padded([ids], len(ids)))
            times.append(time.perf_counter() - began)
            if time.perf_counter() > started + seconds:
                break
        return times

    def _run(self, tokens: Tokens) -> NDArray[np.float32]:
        vectors: NDArray[np.float32] = self._session.run(["embedding"], {"input_ids": tokens})[0]
        return vectors


def padded(ids: Sequence[Sequence[int]], length: int) -> Tokens:
    """int32 of shape [texts, length], filled up with zeros."""
    tokens = np.zeros((len(ids), length), np.int32)
    for row, own in enumerate(ids):
        tokens[row, : len(own)] = own
    return tokens
