"""The logging extension: what the server logs, changed while it runs."""

from collections.abc import Mapping
from typing import Any, Protocol

from lookwire_server.errors import InvalidArgument, Unimplemented

# Setting -> the member of LogSettingsRequest.SettingValue that holds it, and Triton's word for its type.
MEMBERS = {
    "log_info": ("bool_param", "boolean"),
    "log_warning": ("bool_param", "boolean"),
    "log_error": ("bool_param", "boolean"),
    "log_verbose_level": ("uint32_param", "int32"),
    "log_format": ("string_param", "string"),
}
FORMATS = ("default", "ISO8601")


class Levels(Protocol):
    """Which events are logged: those of each level, and details from a `verbose` of 1 up."""

    info: bool
    warning: bool
    error: bool
    verbose: int

    def set(self, *, info: bool, warning: bool, error: bool, verbose: int) -> None: ...


class LogSettings:
    """Triton's settings. `log_file` cannot be changed; the times of the log are ISO 8601 in either `log_format`."""

    def __init__(self, levels: Levels | None) -> None:
        self._levels = levels
        self.values: dict[str, bool | int | str] = {
            "log_file": "",
            "log_info": levels is None or levels.info,
            "log_warning": levels is None or levels.warning,
            "log_error": levels is None or levels.error,
            "log_verbose_level": levels.verbose if levels else 0,
            "log_format": "default",
        }

    def update(self, changes: Mapping[str, Any]) -> None:
        """Takes over the values of SettingValue messages: all, or with an error none."""
        checked = {name: check(name, message) for name, message in changes.items()}
        if not checked:
            return
        if self._levels is None:
            raise Unimplemented("the log of this server cannot be changed while it runs")
        self.values |= checked
        self._levels.set(
            info=bool(self.values["log_info"]),
            warning=bool(self.values["log_warning"]),
            error=bool(self.values["log_error"]),
            verbose=int(self.values["log_verbose_level"]),
        )


def check(name: str, message: Any) -> bool | int | str:
    """The value of a setting; an error if it is of another type or cannot be set."""
    if name == "log_file":
        raise Unimplemented(
            "log file location can not be updated through network protocol: the log goes to standard error"
        )
    if name not in MEMBERS:
        raise InvalidArgument(f"unknown log setting '{name[:64]}', expected one of {', '.join(MEMBERS)}")
    member, kind = MEMBERS[name]
    if message.WhichOneof("parameter_choice") != member:
        raise InvalidArgument(f"expect {kind} for '{name}', got {message.WhichOneof('parameter_choice') or 'no value'}")
    value: bool | int | str = getattr(message, member)
    if name == "log_format" and value not in FORMATS:
        raise InvalidArgument(
            f"invalid argument for log_format, expected {' or '.join(FORMATS)}, got: {str(value)[:64]}"
        )
    return value
