"""Writes a library's tokenizer as a `tokenizer.json` of the `tokenizers` library, offline.

The server's procedure on such a file is: clean the text as the manifest says, `encode` it with truncation to the context
length, and pad on the right. Its ids are those of the library's own tokenizer.
"""

import json
import sys
from itertools import pairwise
from typing import Any

import regex

from lookwire_export.reference import ExportError

BEGIN, END = "<start_of_text>", "<end_of_text>"
END_OF_WORD = "</w>"


def tokenizer_json(tokenizer: Any) -> str:
    """Returns the file's text for an `open_clip.SimpleTokenizer` that cleans by "lower", as compact as JSON can be.

    open_clip has the byte-pair encoding in its own form: merges, and a pattern that splits a text into words.
    """
    if tokenizer.all_special_ids != [tokenizer.encoder[BEGIN], tokenizer.encoder[END]]:
        raise ExportError(
            f"the tokenizer has special words other than {BEGIN} and {END}: only open_clip's own vocabulary is supported"
        )
    special = [_template_item(BEGIN), {"Sequence": {"id": "A", "type_id": 0}}, _template_item(END)]
    vocabulary: dict[str, int] = dict(tokenizer.encoder)
    ranked = sorted(tokenizer.bpe_ranks.items(), key=lambda item: item[1])
    merges = [f"{first} {second}" for (first, second), _ in ranked]
    for word in (BEGIN, END):
        merges += _spelled(word, vocabulary, tokenizer)
    model = {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": END_OF_WORD,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": False,
        "vocab": vocabulary,
        "merges": merges,
    }
    split = {"type": "Split", "pattern": {"Regex": _words()}, "behavior": "Removed", "invert": True}
    to_bytes = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    whole: dict[str, Any] = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, to_bytes]},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": special,
            "pair": [*special, {"Sequence": {"id": "B", "type_id": 0}}],
            "special_tokens": {
                word: {"id": word, "ids": [tokenizer.encoder[word]], "tokens": [word]} for word in (BEGIN, END)
            },
        },
        "decoder": None,
        "model": model,
    }
    return _text(whole)


def huggingface_tokenizer_json(tokenizer: Any) -> str:
    """Returns the file's text for a transformers tokenizer that is backed by the `tokenizers` library.

    With it, the server's procedure gives the ids of `tokenizer(texts, padding="max_length", max_length=context_length,
    truncation=True)`. Raises ExportError for a tokenizer that does what the file cannot say.
    """
    kind = type(tokenizer).__name__
    if not getattr(tokenizer, "is_fast", False):
        raise ExportError(
            f"{kind} is not backed by the tokenizers library, so it cannot be written as a tokenizer.json: give a "
            "directory with a tokenizer.json, which transformers' converters make of a SentencePiece model"
        )
    for attribute, expected in (
        ("padding_side", "right"),
        ("truncation_side", "right"),
        ("split_special_tokens", False),
    ):
        value = getattr(tokenizer, attribute)
        if value != expected:
            raise ExportError(
                f"{kind} has {attribute} {value!r}, only {expected!r} is supported: set it in the tokenizer_config.json if "
                f"the model was trained with {expected!r}"
            )
    whole = json.loads(tokenizer.backend_tokenizer.to_str())
    # A tokenizer keeps the truncation and padding of its last call.
    return _text(whole | {"truncation": None, "padding": None})


def _text(whole: dict[str, Any]) -> str:
    return json.dumps(whole, ensure_ascii=False, separators=(",", ":"))


def _template_item(word: str) -> dict[str, Any]:
    return {"SpecialToken": {"id": word, "type_id": 0}}


def _words() -> str:
    """Returns open_clip's splitting pattern with its classes written out.

    open_clip matches regardless of case by the `regex` package's edition of Unicode; the `tokenizers` library has an
    older one. Its input is lower case already, and the only other letter that folds to one of the pattern's is long s.
    """
    letters, number, others = (_class(inside) for inside in (r"\p{L}", r"\p{N}", r"^\s\p{L}\p{N}"))
    special = "<[sſ]tart_of_text>|<end_of_text>|'[sſ]|'t|'re|'ve|'m|'ll|'d"
    return f"{special}|{letters}+|{number}|{others}+"


def _class(inside: str) -> str:
    """Returns the characters that `regex` finds in the class, regardless of case, as a class of plain ranges."""
    everything = "".join(chr(code) for code in range(sys.maxunicode + 1) if not 0xD800 <= code <= 0xDFFF)
    runs = (found.group() for found in regex.finditer(f"[{inside}]+", everything, regex.IGNORECASE))
    return "[" + "".join(rf"\x{{{ord(run[0]):x}}}-\x{{{ord(run[-1]):x}}}" for run in runs) + "]"


def _spelled(word: str, vocabulary: dict[str, int], tokenizer: Any) -> list[str]:
    """Adds merges that lead from the pieces of a special word to its one id, and returns them.

    open_clip gives the literal text "<start_of_text>" its special id where its pattern finds that word whole, which an
    added token would not obey. The merges come last, begin with "<start" or "<end", and so apply to no other word.
    """
    identity = vocabulary.pop(word)
    pieces = _pieces(word, tokenizer)
    merges, joined = [], pieces[0]
    for _, piece in pairwise(pieces):
        merges.append(f"{joined} {piece}")
        joined += piece
        vocabulary[joined] = len(tokenizer.encoder) + len(vocabulary)
    vocabulary[joined] = identity
    return merges


def _pieces(word: str, tokenizer: Any) -> list[str]:
    """Returns what the ordinary merges make of the word, which its special entry in the cache hides."""
    special = tokenizer.cache.pop(word)
    pieces: list[str] = tokenizer.bpe(word).split(" ")
    tokenizer.cache[word] = special
    return pieces
