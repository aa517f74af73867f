"""The server's ids are the library's: for every tokenizer that the export writes, on strings of all kinds."""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import open_clip
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from open_clip.tokenizer import HFTokenizer
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import BertTokenizer, ByT5Tokenizer, CLIPTokenizer, GemmaTokenizer, T5Tokenizer, XLMRobertaTokenizer

from lookwire_export.reference import ExportError
from lookwire_export.tokenizer import huggingface_tokenizer_json, tokenizer_json
from lookwire_server.encoding.manifest import TextRules
from lookwire_server.encoding.texts import TextTokenizer
from tests.export.strings import strings

COMMITTED = Path(__file__).parents[2] / "model_repo" / "garments" / "1" / "tokenizer.json"
STRINGS = strings()


@dataclass(frozen=True)
class Pair:
    """A library's tokenizer, which gives ids of shape [texts, context length], and the server's on the exported file."""

    library: Callable[[list[str]], Any]
    rules: TextRules
    server: TextTokenizer

    def check(self, texts: Sequence[str]) -> None:
        """Every text has the library's ids, padding and all."""
        length, pad = self.rules.context_length, self.rules.pad_id
        for start in range(0, len(texts), 256):
            part = list(texts[start : start + 256])
            expected = self.library(part).tolist()
            for text, ids, wanted in zip(part, self.server.encode(part), expected, strict=True):
                assert ids + [pad] * (length - len(ids)) == wanted, repr(text[:200])


@pytest.fixture(scope="module")
def simple() -> open_clip.SimpleTokenizer:
    return open_clip.SimpleTokenizer()


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tokenizers")


@pytest.fixture(scope="module")
def make(directory: Path, simple: open_clip.SimpleTokenizer) -> Callable[[str], Pair]:
    """Pairs by name; each name's directory is made once."""
    made: dict[str, Pair] = {}

    def pair(name: str) -> Pair:
        if name not in made:
            made[name] = PAIRS[name](directory / name, simple)
        return made[name]

    return pair


def test_strings_are_many_and_of_all_kinds() -> None:
    """There are at least 2,000 distinct strings, the same every time, over-long and empty ones among them."""
    assert len(set(STRINGS)) == len(STRINGS) >= 2000
    assert strings() == STRINGS
    assert "" in STRINGS
    assert max(map(len, STRINGS)) > 2000
    assert len({character for text in STRINGS for character in text}) > 1500


def exported(library: Callable[[list[str]], Any], directory: Path, tokenizer: str, **rules: Any) -> Pair:
    """The pair of a library's tokenizer and the text of a tokenizer.json."""
    directory.mkdir(exist_ok=True)
    (directory / "tokenizer.json").write_text(tokenizer, encoding="utf-8")
    file = {"tokenizer": "tokenizer.json", "tokenizer_sha256": hashlib.sha256(tokenizer.encode()).hexdigest()}
    graph = {"padding": "max_length", "pooling": "any", "causal": False}
    checked = TextRules.model_validate(file | graph | {"replace": []} | rules)
    return Pair(library, checked, TextTokenizer(directory, checked))


def clip(length: int) -> Callable[[Path, open_clip.SimpleTokenizer], Pair]:
    """open_clip's own tokenizer, as OpenAI's, LAION's and PE-Core's models have it."""

    def pair(directory: Path, simple: open_clip.SimpleTokenizer) -> Pair:
        text = tokenizer_json(simple)
        rules = {"clean": "lower", "context_length": length, "pad_id": 0}
        return exported(lambda texts: simple(texts, length), directory, text, **rules)

    return pair


def hugging_face(
    train: Callable[[], Any], clean: str, length: int, pad: int, *, strip: bool = False
) -> Callable[[Path, open_clip.SimpleTokenizer], Pair]:
    """open_clip's HFTokenizer over a directory that transformers saved."""

    def pair(directory: Path, _: open_clip.SimpleTokenizer) -> Pair:
        train().save_pretrained(directory)
        library = HFTokenizer(str(directory), context_length=length, clean=clean, strip_sep_token=strip)
        replace = [(library.tokenizer.sep_token_id, 0)] if strip else []
        text = huggingface_tokenizer_json(library.tokenizer)
        rules = {"clean": clean, "context_length": length, "pad_id": pad, "replace": replace}
        return exported(library, directory, text, **rules)

    return pair


