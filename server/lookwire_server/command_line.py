"""The server's command line: a flag for each setting, and the flags of NVIDIA Triton that have no effect here."""

import argparse
import difflib
import typing
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from lookwire_server.settings import Settings

# Headings of --help: the first setting of each group.
HEADINGS = {
    "model_repository": "models",
    "data_dir": "collections",
    "id": "gRPC",
    "grpc_use_ssl": "TLS",
    "allow_http": "HTTP",
    "allow_metrics": "metrics",
    "max_inflight_bytes": "limits",
    "drain_secs": "stopping",
    "log_format": "log",
}
ALIASES = {"model_repository": "--model-store"}
# What a Triton command line may say and this server has no use for.
WITHOUT_EFFECT = (
    "--allow-cpu-metrics",
    "--allow-gpu-metrics",
    "--backend-directory",
    "--buffer-manager-thread-count",
    "--cache-directory",
    "--cuda-memory-pool-byte-size",
    "--enable-peer-access",
    "--grpc-infer-allocation-pool-size",
    "--grpc-infer-response-compression-level",
    "--grpc-infer-thread-count",
    "--grpc-max-response-pool-size",
    "--host-policy",
    "--http-thread-count",
    "--log-file",
    "--metrics-config",
    "--metrics-interval-ms",
    "--min-supported-compute-capability",
    "--model-load-gpu-limit",
    "--model-load-retry-count",
    "--model-load-thread-count",
    "--pinned-memory-pool-byte-size",
    "--rate-limit",
    "--rate-limit-resource",
    "--repoagent-directory",
    "--reuse-grpc-port",
    "--reuse-http-port",
    "--trace-config",
)
EPILOG = f"""
Every setting is also an environment variable, in capitals with the prefix LOOKWIRE_: --grpc-port is LOOKWIRE_GRPC_PORT;
flags win, and where a flag may be repeated, semicolons separate the values in the variable. A flag that is true or false
needs no value for true.

`lookwire-server check REPOSITORY` reads the models of a repository without serving them, and says what is wrong with them.

Flags of NVIDIA Triton that are taken, and have no effect: {", ".join(WITHOUT_EFFECT)}.
"""


class WrongCommandLine(Exception):
    """Flags or variables that cannot be used; `problems` holds a line for each."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


@dataclass(frozen=True, slots=True)
class CommandLine:
    """The settings, and the flags that were given and have no effect."""

    settings: Settings
    without_effect: tuple[str, ...]


def parse(arguments: Sequence[str]) -> CommandLine:
    """Reads flags and variables; raises WrongCommandLine with all that is wrong, and exits after --help."""
    parsed, rest = parser().parse_known_args(arguments)
    given = vars(parsed)
    problems = unknown(rest)
    try:
        settings = Settings(**{name: value for name, value in given.items() if not name.startswith("-")})
    except ValidationError as error:
        problems += [problem(details) for details in error.errors()]
    if problems:
        raise WrongCommandLine(problems)
    ignored = [flag for flag in given if flag.startswith("-")]
    return CommandLine(settings, (*ignored, *(f"--backend-config {text}" for text in settings.without_effect)))


def parser() -> argparse.ArgumentParser:
    """The flags; values stay texts, which Settings checks, so that all mistakes are told at once."""
    parser = argparse.ArgumentParser(
        prog="lookwire-server",
        usage="%(prog)s [--FLAG [VALUE]] ...\n       %(prog)s check REPOSITORY",
        description="Serves CLIP and SigLIP encoders, and the vector search they are used for.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    group = parser.add_argument_group()
    for name, field in Settings.model_fields.items():
        if name in HEADINGS:
            group = parser.add_argument_group(HEADINGS[name])
        flags = [flag_of(name), *([ALIASES[name]] if name in ALIASES else [])]
        options: dict[str, Any] = {"dest": name, "help": described(field), "metavar": metavar(field)}
        if field.annotation is bool:
            options |= {"nargs": "?", "const": "true"}
        elif isinstance(field.default, tuple):
            options |= {"action": "append"}
        group.add_argument(*flags, **options)
    for flag in WITHOUT_EFFECT:
        parser.add_argument(flag, dest=flag, nargs="?", help=argparse.SUPPRESS)
    return parser


def flag_of(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def described(field: FieldInfo) -> str:
    """The description and the default."""
    text = (field.description or "").replace("%", "%%")
    default = field.default
    if isinstance(default, tuple):
        default = ";".join(map(str, default))
    elif isinstance(default, bool):
        default = str(default).lower()
    return text if field.default_factory or default in (None, "") else f"{text} (default: {default})"


def metavar(field: FieldInfo) -> str:
    """What stands for the value in --help."""
    kind: Any = field.annotation
    if typing.get_origin(kind) is typing.Literal:
        return "|".join(typing.get_args(kind))
    return {bool: "true|false", int: "N", float: "SECONDS"}.get(kind, "PATH" if "Path" in str(kind) else "TEXT")


def unknown(rest: Sequence[str]) -> list[str]:
    """A line for each argument that is no flag of ours; a value after an unknown flag is taken for that flag's."""
    known = [*map(flag_of, Settings.model_fields), *ALIASES.values()]
    problems = []
    for word, before in zip(rest, ["", *rest], strict=False):
        flag = word.partition("=")[0]
        if flag.startswith("--"):
            near = difflib.get_close_matches(flag, known, 1)
            problems.append(f"{flag} is unknown" + (f"; did you mean {near[0]}?" if near else "; see --help"))
        elif not before.startswith("--") or "=" in before:
            problems.append(f"'{word}' is not expected; flags begin with --, see --help")
    return problems


def problem(details: Any) -> str:
    """The line for a value that Settings does not take."""
    message = details["msg"].removeprefix("Value error, ")
    if not details["loc"]:
        return str(message)  # about several settings; it names them
    name = str(details["loc"][0])
    return f"{flag_of(name)} (LOOKWIRE_{name.upper()}): {message}, got {details.get('input')!r}"
