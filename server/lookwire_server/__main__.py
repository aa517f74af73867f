"""`lookwire-server`: reads the settings, sets up the log, and serves; `lookwire-server check` reads a repository only."""

import gc
import os
import sys
from pathlib import Path

# Products of matrices are small here. OpenBLAS would split them among threads of its own, which go on spinning for a while on
# the cores that inference needs; it reads this when numpy is imported.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import structlog
import uvloop

from lookwire_server import log
from lookwire_server.app import serve
from lookwire_server.command_line import WrongCommandLine, parse
from lookwire_server.encoding.backend import EncoderBackend
from lookwire_server.encoding.encoder import TextCache
from lookwire_server.encoding.images import ImageDecoder, ImageLimits
from lookwire_server.errors import LookwireError
from lookwire_server.models.backends.ensemble import EnsembleBackend
from lookwire_server.models.backends.identity import IdentityBackend
from lookwire_server.models.check import check_repository

# How long a thread may keep the interpreter that another waits for, as a search does a dozen times. The 99th
# percentile of searches beside upserts is 30 ms with Python's own 5 ms and 20 with this; embedding and upserts are as fast.
SWITCH_SECONDS = 1e-4


def main() -> None:
    """Serves until told to stop; exit status 2 for wrong settings, 1 for a start that failed."""
    arguments = sys.argv[1:]
    if arguments[:1] == ["check"]:
        sys.exit(check(arguments[1:]))
    try:
        command_line = parse(arguments)
    except WrongCommandLine as error:
        for problem in error.problems:
            print(f"lookwire-server: {problem}", file=sys.stderr)
        sys.exit(2)
    settings = command_line.settings
    levels = log.Levels(settings.log_info, settings.log_warning, settings.log_error, settings.log_verbose)
    log.configure(levels, settings.log_format)
    for flag in command_line.without_effect:
        structlog.get_logger().warning(f"{flag} has no effect here")
    sys.setswitchinterval(SWITCH_SECONDS)
    # What the imports made is here for good. A full collection would look at all of it, and nothing else runs for 50 to 90 ms.
    gc.freeze()
    try:
        uvloop.run(serve(settings, levels))
    except LookwireError as error:
        sys.exit(f"lookwire-server: {error}")


def check(arguments: list[str]) -> int:
    """Says what is wrong with the models of a repository; the exit status is 0 if nothing is, 1 if something is, 2 for misuse."""
    if len(arguments) != 1 or arguments[0].startswith("-"):
        helping = arguments in (["--help"], ["-h"])
        print("usage: lookwire-server check REPOSITORY", file=sys.stdout if helping else sys.stderr)
        return 0 if helping else 2
    settings = parse([]).settings
    decoder = ImageDecoder(1, ImageLimits(settings.max_image_bytes, settings.max_image_pixels))
    try:
        return check_repository(
            Path(arguments[0]),
            {
                "encoder": EncoderBackend(decoder, settings.max_text_bytes, settings.allow_ungated, TextCache(0)),
                "ensemble": EnsembleBackend(),
                "identity": IdentityBackend(),
            },
        )
    finally:
        decoder.close()


if __name__ == "__main__":
    main()
