"""Texts: strings in, token ids out, exactly as the reference's tokenizer makes them."""

import hashlib
import html
from collections.abc import Sequence
from pathlib import Path

import ftfy
from tokenizers import Tokenizer

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
        self.rules = rules
        self._tokenizer = Tokenizer.from_buffer(data)
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text, begin and end token included, at most `context_length`; not padded."""
        rules = self.rules
        begin = [] if rules.bos_id is None else [rules.bos_id]
        end = [] if rules.eos_id is None else [rules.eos_id]
        room = rules.context_length - len(begin) - len(end)
        encodings = self._tokenizer.encode_batch_fast([clean(text) for text in texts], add_special_tokens=False)
        # A text that is too long keeps its beginning and its end token.
        return [begin + encoding.ids[:room] + end for encoding in encodings]


def clean(text: str) -> str:
    """open_clip's "lower" cleaning: ftfy, HTML entities twice, blanks collapsed, lower case."""
    text = html.unescape(html.unescape(ftfy.fix_text(text))).strip()
    return " ".join(text.split()).strip().lower()
