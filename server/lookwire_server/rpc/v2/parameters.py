"""The parameters of V2 messages: of a request, of its tensors, and of a response."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lookwire_server.errors import InvalidArgument
from lookwire_server.models.model import Parameter

# Only these of the names that start with "triton_" may be set.
RESERVED = ("triton_enable_empty_final_response",)
CUSTOM = ("int64_param", "bool_param", "string_param", "double_param")


@dataclass(frozen=True, slots=True)
class Options:
    """What a request's parameters say: the priority, the longest wait in the queue in seconds, and what is for the model."""

    priority: int = 0
    timeout: float = 0.0
    custom: Mapping[str, Parameter] = field(default_factory=dict)


NONE = Options()


@dataclass(frozen=True, slots=True)
class Place:
    """Where a tensor lies in shared memory: bytes within the region of that name."""

    region: str
    offset: int
    byte_size: int


def options(parameters: Mapping[str, Any]) -> Options:
    """The parameters of a request."""
    if not parameters:
        return NONE
    priority, timeout = 0, 0.0
    custom: dict[str, Parameter] = {}
    for name, message in parameters.items():
        match name:
            case "priority":
                priority = value(name, message, "int64_param", "uint64_param")
                if priority < 0:
                    raise InvalidArgument(f"invalid value for 'priority', expected value >= 0, got {priority}")
            case "timeout":
                micros = value(name, message, "int64_param")
                if micros < 0:
                    raise InvalidArgument(f"invalid value for 'timeout', expected microseconds >= 0, got {micros}")
                timeout = micros / 1e6
            case "sequence_id":
                refuse_sequence(name, value(name, message, "int64_param", "string_param"))
            case "sequence_start" | "sequence_end":
                refuse_sequence(name, value(name, message, "bool_param"))
            case _ if name in RESERVED:
                value(name, message, "bool_param")  # each request has one response, which is never empty
            case _ if name.startswith("triton_"):
                raise InvalidArgument(
                    "parameter keys starting with 'triton_' are reserved for Triton usage. Only the following keys starting "
                    f"with 'triton_' are allowed: {' '.join(RESERVED)}; got '{name}'"
                )
            case _:
                custom[name] = value(name, message, *CUSTOM)
    return Options(priority, timeout, custom)


def value(name: str, message: Any, *choices: str) -> Any:
    """The value of an InferParameter, which must be one of these members of its oneof."""
    choice = message.WhichOneof("parameter_choice")
    if choice not in choices:
        expected = " or ".join(filter(None, [", ".join(choices[:-1]), choices[-1]]))
        raise InvalidArgument(
            f"invalid value type for '{name}' parameter, expected {expected}, got {choice or 'no value'}"
        )
    return getattr(message, choice)


def refuse_sequence(name: str, value: int | str | bool) -> None:
    """Sequences are for models with a state between requests."""
    if value:
        raise InvalidArgument(
            f"'{name}' is {value!r}, but sequences are not served: no model keeps a state between requests; leave it out"
        )


def place(tensor: Any) -> Place | None:
    """Where an input is, or where an output goes, in shared memory; None if in the message."""
    parameters = tensor.parameters
    if "shared_memory_region" not in parameters:
        for name in ("shared_memory_byte_size", "shared_memory_offset"):
            if name in parameters:
                raise InvalidArgument(
                    f"'{name}' can not be specified without 'shared_memory_region' parameter for tensor '{tensor.name}'"
                )
        return None
    region = value("shared_memory_region", parameters["shared_memory_region"], "string_param")
    if "shared_memory_byte_size" not in parameters:
        raise InvalidArgument(
            "'shared_memory_byte_size' must be specified along with 'shared_memory_region' parameter for tensor "
            f"'{tensor.name}'"
        )
    byte_size = value("shared_memory_byte_size", parameters["shared_memory_byte_size"], "int64_param")
    offset = 0
    if "shared_memory_offset" in parameters:
        offset = value("shared_memory_offset", parameters["shared_memory_offset"], "int64_param")
    if offset < 0:
        raise InvalidArgument(f"Invalid offset for shared memory region: '{region}'; it must be >= 0, got {offset}")
    if byte_size < 0:
        raise InvalidArgument(
            f"Invalid offset + byte size for shared memory region: '{region}'; the byte size must be >= 0, got {byte_size}"
        )
    return Place(region, offset, byte_size)


def classes(output: Any) -> int:
    """How many classes an output is to be cut to; 0 if it is wanted as it is."""
    if "classification" not in output.parameters:
        return 0
    count: int = value("classification", output.parameters["classification"], "int64_param")
    if count < 1:
        raise InvalidArgument(
            f"invalid value for 'classification' of output '{output.name}', expected > 0, got {count}"
        )
    return count


def fill(target: Any, parameters: Mapping[str, Parameter]) -> None:
    """Sets the parameters of a response."""
    for name, parameter in parameters.items():
        match parameter:
            case bool():
                target[name].bool_param = parameter
            case int():
                target[name].int64_param = parameter
            case float():
                target[name].double_param = parameter
            case str():
                target[name].string_param = parameter
