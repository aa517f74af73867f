"""How one search was carried out."""

from dataclasses import dataclass
from enum import StrEnum


class Method(StrEnum):
    EXACT = "exact"  # the query was compared with every matching item in a scan
    GATHER = "gather"  # the few matching items were collected first; as exact as a scan
    IVF = "ivf"  # the matching items of the nearest cells of an inverted file were compared
    HNSW = "hnsw"  # a graph of near neighbours was walked


@dataclass(frozen=True, slots=True)
class Plan:
    """The method, the number of items, how many of them matched the filter, and the figures that go with the method.

    `measured_recall` is None where there were no queries of the kind to measure with.
    """

    method: Method
    item_count: int
    match_count: int
    generation: int = 0
    indexed_count: int = 0
    cells: int = 0
    probes: int = 0
    ef_search: int = 0
    measured_recall: float | None = 1.0
    batch_size: int = 1
    reason: str = "every item that matches is compared: the collection has no approximate index"
