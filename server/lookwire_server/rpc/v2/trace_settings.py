"""The trace extension: which requests leave their stage times in the log."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import structlog

from lookwire_server.errors import InvalidArgument, Unimplemented

log = structlog.get_logger()

Values = tuple[str, ...]

LEVELS = ("OFF", "TIMESTAMPS", "TENSORS")
DEFAULTS: dict[str, Values] = {
    "trace_level": ("OFF",),
    "trace_rate": ("1000",),
    "trace_count": ("-1",),
    "log_frequency": ("0",),
}
FIXED: dict[str, Values] = {"trace_file": ("",), "trace_mode": ("triton",)}
GLOBAL = ""


@dataclass(slots=True)
class Sampler:
    """Picks one of every `rate` requests, `left` at most (negative: without end)."""

    on: bool
    rate: int
    left: int
    seen: int = 0

    def take(self) -> bool:
        """Whether this request is traced."""
        if not self.on or not self.left:
            return False
        self.seen += 1
        if self.seen % self.rate:
            return False
        self.left -= 1
        return True


class TraceSettings:
    """Triton's settings, for all models and for single ones; what a model does not set it has from all.

    With trace_level TIMESTAMPS one of every `trace_rate` requests is logged as the event "trace", `trace_count` in all (-1:
    without end). Every change starts the counts anew. TENSORS and log_frequency are kept and have no effect.
    """

    def __init__(self) -> None:
        self._changed: dict[str, dict[str, Values]] = {GLOBAL: {}}
        self._samplers: dict[str, Sampler] = {}
        self.active = False
        self._renew()

    def settings(self, model: str = GLOBAL) -> dict[str, Values]:
        """What holds for a model, or for all that set nothing of their own."""
        return {**DEFAULTS, **FIXED, **self._changed[GLOBAL], **self._changed.get(model, {})}

    def update(self, model: str, changes: Mapping[str, Sequence[str]]) -> None:
        """Sets values for a model or for all; no values take a setting back. Changes all or, with an error, nothing."""
        checked = {name: check(name, tuple(values)) for name, values in changes.items()}
        changed = {**self._changed.get(model, {}), **checked}
        changed = {name: values for name, values in changed.items() if values}
        if changed or model == GLOBAL:
            self._changed[model] = changed
        else:
            self._changed.pop(model, None)
        if "TENSORS" in checked.get("trace_level", ()):
            log.warning("trace_level TENSORS has no effect: tensors are not logged", model=model or "all")
        self._renew()

    def sample(self, model: str) -> bool:
        """Counts a request and says whether it is traced."""
        return self._samplers.get(model, self._samplers[GLOBAL]).take()

    def _renew(self) -> None:
        self._samplers = {}
        for model in self._changed:
            settings = self.settings(model)
            on = "TIMESTAMPS" in settings["trace_level"]
            self._samplers[model] = Sampler(on, int(settings["trace_rate"][0]), int(settings["trace_count"][0]))
        self.active = any(sampler.on for sampler in self._samplers.values())


def check(name: str, values: Values) -> Values:
    """The values of a setting, empty to take it back; an error if they are wrong."""
    if name == "trace_file":
        raise Unimplemented(
            "trace file location can not be updated through network protocol: traces go to the server's log"
        )
    if name == "trace_mode":
        raise Unimplemented(
            "trace mode can not be updated through network protocol: it is 'triton', in the server's log"
        )
    if name not in DEFAULTS:
        raise InvalidArgument(f"unknown trace setting '{name}', expected one of {', '.join(DEFAULTS)}")
    if not values:
        return ()
    if name == "trace_level":
        return levels(values)
    if len(values) > 1:
        raise InvalidArgument(f"expect only 1 value for '{name}', got {len(values)}")
    least, most = RANGES[name]
    text = values[0]
    if not (text.removeprefix("-").isdecimal() and len(text) < 20 and least <= int(text) <= most):
        raise InvalidArgument(f"Unable to parse '{name}', expected an integer from {least} to {most}, got: {text[:64]}")
    return (str(int(text)),)


RANGES = {"trace_rate": (1, 2**32 - 1), "trace_count": (-1, 2**31 - 1), "log_frequency": (0, 2**32 - 1)}


def levels(values: Values) -> Values:
    """The trace levels, in Triton's order; OFF stands alone."""
    if unknown := [value for value in values if value not in LEVELS]:
        raise InvalidArgument(f"Unable to parse 'trace_level', expected {', '.join(LEVELS)}, got: {unknown[0][:64]}")
    if "OFF" in values and set(values) != {"OFF"}:
        raise InvalidArgument("Conflicting trace levels: OFF and others are given")
    return tuple(level for level in LEVELS if level in values)
