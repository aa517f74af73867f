"""What an execution costs: a line over its size, learnt from those before."""

from math import inf

# Each execution counts this much less than the next: those of the last seconds decide.
MEMORY = 0.98
# A lone stall of the machine is not believed at once: an execution counts as at most so many times what was expected.
DISBELIEF = 4.0
# Size never costs nothing: seconds, far below what a clock sees.
LEAST = 1e-12


class Cost:
    """Seconds of an execution = `fixed` + `slope` x size, where the size is the sum of its rows' lengths.

    A line describes text towers to a few hundredths (ViT-B/32 on 2 cores: 5 ms + 0.37 ms a token, from 8 to 512 tokens). It is
    fitted by least squares of the relative error. It is `known` once executions of two sizes were seen; `fixed` is taken for 0
    before.
    """

    def __init__(self) -> None:
        self.fixed = 0.0
        self.slope = 0.0
        self.known = False
        self._sums = (0.0, 0.0, 0.0, 0.0, 0.0)

    def learn(self, size: int, seconds: float) -> None:
        """Takes in an execution of `size` that took so many seconds."""
        if self.known:
            seconds = min(seconds, DISBELIEF * self.seconds(size))
        # Divided by the size, the line is y = slope + fixed x with x = 1 / size and y = seconds / size.
        x, y = 1 / size, seconds / size
        n, sum_x, sum_y, sum_xx, sum_xy = (MEMORY * value for value in self._sums)
        n, sum_x, sum_y, sum_xx, sum_xy = n + 1, sum_x + x, sum_y + y, sum_xx + x * x, sum_xy + x * y
        self._sums = n, sum_x, sum_y, sum_xx, sum_xy
        spread = n * sum_xx - sum_x * sum_x
        self.known = spread > 1e-3 * sum_x * sum_x
        fixed = (n * sum_xy - sum_x * sum_y) / spread if self.known else 0.0
        self.fixed = min(max(0.0, fixed), sum_y / sum_x)
        self.slope = max((sum_y - self.fixed * sum_x) / n, LEAST)

    def seconds(self, size: float) -> float:
        """How long an execution of this size is expected to take; 0 while nothing is known."""
        return self.fixed + self.slope * size

    def size(self, seconds: float) -> float:
        """The largest size that is expected to take no longer; 0 if nothing is known."""
        return (seconds - self.fixed) / self.slope if self.slope else 0.0

    @property
    def overhead(self) -> float:
        """The size that costs as much as an execution's beginning; infinite while there is no line."""
        return self.fixed / self.slope if self.known else inf
