"""Strings of all kinds that tokenizers and cleaners disagree on, the same ones every time."""

from random import Random

from lookwire_export.garments import ALL

BLOCKS = [
    (0x20, 0x7F), (0xA0, 0x100), (0x100, 0x250), (0x250, 0x2B0), (0x2B0, 0x300), (0x300, 0x370), (0x370, 0x400),
    (0x400, 0x530), (0x530, 0x590), (0x590, 0x600), (0x600, 0x700), (0x700, 0x780), (0x780, 0x7C0), (0x900, 0x980),
    (0x980, 0xA00), (0xA00, 0xA80), (0xB80, 0xC00), (0xC00, 0xC80), (0xD00, 0xD80), (0xE00, 0xE80), (0xF00, 0x1000),
    (0x1000, 0x10A0), (0x10A0, 0x1100), (0x1100, 0x1200), (0x1200, 0x1380), (0x13A0, 0x1400), (0x1780, 0x1800),
    (0x1E00, 0x1F00), (0x1F00, 0x2000), (0x2000, 0x2070), (0x2070, 0x20A0), (0x20A0, 0x20D0), (0x20D0, 0x2100),
    (0x2100, 0x2150), (0x2150, 0x2190), (0x2190, 0x2200), (0x2200, 0x2300), (0x2460, 0x2500), (0x2500, 0x2580),
    (0x2600, 0x2700), (0x2700, 0x27C0), (0x2C00, 0x2C60), (0x3000, 0x3040), (0x3040, 0x30A0), (0x30A0, 0x3100),
    (0x3200, 0x3300), (0x4E00, 0x4F00), (0xA640, 0xA6A0), (0xAC00, 0xAD00), (0xE000, 0xE040), (0xF900, 0xFA00),
    (0xFB00, 0xFB50), (0xFB50, 0xFC00), (0xFE00, 0xFE10), (0xFE70, 0xFF00), (0xFF00, 0xFFF0), (0xFFF0, 0xFFFE),
    (0x10300, 0x10330), (0x10400, 0x10450), (0x16E40, 0x16E80), (0x1D400, 0x1D500), (0x1E900, 0x1E944),
    (0x1F100, 0x1F200), (0x1F1E6, 0x1F200), (0x1F300, 0x1F400), (0x1F600, 0x1F650), (0x1F680, 0x1F700),
    (0x20000, 0x20020), (0xE0000, 0xE0080), (0x10FFF0, 0x110000),
]  # fmt: skip
"""First and last + 1 code point of blocks, or parts of blocks, of Unicode."""

SCRIPTS = [
    "红色连衣裙 修身 显瘦 2024新款", "純棉長袖襯衫(男)", "赤いドレス、Mサイズ。", "ワンピース ﾜﾝﾋﾟｰｽ",
    "빨간 드레스 여성용", "красное платье ЁЖ", "червона сукня",
    "κόκκινο φόρεμα ΣΊΣΥΦΟΣ", "ชุดสีแดงสำหรับผู้หญิง", "فستان أحمر طويل", "پیراهن قرمز ۱۲۳",
    "שמלה אדומה ארוכה", "שָׁלוֹם", "लाल पोशाक क्षत्रिय", "লাল পোশাক", "சிவப்பு உடை", "ಕೆಂಪು ಉಡುಗೆ", "წითელი კაბა",
    "կարմիր զգեստ", "ቀይ ቀሚስ", "ក្រហម", "áo dài đỏ Việt Nam", "Straße ẞ İstanbul ıI ŉ ǰ", "ﬁne ﬂare ﬃ ﬆ",
    "Ｆｕｌｌ　ｗｉｄｔｈ １２３", "𝔟𝔩𝔲𝔢 𝓭𝓻𝓮𝓼𝓼 𝟙𝟚𝟛", "ʇɹıɥs", "naïve café crème brûlée",
    "e\u0301 a\u0308\u0323 o\u0302\u0301", "ﷺ ﷽", "٣٫١٤ ½ ² Ⅷ ⅷ ①", "\u202eright to left\u202c",
    "zero\u200bwidth\u200djoin\ufeff", "soft\u00adhyphen no\u00a0break thin\u2009space ideographic\u3000space",
    "Z̸a̵l̶g̷o̴", "ſhirt Kelvin Å ngström",
]  # fmt: skip

