"""Writes transformers' SiglipTokenizer, which is Python around SentencePiece, as a `tokenizer.json`."""

import re
import string
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, normalizers, pre_tokenizers, processors
from tokenizers.models import Unigram
from transformers.utils.sentencepiece_model_pb2_new import ModelProto

from lookwire_export.reference import ExportError

UNIGRAM = ModelProto().trainer_spec.UNIGRAM
SPACE = "▁"
"""What SentencePiece writes for a space."""

PUNCTUATION = f"[{re.escape(string.punctuation)}]"

FINAL_SIGMA = r"(?<=\p{L})Σ(?!\p{L})"
"""Python's lower() has another letter at the end of a word; the library's Lowercase goes letter by letter."""


def tokenizer_json(tokenizer: Any) -> str:
    """Returns the file's text: lower case, no ASCII punctuation, single spaces, SentencePiece's own normalisation and pieces.

    The steps are those of `transformers.models.siglip.tokenization_siglip`; literal special words in a text are taken
    for themselves, as there. The ids are the same but for rare texts: some sequences of combining marks, what stands
    behind a literal special word, and where two ways to cut a word score exactly alike.
    Raises ExportError for a SentencePiece model of another kind.
    """
    model = ModelProto.FromString(tokenizer.sp_model.serialized_model_proto())
    if model.trainer_spec.model_type != UNIGRAM or model.trainer_spec.byte_fallback:
        raise ExportError("the SentencePiece model of the SiglipTokenizer is no plain unigram model, as SigLIP's is")
    written = Tokenizer(Unigram([(piece.piece, piece.score) for piece in model.pieces], model.trainer_spec.unk_id))
    lower = [normalizers.Replace(Regex(FINAL_SIGMA), "ς"), normalizers.Lowercase()]
    charsmap = model.normalizer_spec.precompiled_charsmap
    written.normalizer = normalizers.Sequence(
        [
            normalizers.Replace(SPACE, " "),
            *(lower if tokenizer.do_lower_case else []),
            normalizers.Replace(Regex(PUNCTUATION), ""),
            normalizers.Replace(Regex(r"\s+"), " "),
            *([normalizers.Precompiled(charsmap)] if charsmap else []),
            normalizers.Replace(Regex(r"\s+"), " "),
            normalizers.Strip(),
        ]
    )
    written.pre_tokenizer = pre_tokenizers.Metaspace()
    end = tokenizer.eos_token
    written.post_processor = processors.TemplateProcessing(
        single=f"$A {end}", special_tokens=[(end, tokenizer.eos_token_id)]
    )
    words = {end, tokenizer.unk_token, tokenizer.pad_token}
    written.add_special_tokens([AddedToken(word, lstrip=True, rstrip=True, normalized=False) for word in sorted(words)])
    return str(written.to_str())
