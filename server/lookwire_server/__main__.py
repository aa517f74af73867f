"""`lookwire-server`: reads the settings, sets up the log, and serves."""

import logging
import sys

import structlog
import uvloop
from pydantic import ValidationError
from pydantic_settings import CliApp

from lookwire_server.app import serve
from lookwire_server.errors import LookwireError
from lookwire_server.settings import Settings


def main() -> None:
    """Serves until told to stop; exit status 2 for wrong settings, 1 for a start that failed."""
    try:
        settings = CliApp.run(Settings)
    except ValidationError as error:
        for problem in error.errors():
            name = "_".join(map(str, problem["loc"]))
            flag = "--" + name.replace("_", "-")
            print(
                f"lookwire-server: {flag} (LOOKWIRE_{name.upper()}): {problem['msg']}, got {problem.get('input')!r}",
                file=sys.stderr,
            )
        sys.exit(2)
    configure_log(settings)
    try:
        uvloop.run(serve(settings))
    except LookwireError as error:
        sys.exit(f"lookwire-server: {error}")


def configure_log(settings: Settings) -> None:
    """Logs go to stderr, one line an event; stdout holds the READY line only."""
    renderer = (
        structlog.processors.JSONRenderer()
        if settings.log_format == "json"
        else structlog.dev.ConsoleRenderer(
            colors=sys.stderr.isatty(),
            exception_formatter=structlog.dev.plain_traceback,  # the richer one prints locals: callers' data
        )
    )
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper("iso"),
            *([structlog.processors.format_exc_info] if settings.log_format == "json" else []),
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.WriteLoggerFactory(sys.stderr),
    )


if __name__ == "__main__":
    main()