EMOJI = [
    "👗", "🎉🎉🎉", "👩‍👩‍👧‍👦", "👩🏽‍💻", "🏳️‍🌈", "🏴‍☠️", "🏴󠁧󠁢󠁳󠁣󠁴󠁿", "🇫🇷 🇯🇵 🇺🇳", "🇫",
    "❤️ ❤ ❤︎", "1️⃣ #️⃣ *️⃣", "👍🏿👍🏻", "☕️", "©️®️™️", "😀text😀", "red 👠 shoes",
    ":-) ;) <3 xD ^_^ ¯\\_(ツ)_/¯ (╯°□°)╯︵ ┻━┻", "\u200d", "\ufe0f", "🧑‍🤝‍🧑", "🫠🪩", "👗👚👕👖🧥",
]  # fmt: skip

WEB = [
    "https://shop.example.com/p/red-dress?size=M&colour=navy%20blue#reviews",
    "http://user:pass@127.0.0.1:8080/a/b/../c", "www.example.org", "someone+tag@example.com",
    "@brand #ootd #RedDress", "ftp://x.y/z_1.tar.gz", "<b>bold</b> <br/>",
    '<a href="https://example.com?a=1&amp;b=2">link</a>', "<!-- comment -->", "&amp;", "&amp;amp;",
    "&amp;lt;p&amp;gt;", "&lt;b&gt;", "&#128512;", "&#x1F600;", "&#xD800;", "&#0;", "&nbsp;&nbsp;", "caf&eacute;",
    "&notanentity;", "AT&T", "&copy 2024", "R&amp;D", "10 &times; 20 &frac12;", "&zwj;&shy;", "%20%C3%A9",
    "\\u00e9 \\n \\t", '{"colour": "red", "sizes": [36, 38]}', "SELECT * FROM items;",
    "for i in range(10):\n    print(f'{i:>3}')", "if (a && b || !c) { return x->y; }", "a = b ** 2 // 3 % 4",
    "#!/bin/sh", "C:\\Users\\x", "$PATH ${HOME} $(ls)", "-v --long-option=value", "0xDEADBEEF 1e-05 0b1010",
    "snake_case_name camelCaseName kebab-case-name", "__init__", "<|startoftext|>", "<|endoftext|> red",
    "<start_of_text>", "<end_of_text>", "<END_OF_TEXT> red", "!<start_of_text>", "red <end_of_text> blue",
    "[CLS] red [SEP] blue [PAD] [MASK] [UNK]", "<s> red </s> <pad> <unk> <mask>", "<bos> red <eos>", "<extra_id_0>",
    "▁red▁dress", "##ing", "<0x41><0x00>", "</w>", "red</w>", "Ġred",
]  # fmt: skip

MOJIBAKE = [
    "schÃ¶n", "â€œquotedâ€\x9d", "itâ€™s", "Ã©tÃ©", "â‚¬20", "Â£10", "ðŸ‘—", "ÐºÑ€Ð°Ñ\x81Ð½Ñ‹Ð¹",
    "cafÃƒÂ©", "ï»¿bom", "\x85\x91quoted\x92", "ÃƒÆ’Ã‚Â©", "â„¢", "Å\x82ódź", "æ\x97¥æ\x9c¬", "\ufffd\ufffd",
    "NaÃ¯ve â€” dash", "uÌˆ",
]  # fmt: skip

