"""When the requests of an open load are due: seconds from its begin, ascending."""

import numpy as np

from benchmarks.load.result import Seconds


def poisson(rate: float, seconds: float, seed: int) -> Seconds:
    """Arrivals that know nothing of each other, `rate` a second on average."""
    gaps = np.random.default_rng(seed).exponential(1 / rate, int(rate * seconds * 1.5) + 100)
    times: Seconds = np.cumsum(gaps)
    return times[times < seconds]
