"""The gauges of a collection, which are read when they are asked for."""

import math

from prometheus_client import Gauge

from lookwire_server.metrics import Metrics
from lookwire_server.search.collection import Collection
from lookwire_server.search.statistics import vector_bytes

DIRECTIONS = ("near", "far")
PARTS = ("vectors", "rows", "disk")


def add(metrics: Metrics, collection: Collection) -> None:
    """Exports the figures of a collection under its own name."""
    name = collection.name

    def generation() -> float:
        return collection.recall.generation

    metrics.collection_generation.labels(name).set_function(generation)
    recall = metrics.collection_recall
    recall.labels(name, "near").set_function(lambda: _number(collection.recall.near))
    recall.labels(name, "far").set_function(lambda: _number(collection.recall.far))
    nbytes = metrics.collection_bytes
    nbytes.labels(name, "vectors").set_function(lambda: vector_bytes(collection.index.view))
    nbytes.labels(name, "rows").set_function(lambda: collection.index.view.rows.row_bytes)
    nbytes.labels(name, "disk").set_function(lambda: collection.generations.disk_bytes)


def remove(metrics: Metrics, name: str) -> None:
    """Removes all gauges of a collection."""
    metrics.collection_items.remove(name)
    metrics.collection_generation.remove(name)
    _remove(metrics.collection_recall, name, DIRECTIONS)
    _remove(metrics.collection_bytes, name, PARTS)


def _remove(gauge: Gauge, name: str, values: tuple[str, ...]) -> None:
    for value in values:
        gauge.remove(name, value)


def _number(recall: float | None) -> float:
    return math.nan if recall is None else recall
