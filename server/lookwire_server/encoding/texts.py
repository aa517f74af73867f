"""Texts: strings in, token ids out, exactly as the reference's tokenizer makes them."""

import hashlib
import html
import json
import string
from collections.abc import Callable, Sequence
from pathlib import Path

import ftfy
from tokenizers import Tokenizer
from tokenizers.models import Unigram

from lookwire_server.encoding.manifest import TextRules
from lookwire_server.errors import InvalidArgument


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
        encodings = self._tokenizer.encode_batch_fast([self._clean(text) for text in texts])
        if replace := self._replace:
            return [[replace.get(id, id) for id in encoding.ids] for encoding in encodings]
        return [encoding.ids for encoding in encodings]


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
