"""Triton's `nv_*` metrics, so that dashboards made for Triton work.

Their names and labels are Triton's to the letter: counters without the `_total` that prometheus-client would add, whole
numbers without a fraction, labels in alphabetical order.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from lookwire_server.models.model import Model
from lookwire_server.models.repository import Repository

# The reason of a LookwireError -> the reason of the failure counter. The first four are Triton's; Triton counts what the
# others count nowhere. Any reason that is not here is OTHER.
REASONS = {
    "QUEUE_TIMEOUT": "REJECTED",
    "CANCELLED": "CANCELED",
    "MODEL_FAILURE": "BACKEND",
    "OTHER": "OTHER",
    "QUEUE_FULL": "QUEUE_FULL",
    "DEADLINE_EXCEEDED": "DEADLINE_EXCEEDED",
    "INVALID_ARGUMENT": "INVALID_ARGUMENT",
    "INVALID_IMAGE": "INVALID_ARGUMENT",
    "INVALID_VECTOR": "INVALID_ARGUMENT",
    "UNAVAILABLE": "UNAVAILABLE",
}


@dataclass(frozen=True, slots=True)
class Family:
    """A metric of every model version; `cached`: only of those with a response cache."""

    name: str
    kind: str
    help: str
    value: Callable[[Model], int]
    cached: bool = False


FAMILIES = (
    Family("nv_inference_request_success", "counter", "Requests answered.", lambda m: m.statistics.success.count),
    Family(
        "nv_inference_count",
        "counter",
        "Inferences: rows that were executed, answers from the response cache excluded.",
        lambda m: m.statistics.inference_count,
    ),
    Family(
        "nv_inference_exec_count",
        "counter",
        "Executions of the model, a batch each.",
        lambda m: m.statistics.execution_count,
    ),
    Family(
        "nv_inference_request_duration_us",
        "counter",
        "Time of the requests answered, from end to end, in microseconds.",
        lambda m: m.statistics.success.ns // 1000,
    ),
    Family(
        "nv_inference_queue_duration_us",
        "counter",
        "Time that requests waited to be executed, in microseconds.",
        lambda m: m.statistics.queue.ns // 1000,
    ),
    Family(
        "nv_inference_compute_input_duration_us",
        "counter",
        "Time taken to make batches of inputs, in microseconds; each request of a batch adds the whole of it.",
        lambda m: m.statistics.compute.input_ns // 1000,
    ),
    Family(
        "nv_inference_compute_infer_duration_us",
        "counter",
        "Time of executions, in microseconds; each request of a batch adds the whole of it.",
        lambda m: m.statistics.compute.infer_ns // 1000,
    ),
    Family(
        "nv_inference_compute_output_duration_us",
        "counter",
        "Time taken to share out outputs, in microseconds; each request of a batch adds the whole of it.",
        lambda m: m.statistics.compute.output_ns // 1000,
    ),
    Family(
        "nv_inference_pending_request_count",
        "gauge",
        "Requests that wait to be executed.",
        lambda m: m.statistics.pending,
    ),
    Family(
        "nv_cache_num_hits_per_model",
        "counter",
        "Requests answered from the response cache.",
        lambda m: m.statistics.cache_hit.count,
        cached=True,
    ),
    Family(
        "nv_cache_num_misses_per_model",
        "counter",
        "Requests that the response cache had no answer to.",
        lambda m: m.statistics.cache_miss.count,
        cached=True,
    ),
    Family(
        "nv_cache_hit_duration_per_model",
        "counter",
        "Time of look-ups that found an answer, in microseconds.",
        lambda m: m.statistics.cache_hit.ns // 1000,
        cached=True,
    ),
    Family(
        "nv_cache_miss_duration_per_model",
        "counter",
        "Time of look-ups that found none and of keeping the answer, in microseconds.",
        lambda m: m.statistics.cache_miss.ns // 1000,
        cached=True,
    ),
)


class TritonMetrics:
    """Writes the metrics of all models that answer, in Prometheus's text format, when it is asked for them.

    Nothing is counted here: the figures are those of the models' statistics. It may be called from any thread, while models
    come and go: the repository replaces its lists rather than change them. `cached`: the server has a response cache.
    """

    def __init__(self, repository: Repository, *, cached: bool, proc: Path = Path("/proc")) -> None:
        self._repository = repository
        self._cached = cached
        self._processor = Processor(proc)

    def text(self) -> str:
        """Every family, one line a sample; empty families are left out."""
        models = self._repository.models()
        labels = {model: model_labels(model) for model in models}
        lines: list[str] = []
        for family in FAMILIES:
            rows = [
                (labels[model], family.value(model))
                for model in models
                if not family.cached or (self._cached and model.config.response_cache)
            ]
            lines += block(family.name, family.kind, family.help, rows)
        failures = [
            ({**labels[model], "reason": reason}, count) for model in models for reason, count in failed(model).items()
        ]
        lines += block("nv_inference_request_failure", "counter", "Requests that failed, by reason.", failures)
        seconds = self._repository.load_seconds
        loads = [(labels[model], seconds.get((model.config.name, model.version), 0.0)) for model in models]
        lines += block("nv_model_load_duration_secs", "gauge", "Time that the load took, in seconds.", loads)
        return "".join(f"{line}\n" for line in lines + self._processor.lines())


def failed(model: Model) -> dict[str, int]:
    """The failed requests of a model by Triton's reason, all reasons included."""
    counts = dict.fromkeys(REASONS.values(), 0)
    for reason, count in list(model.statistics.failures.items()):  # a copy in one step: the event loop adds to it
        counts[REASONS.get(reason, "OTHER")] += count
    return counts


