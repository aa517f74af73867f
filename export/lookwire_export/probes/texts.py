"""Texts of the kinds that cleaning, tokenizers and truncation disagree on."""

from random import Random

from lookwire_export.garments import ALL
from lookwire_export.probes.images import SEED
from lookwire_export.probes.probe import Probe


def texts(context_length: int = 77) -> list[Probe[str]]:
    """Returns more than 180 texts, for a tokenizer that gives at most so many tokens."""
    rng = Random(SEED)
    captions = [garment.caption for garment in rng.sample(ALL, 32)]
    captions += [garment.varied_caption(rng) for garment in rng.sample(ALL, 24)]
    long = [" ".join(garment.caption for garment in ALL[:60]), "a" * 3000, "red, " * 100, "👗" * 300, "赤い" * 200]
    random = ["".join(chr(rng.choice(ALPHABET)) for _ in range(rng.randint(1, 40))) for _ in range(16)]
    return [
        *(Probe("caption", caption) for caption in captions),
        *(Probe(kind, text) for kind, kept in KINDS.items() for text in kept),
        *(Probe("over-long", text) for text in long),
        *(Probe("as long as the context", "red " * words) for words in range(context_length - 4, context_length + 3)),
        *(Probe("random characters", text) for text in random),
    ]


ALPHABET = [
    *range(0x20, 0x7F),
    *range(0xA1, 0x250),
    *range(0x400, 0x460),
    *range(0x3041, 0x3097),
    *range(0x1F600, 0x1F640),
]

KINDS = {
    "empty": [""],
    "blank": [" ", "\t\n", "\u3000"],
    "one token": ["a", "7", "!", "the", "dress", "red"],
    "upper case": ["T-SHIRT", "A RED DRESS", "DON'T WASH", "iPhone CASE", "ÉTÉ 2026", "İstanbul"],
    "accents": ["Ünïcödé", "naïve café", "straße", "ſhirt", "\u0345", "e\u0301", "ﬁne ﬂare", "Å\u030a"],
    "spaces": ["x\u200by", "tab\tand\nnewline", "  spaces   everywhere  ", "no\u00a0break", "line\r\nend"],
    "underscores": ["_", "snake_case_name", "__init__", "a_b", "navy_blue T-shirt"],
    "punctuation": [
        "-", "kebab-case-name", "''", "it’s ‘quoted’ “text”", "a/b\\c|d", "~`^$+=<>", "dress, red; size: M (new!)", "...",
        "well—almost", "¿qué?", "{} and {}",
    ],
    "apostrophes": ["don't, we'll, it's, I'm, you've, he'd, they're", "'s", "dress's"],
    "digits": ["3.14159", "2026-01-31", "1,000,000", "100% cotton", "EUR 49.90", "size 38/40", "½ ² ٣ Ⅷ"],
    "addresses": ["#hashtag @mention", "https://example.com/a?b=c&d=e", "someone@example.com"],
    "HTML entities": ["&amp;", "&lt;b&gt;", "&amp;lt;", "&#128512;", "&nbsp;", "caf&eacute;", "red &amp;amp; blue"],
    "mojibake": ["schÃ¶n", "â€œmojibakeâ€\x9d", "cafÃ©", "itâ€™s"],
    "special-token look-alikes": [
        "<start_of_text>", "<end_of_text>", "<END_OF_TEXT> red", "!<start_of_text>", "red <end_of_text> blue",
        "<|endoftext|>", "<|startoftext|> red", "</s>", "<s> red", "[SEP] red [CLS]", "<pad>", "<unk>", "<eos> a <bos>",
    ],
    "emoji": ["👗", "🎉🎉🎉", "👩‍👩‍👧", "🇫🇷 🇯🇵", "red 👠 shoes", "👍🏽", "❤️ dress", "☺"],
    "Chinese, Japanese, Korean": ["红色连衣裙", "赤いドレス", "빨간 드레스", "ｆｕｌｌ　ｗｉｄｔｈ", "ﾊﾝｶｸ", "価格：１２３円"],
    "other scripts": [
        "красное платье", "فستان أحمر", "שמלה אדומה", "κόκκινο φόρεμα", "ชุดสีแดง", "लाल पोशाक", "Đầm đỏ",
        "\U0001d5bb\U0001d5c5\U0001d5ce\U0001d5be",
    ],
    "control characters": ["a\x07b", "\x1b[31mred\x1b[0m", "a\ufeffb", "red\u202edress"],
}  # fmt: skip
