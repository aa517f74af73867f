from pathlib import Path
from random import Random

import open_clip
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from open_clip.tokenizer import get_clean_fn
from tokenizers import Tokenizer

from lookwire_export import probes
from lookwire_export.tokenizer import tokenizer_json

REFERENCE = open_clip.SimpleTokenizer()
CLEAN = get_clean_fn("lower")
COMMITTED = Path(__file__).parents[2] / "model_repo" / "garments" / "1" / "tokenizer.json"


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(COMMITTED))


def ids(tokenizer: Tokenizer, text: str) -> list[int]:
    encoded: list[int] = tokenizer.encode(CLEAN(text), add_special_tokens=False).ids
    return encoded


def test_committed_file_is_what_the_export_writes() -> None:
    """The bundled tokenizer.json is reproduced from open_clip's own merges."""
    assert COMMITTED.read_text(encoding="utf-8") == tokenizer_json(REFERENCE)


def test_writing_leaves_the_tokenizer_as_it_was() -> None:
    """The special words keep their ids in open_clip's tokenizer after the file has been written."""
    tokenizer_json(REFERENCE)

    assert REFERENCE.encode("<start_of_text> <end_of_text>") == [49406, 49407]


def test_odd_texts_give_the_ids_of_open_clip(tokenizer: Tokenizer) -> None:
    """Emoji, scripts, entities, contractions, empty and over-long texts give open_clip's ids."""
    for text in probes.texts():
        assert ids(tokenizer, text) == REFERENCE.encode(text), text


@pytest.mark.parametrize("word", ["<start_of_text>", "<END_OF_TEXT>", "!<start_of_text>", "a<end_of_text>b", "<start"])
def test_special_words_in_a_text_give_the_ids_of_open_clip(tokenizer: Tokenizer, word: str) -> None:
    """A special word written out has its one id where open_clip's pattern finds it whole, and is spelled elsewhere."""
    assert ids(tokenizer, word) == REFERENCE.encode(word)


def test_pieces_of_the_vocabulary_give_the_ids_of_open_clip(tokenizer: Tokenizer) -> None:
    """Three thousand strings, joined from pieces of the vocabulary and random characters, give open_clip's ids."""
    rng = Random(1)
    pieces = [piece.replace("</w>", rng.choice(("", " "))) for piece in REFERENCE.encoder]
    characters = [chr(code) for code in range(0x20, 0x3000)]

    for _ in range(3000):
        text = "".join(rng.choice(pieces if rng.random() < 0.7 else characters) for _ in range(rng.randint(1, 12)))
        assert ids(tokenizer, text) == REFERENCE.encode(text), text


@settings(max_examples=500, deadline=None, derandomize=True)
@given(text=st.text(max_size=60))
def test_any_text_gives_the_ids_of_open_clip(text: str) -> None:
    """No string of Unicode text makes the two differ."""
    assert ids(_loaded(COMMITTED), text) == REFERENCE.encode(text)


def _loaded(file: Path, cache: dict[Path, Tokenizer] = {}) -> Tokenizer:  # noqa: B006  # one file, read once
    if file not in cache:
        cache[file] = Tokenizer.from_file(str(file))
    return cache[file]
