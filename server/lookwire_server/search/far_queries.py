"""Queries of another kind than the items, such as texts among images, to measure an index and its scores with."""

import numpy as np

from lookwire_server.search.vectors import Matrix, Vector

# The newest are kept.
SEEN_QUERIES = 256
# Fewer than these say little about the queries to come.
ENOUGH_QUERIES = 64


class FarQueries:
    """The queries that came last, none of them twice, and probes to go with them while they are few. Any thread may read them."""

    def __init__(self) -> None:
        self._seen: dict[bytes, Vector] = {}
        self._probes: Matrix | None = None

    @property
    def want_probes(self) -> bool:
        """Whether probes would be used, and there are none."""
        return self._probes is None and len(self._seen) < ENOUGH_QUERIES

    @property
    def are_enough(self) -> bool:
        """Whether so many have been seen that probes are not used any more."""
        return len(self._seen) >= ENOUGH_QUERIES

    def add(self, query: Vector) -> None:
        """Takes a query of length 1; by the event loop."""
        content = query.tobytes()
        self._seen.pop(content, None)
        self._seen[content] = query
        if len(self._seen) > SEEN_QUERIES:
            del self._seen[next(iter(self._seen))]

    def set_probes(self, probes: Matrix) -> None:
        """Takes vectors [n, d] of length 1 that queries may be like."""
        self._probes = probes

    def matrix(self) -> Matrix | None:
        """Returns the queries [n, d], with the probes while they are few; None if there is nothing."""
        seen = list(self._seen.values())
        rows = [] if not seen else [np.stack(seen)]
        if len(seen) < ENOUGH_QUERIES and self._probes is not None:
            rows.append(self._probes)
        return np.concatenate(rows) if rows else None
