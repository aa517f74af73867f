import io
from pathlib import Path

import pytest
import sentencepiece  # type: ignore[import-not-found, unused-ignore]
from tokenizers import Tokenizer
from transformers import SiglipConfig, SiglipModel, SiglipTokenizer

from lookwire_export.__main__ import main
from lookwire_export.reference import ExportError
from lookwire_export.sources.siglip_tokenizer import tokenizer_json
from tests.export.conftest import stirred
from tests.export.strings import strings


def trained(**options: object) -> bytes:
    """A SentencePiece model like SigLIP's, of the strings' own words."""
    written = io.BytesIO()
    corpus = [text.lower() for text in strings() if text.strip() and len(text) < 400]
    settings = {"vocab_size": 3500, "hard_vocab_limit": False, "model_type": "unigram", "character_coverage": 0.98}
    settings |= {"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1, "minloglevel": 2} | options
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(corpus), model_writer=written, **settings)
    return written.getvalue()


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> SiglipTokenizer:
    file = tmp_path_factory.mktemp("siglip") / "spiece.model"
    file.write_bytes(trained())
    return SiglipTokenizer(str(file))


@pytest.mark.filterwarnings("ignore:This sequence already has </s>")
@pytest.mark.parametrize("length", [64, 8])
def test_ids_are_the_python_tokenizers(tokenizer: SiglipTokenizer, length: int) -> None:
    """The file's ids are transformers' own on texts of all kinds, but for a few odd ones."""
    written = Tokenizer.from_str(tokenizer_json(tokenizer))
    written.enable_truncation(length)
    written.enable_padding(length=length, pad_id=tokenizer.pad_token_id)
    texts = strings()

    expected = tokenizer(texts, padding="max_length", max_length=length, truncation=True).input_ids

    found = [encoded.ids for encoded in written.encode_batch(texts)]
    differing = [text for text, a, b in zip(texts, found, expected, strict=True) if a != b]
    odd = [text for text in differing if any(part in text for part in ("</s>", "¥", "ﾋ", "\u0323", "\u0301"))]
    assert len(texts) > 2000
    assert len(differing) < 0.03 * len(texts)
    assert len(differing) - len(odd) < 0.01 * len(texts)


@pytest.mark.filterwarnings("ignore:This sequence already has </s>")
@pytest.mark.parametrize("text", ["A red_dress!", "  two  spaces ", "", "...", "ΟΔΟΣ", "#tag", "</s>", "a\x0bb", "▁x"])
def test_ids_of_each_step(tokenizer: SiglipTokenizer, text: str) -> None:
    """Lower case, punctuation, spaces, the begin of the text, final sigma and literal special words are as in Python."""
    written = Tokenizer.from_str(tokenizer_json(tokenizer))

    ids = written.encode(text).ids

    expected = tokenizer(text, padding="max_length", max_length=16, truncation=True).input_ids
    assert ids + [tokenizer.pad_token_id] * (16 - len(ids)) == expected


@pytest.mark.filterwarnings("ignore:This sequence already has </s>")
def test_directory_with_the_python_tokenizer_is_exported(
    siglip_directory: Path, tokenizer: SiglipTokenizer, tmp_path: Path
) -> None:
    """A directory as SiglipProcessor saves it, with spiece.model alone, passes the whole gate."""
    directory = tmp_path / "siglip"
    config = SiglipConfig.from_pretrained(siglip_directory)
    config.text_config.vocab_size = tokenizer.vocab_size
    stirred(SiglipModel(config)).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    settings = "preprocessor_config.json"
    (directory / settings).write_bytes((siglip_directory / settings).read_bytes())

    assert main([str(directory), "--repo", str(tmp_path / "repo")]) == 0
    assert (tmp_path / "repo" / "siglip" / "1" / "manifest.json").is_file()


def test_other_sentencepiece_models_are_refused(tmp_path: Path) -> None:
    """A SentencePiece model of another kind is refused, not written wrongly."""
    (tmp_path / "spiece.model").write_bytes(trained(model_type="bpe"))

    with pytest.raises(ExportError, match="no plain unigram model"):
        tokenizer_json(SiglipTokenizer(str(tmp_path / "spiece.model")))