def transformers_clip(directory: Path, simple: open_clip.SimpleTokenizer) -> Pair:
    """transformers' CLIPTokenizer with open_clip's vocabulary under the words of transformers."""
    names = {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}
    directory.mkdir()
    vocabulary = {names.get(piece, piece): id for piece, id in simple.encoder.items()}
    (directory / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    merges = "\n".join(["#version: 0.2", *(" ".join(pair) for pair in simple.bpe_ranks), ""])
    (directory / "merges.txt").write_text(merges, encoding="utf-8")
    library = CLIPTokenizer.from_pretrained(directory)

    def ids(texts: list[str]) -> Any:
        arguments = {"padding": "max_length", "max_length": 77, "truncation": True, "return_tensors": "np"}
        return library(texts, **arguments).input_ids

    text = huggingface_tokenizer_json(library)
    return exported(ids, directory, text, clean="none", context_length=77, pad_id=library.pad_token_id)


def t5() -> T5Tokenizer:
    """Like SigLIP's: Unigram, the end token appended and used for padding."""
    return T5Tokenizer(vocab=unigram("<pad>", "</s>", "<unk>"), extra_ids=0, pad_token="</s>")


def xlm_roberta() -> XLMRobertaTokenizer:
    """Unigram between <s> and </s>."""
    return XLMRobertaTokenizer(vocab=unigram("<s>", "<pad>", "</s>", "<unk>"))


def gemma() -> GemmaTokenizer:
    """Like SigLIP 2's: byte-pair encoding that falls back to bytes, <eos> appended, no <bos>."""
    trained = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    trained.normalizer = normalizers.Replace(" ", "▁")  # type: ignore[assignment]
    trained.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")  # type: ignore[assignment]
    pieces = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", *(f"<0x{byte:02X}>" for byte in range(256))]
    model = train(trained, trainers.BpeTrainer(vocab_size=2000, special_tokens=pieces, show_progress=False))
    merges = [tuple(merge) for merge in model["merges"]]
    options = {"add_bos_token": False, "add_eos_token": True, "padding_side": "right"}
    return GemmaTokenizer(vocab=model["vocab"], merges=merges, **options)


def bert() -> BertTokenizer:
    """Like CLIPA's: WordPiece between [CLS] and [SEP]."""
    trained = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    trained.normalizer = normalizers.BertNormalizer()  # type: ignore[assignment]
    trained.pre_tokenizer = pre_tokenizers.BertPreTokenizer()  # type: ignore[assignment]
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    model = train(trained, trainers.WordPieceTrainer(vocab_size=2000, special_tokens=special, show_progress=False))
    return BertTokenizer(vocab=model["vocab"])


def unigram(*special: str) -> list[tuple[str, float]]:
    """The pieces of a Unigram model that was trained on the strings."""
    trained = Tokenizer(models.Unigram())
    trained.pre_tokenizer = pre_tokenizers.Metaspace()  # type: ignore[assignment]
    trainer = trainers.UnigramTrainer(
        vocab_size=2000, special_tokens=list(special), unk_token="<unk>", show_progress=False
    )
    return [(piece, score) for piece, score in train(trained, trainer)["vocab"]]


def train(tokenizer: Tokenizer, trainer: Any) -> dict[str, Any]:
    """The model after training on the strings' Latin, Greek and Cyrillic characters; it knows no others."""
    tokenizer.train_from_iterator(["".join(filter(lambda c: c < "\u0530", text[:200])) for text in STRINGS], trainer)
    model: dict[str, Any] = json.loads(tokenizer.to_str())["model"]
    return model


PAIRS: dict[str, Callable[[Path, open_clip.SimpleTokenizer], Pair]] = {
    "clip-77": clip(77),
    "clip-32": clip(32),
    "siglip-64": hugging_face(t5, "canonicalize", 64, 1),
    "siglip-16": hugging_face(t5, "canonicalize", 16, 1),
    "siglip2-64": hugging_face(gemma, "canonicalize", 64, 0),
    "clipa-32": hugging_face(bert, "whitespace", 32, 0, strip=True),
    "xlm-roberta-77": hugging_face(xlm_roberta, "whitespace", 77, 1),
    "transformers-clip-77": transformers_clip,
}


@pytest.mark.parametrize("name", PAIRS)
def test_every_string_has_the_ids_of_the_library(make: Callable[[str], Pair], name: str) -> None:
    """Each of the strings, over-long ones included, is cleaned, tokenised, cut and padded as the library does it."""
    make(name).check(STRINGS)


@settings(max_examples=500, deadline=None, derandomize=True)
@given(text=st.text(max_size=120))
def test_any_text_has_the_ids_of_open_clip(make: Callable[[str], Pair], text: str) -> None:
    """No text of Unicode makes the server and open_clip's own tokenizer differ."""
    make("clip-77").check([text])


@settings(max_examples=500, deadline=None, derandomize=True)
@given(text=st.text(max_size=120))
def test_any_text_has_the_ids_of_a_siglip_tokenizer(make: Callable[[str], Pair], text: str) -> None:
    """No text of Unicode makes the server and open_clip's tokenizer for SigLIP differ."""
    make("siglip-64").check([text])


def test_pieces_of_the_vocabulary_have_the_ids_of_open_clip(
    make: Callable[[str], Pair], simple: open_clip.SimpleTokenizer
) -> None:
    """Three thousand strings, joined from pieces of the vocabulary and random characters, have open_clip's ids."""
    rng = Random(1)
    pieces = [piece.replace("</w>", rng.choice(("", " "))) for piece in simple.encoder]
    characters = [chr(code) for code in range(0x20, 0x3000)]

    def text() -> str:
        return "".join(rng.choice(pieces if rng.random() < 0.7 else characters) for _ in range(rng.randint(1, 12)))

    make("clip-77").check([text() for _ in range(3000)])


def test_special_tokens_alone_are_what_an_empty_text_has(make: Callable[[str], Pair]) -> None:
    """The files put begin and end themselves, and cut with both kept."""
    assert make("clip-77").server.encode(["", "a " * 500])[0] == [49406, 49407]
    assert make("clip-77").server.encode(["a " * 500])[0] == [49406, *[320] * 75, 49407]
    assert make("siglip-16").server.encode([""]) == [[1]]


def test_committed_file_is_what_the_export_writes(simple: open_clip.SimpleTokenizer) -> None:
    """The bundled tokenizer.json is reproduced from open_clip's own merges."""
    assert COMMITTED.read_text(encoding="utf-8") == tokenizer_json(simple)


def test_writing_leaves_the_tokenizer_as_it_was(simple: open_clip.SimpleTokenizer) -> None:
    """The special words keep their ids in open_clip's tokenizer after the file has been written."""
    tokenizer_json(simple)

    assert simple.encode("<start_of_text> <end_of_text>") == [49406, 49407]


def test_written_file_neither_cuts_nor_pads(make: Callable[[str], Pair]) -> None:
    """What a transformers tokenizer keeps of its last call is not in the file."""
    pair = make("siglip-16")
    pair.check(["a red dress"])

    written = json.loads(huggingface_tokenizer_json(pair.library.tokenizer))  # type: ignore[attr-defined]

    assert written["truncation"] is None
    assert written["padding"] is None


@pytest.mark.parametrize(
    "option", [{"padding_side": "left"}, {"truncation_side": "left"}, {"split_special_tokens": True}]
)
def test_tokenizer_that_the_server_cannot_follow_is_refused(option: dict[str, Any]) -> None:
    """A tokenizer that pads or cuts on the left, or spells special tokens, is refused by name of the attribute."""
    ((name, value),) = option.items()

    with pytest.raises(ExportError, match=f"BertTokenizer has {name} {value!r}"):
        huggingface_tokenizer_json(BertTokenizer(**option))


def test_slow_tokenizer_is_refused() -> None:
    """A tokenizer that is not backed by the tokenizers library is refused by name."""
    with pytest.raises(ExportError, match="ByT5Tokenizer is not backed by the tokenizers library"):
        huggingface_tokenizer_json(ByT5Tokenizer())


def test_words_of_its_own_are_refused() -> None:
    """An open_clip tokenizer with special words beside begin and end is refused."""
    with pytest.raises(ExportError, match="special words other than"):
        tokenizer_json(open_clip.SimpleTokenizer(additional_special_tokens=["<x>"]))
