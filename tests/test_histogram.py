"""The histograms of /metrics."""

from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Histogram, generate_latest

from lookwire_server.histogram import HistogramFamily

BOUNDS = (0.001, 0.5, 1.0, 20.0)


@given(st.dictionaries(st.sampled_from("abc"), st.lists(st.sampled_from(BOUNDS) | st.floats(0, 30))))
def test_a_page_reads_as_that_of_prometheus_client(observed: dict[str, list[float]]) -> None:
    """Buckets, counts and sums are those of the library's own histogram; only the times of making are left out."""
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    family = HistogramFamily("seconds", "Time of a thing.", BOUNDS, ["thing"], ours)
    expected = Histogram("seconds", "Time of a thing.", ["thing"], buckets=BOUNDS, registry=theirs)
    for thing, values in observed.items():
        for value in values:
            family.labels(thing).observe(value)
            expected.labels(thing).observe(value)
        family.labels(thing)
        expected.labels(thing)
    lines = generate_latest(theirs).decode().splitlines()
    assert generate_latest(ours).decode().splitlines() == [line for line in lines if "_created" not in line]


def test_observations_of_many_threads_are_all_counted() -> None:
    """No observation is lost where threads make them at once."""
    registry = CollectorRegistry()
    histogram = HistogramFamily("seconds", "Time.", BOUNDS, [], registry).labels()
    with ThreadPoolExecutor(8) as pool:
        for number in range(8):
            pool.submit(lambda number: [*map(histogram.observe, [number] * 5_000)], number)
    counts, total = histogram.read()
    assert counts[-1] == 8 * 5_000
    assert total == 5_000 * sum(range(8))


def test_labels_are_those_declared() -> None:
    """Values for more or fewer labels than there are are a mistake of the caller's."""
    family = HistogramFamily("seconds", "Time.", BOUNDS, ["method", "code"], CollectorRegistry())
    with pytest.raises(ValueError, match="method"):
        family.labels("Embed")
