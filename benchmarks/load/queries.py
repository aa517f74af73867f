"""Product searches of 3 to 12 words, as people type them into a shop; the same for the same seed."""

import random
from collections.abc import Sequence

WORDS = range(3, 13)
MODIFIERS = (
    "red blue green black white beige navy burgundy olive grey pink yellow",
    "vintage modern classic elegant casual sporty minimalist oversized slim cropped lightweight warm",
    "cotton linen leather denim silk wool suede canvas velvet cashmere polyester corduroy",
    "striped floral plain checked quilted embroidered ribbed pleated printed knitted padded washed",
    "waterproof breathable organic handmade recycled stretchy reversible foldable insulated durable windproof soft",
)
KINDS = (
    "dress shirt jacket coat sneakers boots handbag backpack jeans skirt sweater hoodie scarf hat gloves belt sandals "
    "blouse trousers shorts watch sunglasses wallet umbrella blazer cardigan leggings pyjamas swimsuit socks lamp chair "
    "table rug curtain cushion vase mirror teapot blanket"
)
DETAILS = (
    "for women;for men;for kids;for running;for the office;for a wedding;for winter;for summer holidays",
    "with pockets;with long sleeves;with a hood;with gold buttons;with laces;with a zip;with wide straps",
    "under 50 dollars;size 42;size medium;on sale;new season;like in the 70s;plus size;next day delivery",
)


def product_searches(count: int, seed: int = 0) -> list[str]:
    """So many searches, no two alike; every length from 3 to 12 words is as frequent as the others."""
    chance = random.Random(seed)
    searches: dict[str, None] = {}
    while len(searches) < count:
        searches[product_search(chance)] = None
    return list(searches)


def product_search(chance: random.Random) -> str:
    """Modifiers, the kind, details."""
    length = chance.choice(WORDS)
    details: list[str] = []
    for pool in DETAILS:
        detail = chance.choice(pool.split(";")).split()
        # Modifiers fill the rest: at least one of them, and not more than there are.
        left = length - 1 - len(details)
        if len(detail) < left and (left > len(MODIFIERS) or chance.random() < 0.5):
            details += detail
    pools = sorted(chance.sample(range(len(MODIFIERS)), length - 1 - len(details)))
    modifiers = [chance.choice(MODIFIERS[pool].split()) for pool in pools]
    return " ".join([*modifiers, chance.choice(KINDS.split()), *details])


def zipf_repeated(searches: Sequence[str], count: int, seed: int = 0) -> list[str]:
    """So many draws of the searches, the n-th of them with a frequency of 1 / n, as in the logs of a shop."""
    weights = [1 / rank for rank in range(1, len(searches) + 1)]
    return random.Random(seed).choices(searches, weights, k=count)