def model_labels(model: Model) -> dict[str, str]:
    """The labels of all samples of a model."""
    tags = {f"_{name}": value for name, value in model.config.metric_tags.items()}
    return {"model": model.config.name, "version": str(model.version), **tags}


def block(name: str, kind: str, help: str, samples: Iterable[tuple[Mapping[str, str], float]]) -> list[str]:
    """The lines of a family; none if it has no samples."""
    lines = [f"{name}{{{written(labels)}}} {value}" if labels else f"{name} {value}" for labels, value in samples]
    return [f"# HELP {name} {help}", f"# TYPE {name} {kind}", *lines] if lines else []


def written(labels: Mapping[str, str]) -> str:
    """Labels in alphabetical order, with values escaped."""
    return ",".join(f'{name}="{escaped(labels[name])}"' for name in sorted(labels))


def escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


class Processor:
    """The machine's processors and memory, from /proc; where there is no /proc it says nothing."""

    def __init__(self, proc: Path) -> None:
        self._proc = proc
        self._busy, self._all = self._ticks()
        self._share = 0.0

    def lines(self) -> list[str]:
        """The share of processor time in use since the last call, 0 to 1, and the bytes of memory."""
        busy, total = self._ticks()
        if total > self._all:
            self._share = (busy - self._busy) / (total - self._all)
            self._busy, self._all = busy, total
        memory = self._memory()
        if not total or not memory:
            return []
        size, available = memory["MemTotal"], memory["MemAvailable"]
        figures: tuple[tuple[str, str, float], ...] = (
            (
                "nv_cpu_utilization",
                "Share of the machine's processor time in use since the last scrape, 0 to 1.",
                self._share,
            ),
            ("nv_cpu_memory_total_bytes", "Memory of the machine, in bytes.", size),
            ("nv_cpu_memory_used_bytes", "Memory of the machine in use, in bytes.", size - available),
        )
        return [line for name, help, value in figures for line in block(name, "gauge", help, [({}, value)])]

    def _ticks(self) -> tuple[int, int]:
        """Processor time in use and in all since the machine's start; zeros without /proc."""
        try:
            fields = (self._proc / "stat").read_text().split("\n", 1)[0].split()[1:9]
        except OSError:
            return 0, 0
        ticks = [int(field) for field in fields]
        return sum(ticks) - ticks[3] - ticks[4], sum(ticks)  # all but idle and waiting for disks

    def _memory(self) -> dict[str, int]:
        try:
            text = (self._proc / "meminfo").read_text()
        except OSError:
            return {}
        rows = (line.split() for line in text.splitlines())
        return {row[0].rstrip(":"): int(row[1]) * 1024 for row in rows if len(row) > 2}
