"""What a model version has done since it was loaded, counted as Triton's ModelStatistics counts."""

import asyncio
import time
from collections import defaultdict
from dataclasses import dataclass, field

from lookwire_server.errors import LookwireError

# Batch sizes that are told apart.
MAX_SIZES = 4096


@dataclass(slots=True)
class Duration:
    """A number of events and their total time in nanoseconds."""

    count: int = 0
    ns: int = 0

    def add(self, seconds: float, count: int = 1) -> None:
        self.count += count
        self.ns += int(seconds * 1e9) * count


@dataclass(slots=True)
class Phases:
    """A number of executions, and the total time of each of their phases in nanoseconds."""

    count: int = 0
    input_ns: int = 0
    infer_ns: int = 0
    output_ns: int = 0

    def add(self, input_ns: int, infer_ns: int, output_ns: int, count: int = 1) -> None:
        self.count += count
        self.input_ns += input_ns * count
        self.infer_ns += infer_ns * count
        self.output_ns += output_ns * count


@dataclass(slots=True)
class Statistics:
    """Counters of one model version; changed on the event loop only.

    `inference_count` counts rows and `execution_count` counts executions, so their ratio is the mean batch size. `compute`
    counts requests, and each request of a batch adds the whole batch's time; `batches` counts executions, by their rows.
    `pending` is the number of requests that wait now. `failures` counts what `fail` counts, by reason: a LookwireError's,
    CANCELLED, or OTHER.
    """

    last_inference_ms: int = 0
    inference_count: int = 0
    execution_count: int = 0
    pending: int = 0
    success: Duration = field(default_factory=Duration)
    fail: Duration = field(default_factory=Duration)
    queue: Duration = field(default_factory=Duration)
    compute: Phases = field(default_factory=Phases)
    cache_hit: Duration = field(default_factory=Duration)
    cache_miss: Duration = field(default_factory=Duration)
    batches: dict[int, Phases] = field(default_factory=dict)
    failures: defaultdict[str, int] = field(default_factory=lambda: defaultdict(int))

    def failed(self, error: BaseException, seconds: float) -> None:
        """Counts a request that ended with `error` after `seconds`."""
        self.fail.add(seconds)
        if isinstance(error, LookwireError):
            reason = error.reason
        else:
            reason = "CANCELLED" if isinstance(error, asyncio.CancelledError) else "OTHER"
        self.failures[reason] += 1

    def executed(self, rows: int, requests: int, input: float, infer: float, output: float) -> None:
        """Counts one execution of `rows` rows for `requests` requests; durations in seconds."""
        self.last_inference_ms = int(time.time() * 1e3)
        self.inference_count += rows
        self.execution_count += 1
        phases = int(input * 1e9), int(infer * 1e9), int(output * 1e9)
        self.compute.add(*phases, requests)
        batch = self.batches.get(rows)
        if batch is None:
            if len(self.batches) >= MAX_SIZES:  # only where rows are not bounded by a batch
                return
            batch = self.batches[rows] = Phases()
        batch.add(*phases)
