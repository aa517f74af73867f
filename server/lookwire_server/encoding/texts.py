"""Texts: strings in, token ids out, exactly as the reference's tokenizer makes them."""

import hashlib
import html
import json
import string
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import ftfy
from tokenizers import Tokenizer
from tokenizers.models import Unigram

from lookwire_server.encoding.manifest import TextRules
from lookwire_server.errors import InvalidArgument

# What the library makes of a text takes a hundred times its characters until the ids are read from it: so much at a time.
SLICE_TEXTS = 64
SLICE_CHARACTERS = 65_536


class TextTokenizer:
    """The tokenizer of one encoder, read from the file that was exported with it."""

    def __init__(self, directory: Path, rules: TextRules) -> None:
        path = directory / rules.tokenizer
        if path.parent != directory or not path.is_file():
            raise InvalidArgument(f"the manifest's tokenizer '{rules.tokenizer}' is no file in {directory}")
        data = path.read_bytes()
        if hashlib.sha256(data).hexdigest() != rules.tokenizer_sha256:
            raise InvalidArgument(
                f"{path} is not the file of the manifest: its SHA-256 differs; export the encoder again"
            )
        self._clean = CLEANINGS[rules.clean]
        self._replace = dict(rules.replace)
        self._tokenizer = read(data)
        special = self._tokenizer.num_special_tokens_to_add(is_pair=False)
        if special > rules.context_length:
            raise InvalidArgument(
                f"the manifest's context_length {rules.context_length} has no room for the {special} special tokens of {path}"
            )
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(rules.context_length)

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text, special tokens included, at most `context_length`; not padded.

        A text that is too long keeps its beginning and its special tokens.
        """
        ids: list[list[int]] = []
        for part in slices(texts):
            ids += [
                encoding.ids for encoding in self._tokenizer.encode_batch_fast([self._clean(text) for text in part])
            ]
        if replace := self._replace:
            return [[replace.get(id, id) for id in of_text] for of_text in ids]
        return ids


def slices(texts: Sequence[str]) -> Iterator[Sequence[str]]:
    """The texts in runs of SLICE_TEXTS at most, and of SLICE_CHARACTERS at most where that is not one text."""
    start = characters = 0
    for index, text in enumerate(texts):
        characters += len(text)
        if index > start and (index - start == SLICE_TEXTS or characters > SLICE_CHARACTERS):
            yield texts[start:index]
            start, characters = index, len(text)
    if start < len(texts):
        yield texts[start:]


def read(data: bytes) -> Tokenizer:
    """The tokenizer of a tokenizer.json, with the scores of a Unigram model exactly as the file has them."""
    tokenizer = Tokenizer.from_buffer(data)
    if isinstance(tokenizer.model, Unigram):
        # The library's own reader takes one score in seven for the float beside it, and ties are then broken otherwise.
        model = json.loads(data)["model"]
        tokenizer.model = Unigram(
            [(piece, score) for piece, score in model["vocab"]], model["unk_id"], model["byte_fallback"]
        )
    return tokenizer


def repair(text: str) -> str:
    """open_clip's basic cleaning: ftfy, then HTML entities twice."""
    # Neither finds anything in these, and ftfy takes as long as the tokenizer to see that.
    if text.isascii() and text.isprintable() and "&" not in text:
        return text
    return html.unescape(html.unescape(ftfy.fix_text(text)))


def whitespace(text: str) -> str:
    """open_clip's "whitespace" cleaning: repaired, blanks collapsed."""
    return " ".join(repair(text).split())


def lower(text: str) -> str:
    """open_clip's "lower" cleaning: repaired, blanks collapsed, lower case."""
    return whitespace(text).lower()


def canonicalize(text: str) -> str:
    """open_clip's "canonicalize" cleaning: repaired, "_" to a blank, no ASCII punctuation, lower case, blanks collapsed."""
    return " ".join(repair(text).translate(WITHOUT_PUNCTUATION).lower().split())


WITHOUT_PUNCTUATION = str.maketrans("_", " ", string.punctuation.replace("_", ""))
CLEANINGS: dict[str, Callable[[str], str]] = {
    "lower": lower,
    "canonicalize": canonicalize,
    "whitespace": whitespace,
    "none": str,
}
