"""How one search was carried out."""

from dataclasses import dataclass
from enum import StrEnum


class Method(StrEnum):
    EXACT = "exact"  # the query was compared with every matching item in a scan
    GATHER = "gather"  # the few matching items were collected first; as exact as a scan


@dataclass(frozen=True, slots=True)
class Plan:
    """The method, the number of items, and how many of them matched the filter."""

    method: Method
    item_count: int
    match_count: int
