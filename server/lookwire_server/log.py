"""The server's log: one line an event on stderr; stdout holds the READY line only."""

import logging
import sys
from dataclasses import dataclass
from typing import Literal

import structlog
from structlog.typing import EventDict

# What each of structlog's levels is switched by.
SWITCHES = {"debug": "verbose", "info": "info", "warning": "warning", "error": "error", "critical": "error"}


@dataclass
class Levels:
    """Which events are written; a change holds from the next event on. `verbose` 1 or more: details too."""

    info: bool = True
    warning: bool = True
    error: bool = True
    verbose: int = 0

    def set(self, *, info: bool, warning: bool, error: bool, verbose: int) -> None:
        self.info, self.warning, self.error, self.verbose = info, warning, error, verbose

    def __call__(self, logger: object, method: str, event: EventDict) -> EventDict:
        """A processor of structlog's."""
        if not getattr(self, SWITCHES[method]):
            raise structlog.DropEvent
        return event


def configure(levels: Levels, form: Literal["console", "json"]) -> None:
    """Sends the events of `levels` to stderr."""
    renderer = (
        structlog.processors.JSONRenderer()
        if form == "json"
        else structlog.dev.ConsoleRenderer(
            colors=sys.stderr.isatty(),
            exception_formatter=structlog.dev.plain_traceback,  # the richer one prints locals: callers' data
        )
    )
    structlog.configure(
        processors=[
            levels,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper("iso"),
            *([structlog.processors.format_exc_info] if form == "json" else []),
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.DEBUG),
        logger_factory=structlog.WriteLoggerFactory(sys.stderr),
    )
