"""What people call a garment: one canonical caption each, and varied ones for training."""

from collections.abc import Sequence
from random import Random

KIND_WORDS: dict[str, tuple[str, ...]] = {
    "t-shirt": ("t-shirt", "t-shirt", "tee", "tshirt"),
    "shirt": ("shirt", "shirt", "button-up shirt", "long-sleeved shirt"),
    "dress": ("dress", "dress", "summer dress", "gown"),
    "skirt": ("skirt", "skirt", "flared skirt"),
    "trousers": ("trousers", "trousers", "pants", "jeans"),
    "shorts": ("shorts", "shorts", "short pants"),
    "coat": ("coat", "coat", "overcoat", "jacket"),
    "hat": ("hat", "hat", "brimmed hat", "fedora"),
    "shoe": ("shoe", "shoe", "sneaker", "trainer"),
    "bag": ("bag", "bag", "handbag", "purse"),
}
PLURAL_WORDS: dict[str, tuple[str, ...]] = {
    "t-shirt": ("t-shirts", "tees"),
    "shirt": ("shirts", "button-up shirts"),
    "dress": ("dresses", "gowns"),
    "skirt": ("skirts",),
    "trousers": ("trousers", "pants", "jeans"),
    "shorts": ("shorts", "short pants"),
    "coat": ("coats", "overcoats", "jackets"),
    "hat": ("hats", "fedoras"),
    "shoe": ("shoes", "sneakers", "trainers"),
    "bag": ("bags", "handbags", "purses"),
}
COLOUR_WORDS: dict[str, tuple[str, ...]] = {
    "red": ("red",),
    "orange": ("orange",),
    "yellow": ("yellow",),
    "green": ("green",),
    "turquoise": ("turquoise", "turquoise", "teal"),
    "blue": ("blue",),
    "purple": ("purple", "purple", "violet"),
    "pink": ("pink",),
    "brown": ("brown",),
    "black": ("black",),
    "white": ("white",),
    "grey": ("grey", "gray"),
}
PATTERN_WORDS: dict[str, tuple[str, ...]] = {
    "plain": ("plain", "plain", "solid"),
    "striped": ("striped", "striped", "stripy"),
    "dotted": ("dotted", "dotted", "spotted", "polka-dot"),
    "checked": ("checked", "checked", "checkered", "plaid"),
}
PATTERN_PHRASES: dict[str, tuple[str, ...]] = {
    "plain": ("without a pattern", "in one colour"),
    "striped": ("with stripes",),
    "dotted": ("with dots", "with polka dots"),
    "checked": ("with checks",),
}
_PLURAL = ("trousers", "shorts")
_FRAMES = (
    "{}",
    "{}",
    "{}",
    "a photo of {}",
    "a picture of {}",
    "I want {}",
    "{} for sale",
    "show me {}",
    "{}, studio shot",
)


def article(phrase: str) -> str:
    """Returns the phrase with "a" or "an" before it."""
    return f"an {phrase}" if phrase[0] in "aeiou" else f"a {phrase}"


def canonical(kind: str, colour: str, pattern: str) -> str:
    """Returns the one caption that names all three, such as "a red striped dress" or "plain blue trousers"."""
    words = f"plain {colour} {kind}" if pattern == "plain" else f"{colour} {pattern} {kind}"
    return words if kind in _PLURAL else article(words)


def varied(rng: Random, kind: str | None, colour: str | None, pattern: str | None) -> str:
    """Returns a caption in casual words that names those of the three that are given; at least one must be."""
    plural = kind in _PLURAL or rng.random() < 0.3
    if kind:
        thing = rng.choice((PLURAL_WORDS if plural else KIND_WORDS)[kind])
    else:
        thing = rng.choice(
            ("things", "clothes", "items") if plural else ("thing", "garment", "item", "piece of clothing")
        )
    before = [rng.choice(COLOUR_WORDS[colour])] if colour else []
    after = ""
    if pattern and rng.random() < 0.7:
        before.append(rng.choice(PATTERN_WORDS[pattern]))
    elif pattern:
        after = " " + rng.choice(PATTERN_PHRASES[pattern])
    rng.shuffle(before)
    words = [*before, thing]
    if rng.random() < 0.1:
        return _shuffled(rng, words) + after
    phrase = " ".join(words) + after
    bare = rng.random() < 0.35
    return rng.choice(_FRAMES).format(phrase if bare or plural else article(phrase))


def _shuffled(rng: Random, words: Sequence[str]) -> str:
    return " ".join(rng.sample(words, len(words)))