CONTROL = [
    "", " ", "  ", "\t", "\n", "\r\n", "\x00", "a\x00b", "\x01\x02\x03", "\x1b[31mred\x1b[0m", "\x7f", "\x85",
    "\x1c\x1d\x1e\x1f", "a\x0bb\x0cc", "\u2028line\u2029paragraph", "\u00a0", "\u3000",
    "\u1680\u180e\u2000\u200a\u202f\u205f", "  spaces   everywhere  ", "tab\tand\nnewline", "\ufeff", "\u200b", "_",
    "__", "-", "'", '"', "''", "`", ".", "...", "…", "?!?!", "!!!!!!!!", "-----", "_____", "=====", "*****", "/////",
    "(((((", "a_b_c", "_a_", "a__b", "a - b", "a-b", "rock'n'roll", "o'clock",
    "don't we'll it's I'm you've he'd they're", "DON'T WE'LL IT'S", "it’s ‘quoted’ “text” «fr» „de‟", "'s", "s'",
    "'S 'T 'RE 'VE 'M 'LL 'D", "1'2\"", "a.b.c", "A.B.C.", "e.g., i.e.; etc.", "3.14159", "1,000,000.00",
    "2024-01-31T12:00:00Z", "+1 (555) 123-4567", "50/50", "x²+y²=z²", "~`!@#$%^&*()-_=+[]{}\\|;:'\",.<>/?",
    "100%cotton", "№5", "№ 5 ℃ ™ ㎏",
]  # fmt: skip


def strings() -> list[str]:
    """Returns more than 2,000 strings, with the empty one, blanks, and some of more than a thousand tokens."""
    rng = Random(4)
    listed = [*SCRIPTS, *EMOJI, *WEB, *MOJIBAKE, *CONTROL]
    return list(
        dict.fromkeys(
            [
                *listed,
                *_products(rng),
                *_characters(rng),
                *_long(rng),
                *_mixed(rng, listed),
            ]
        )
    )


def _products(rng: Random) -> list[str]:
    """Titles as shops write them: captions with sizes, prices, brands, case and punctuation of many kinds."""
    extras = [
        "size M", "SIZE XL", "EU 38 / UK 10", "€49.99", "$1,299.00", "£12", "₹999", "¥5,000", "-50%", "2-pack",
        "3 x 100g", "(NEW!)", "[SALE]", "100% cotton", "SKU: AB-12_34", "Women's", "men’s", "kids'", "T-shirt",
        "A-line", "½ sleeve", "w/ pockets", "& belt", "&amp; belt", "#1 bestseller", "★★★★☆", "30°C", "5'10\"",
    ]  # fmt: skip
    titles = []
    for garment in ALL:
        words = [garment.caption, garment.varied_caption(rng), *rng.sample(extras, 2)]
        rng.shuffle(words)
        title = rng.choice((" ", ", ", " - ", " | ", "_", "/", "  ", "\t")).join(words[: rng.randint(1, 4)])
        titles.append(rng.choice((str, str.upper, str.title, str.swapcase))(title))
    return titles


def _characters(rng: Random) -> list[str]:
    """Single characters of every block, alone, within a word and repeated; and words of one block."""
    found = []
    for first, end in BLOCKS:
        characters = [chr(rng.randrange(first, end)) for _ in range(6)]
        found += [
            *characters,
            f"red{characters[0]}dress",
            f"{characters[1]}Red {characters[2]} DRESS",
            characters[3] * 5,
        ]
        found += ["".join(chr(rng.randrange(first, end)) for _ in range(rng.randint(2, 12))) for _ in range(4)]
    return found


def _long(rng: Random) -> list[str]:
    captions = [garment.caption for garment in ALL]
    return [
        " ".join(captions[:60]), ", ".join(captions[:200]), "a" * 3000, "ab" * 700, "a " * 400, "red, " * 38,
        "é" * 500, "连衣裙" * 300, "👗" * 200, "!" * 999, "?! " * 120, "_" * 500, " " * 1000, "&amp;" * 100,
        "1234567890" * 50, *(" ".join(rng.sample(captions, count)) for count in range(2, 22)),
        *("dress " * count for count in (*range(12, 18), *range(28, 36), *range(60, 68), *range(72, 82))),
    ]  # fmt: skip


def _mixed(rng: Random, listed: list[str]) -> list[str]:
    """Strings of several kinds joined, cut anywhere, and of random characters of random blocks."""
    joined = [rng.choice((" ", "", "_", "-", "\n")).join(rng.sample(listed, rng.randint(2, 4))) for _ in range(350)]
    cut = [text[rng.randrange(len(text)) :][: rng.randint(1, 25)] for text in joined if text][:250]
    random = ["".join(chr(rng.randrange(*rng.choice(BLOCKS))) for _ in range(rng.randint(1, 40))) for _ in range(250)]
    return joined + cut + random
