"""What became of the requests of one load."""

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Seconds = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Result:
    """One element for each request, in the order of their ends; times are seconds from the begin of the load.

    `scheduled` is when a request was due: a latency counts from then, so that a generator or a server that is late makes
    latencies longer, not requests fewer. `sent` is when it was sent. `codes` are names of gRPC status codes, and
    `retry_told` says of each whether its refusal carried a RetryInfo.
    """

    scheduled: Seconds
    sent: Seconds
    finished: Seconds
    codes: NDArray[np.str_]
    retry_told: NDArray[np.bool_]

    def scheduled_within(self, start: float, stop: float) -> "Result":
        """The requests that were due in these seconds."""
        return self._of((self.scheduled >= start) & (self.scheduled < stop))

    def finished_within(self, start: float, stop: float) -> "Result":
        """The requests that ended in these seconds."""
        return self._of((self.finished >= start) & (self.finished < stop))

    def _of(self, chosen: NDArray[np.bool_]) -> "Result":
        return Result(
            self.scheduled[chosen],
            self.sent[chosen],
            self.finished[chosen],
            self.codes[chosen],
            self.retry_told[chosen],
        )

    @property
    def answered(self) -> "Result":
        """Those with status OK."""
        return self._of(self.codes == "OK")

    @property
    def counts(self) -> dict[str, int]:
        """How many requests ended with which code."""
        return dict(Counter[str](self.codes.tolist()))

    @property
    def failures(self) -> int:
        """How many requests ended with another code than OK."""
        return len(self.codes) - self.counts.get("OK", 0)

    def throughput(self, start: float, stop: float) -> float:
        """Requests with status OK a second between these seconds: the slope of their count over time.

        Batches end as bursts, of which a plain count has one more or one less by chance. Raises ValueError where too few
        ended to tell.
        """
        finished = np.sort(self.answered.finished_within(start, stop).finished)
        if len(finished) < 2 or finished[-1] - finished[0] < (stop - start) / 2:
            raise ValueError(
                f"{len(finished)} requests were answered in {stop - start:g} s, in a burst or none: too few to tell how many "
                f"a second; of all that were sent: {self.counts}"
            )
        return float(np.polyfit(finished, np.arange(len(finished)), 1)[0])

    def goodput(self, start: float, stop: float) -> float:
        """Requests with status OK that ended in these seconds, a second: their plain count."""
        return len(self.answered.finished_within(start, stop).codes) / (stop - start)

    def latency(self, percent: float) -> float:
        """Seconds within which so many percent of the requests with status OK ended; NaN if there are none."""
        return percentile(self.answered.finished - self.answered.scheduled, percent)

    def lateness(self, percent: float) -> float:
        """Seconds within which so many percent of the requests were sent after they were due."""
        return percentile(self.sent - self.scheduled, percent)


def percentile(values: NDArray[Any], percent: float) -> float:
    return float(np.percentile(values, percent)) if len(values) else float("nan")
