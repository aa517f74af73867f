"""Histograms that take 0.25 microseconds an observation; those of prometheus-client take 0.8, and a small call makes four."""

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from itertools import accumulate
from threading import Lock

from prometheus_client import CollectorRegistry
from prometheus_client.core import HistogramMetricFamily
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString


class Histogram:
    """What was observed under one set of label values, by bucket; any thread may observe."""

    __slots__ = ("_bounds", "_counts", "_lock", "_sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0
        self._lock = Lock()

    def observe(self, value: float) -> None:
        """Counts a value in the first bucket whose upper bound is not below it."""
        with self._lock:
            self._counts[bisect_left(self._bounds, value)] += 1
            self._sum += value

    def read(self) -> tuple[list[int], float]:
        """How many values each bucket and those before it hold, the last without a bound; and the sum of all."""
        with self._lock:
            return list(accumulate(self._counts)), self._sum


class HistogramFamily(Collector):
    """The histograms of one name, by the values of their labels; `bounds` are the ascending upper bounds of the buckets."""

    def __init__(
        self, name: str, help: str, bounds: Sequence[float], labels: Sequence[str], registry: CollectorRegistry
    ) -> None:
        self._name = name
        self._help = help
        self._bounds = tuple(bounds)
        self._labels = labels
        self._histograms: dict[tuple[str, ...], Histogram] = {}
        registry.register(self)

    def labels(self, *values: str) -> Histogram:
        """The histogram of these values of the labels, in the order of their names; any thread may ask."""
        if len(values) != len(self._labels):
            raise ValueError(f"{self._name} has the labels {self._labels}, got {values}")
        return self._histograms.setdefault(values, Histogram(self._bounds))

    def collect(self) -> Iterable[HistogramMetricFamily]:
        family = HistogramMetricFamily(self._name, self._help, labels=self._labels)
        bounds = [*map(floatToGoString, self._bounds), "+Inf"]
        for values, histogram in list(self._histograms.items()):
            counts, total = histogram.read()
            family.add_metric(values, list(zip(bounds, counts, strict=True)), total)
        return [family]
