"""What the client raises for a call that failed.

    LookwireError
    ├── InvalidArgument       the request is wrong: `violations` says which field
    ├── NotFound              a named encoder, collection or item does not exist
    ├── AlreadyExists         the name is taken
    ├── FailedPrecondition    the request is well formed, the state of the server does not allow it
    ├── Conflict              an item does not have the sequence that the write is conditional on
    ├── ResourceExhausted     a queue or the disk is full, or a message is too large; `retry_after` says if it will pass
    ├── DeadlineExceeded      no answer within the timeout; a write may have happened all the same
    ├── Cancelled             the client was closed during the call
    ├── Unavailable           no server, or one that is starting or stopping, after all retries
    ├── Unimplemented         the server is too old for the call
    └── Internal              the server failed; its log says why

A status of any other code is a plain `LookwireError`. Arguments that could not even be sent are a `TypeError` or a
`ValueError`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

import grpc
from google.protobuf.message import DecodeError
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status
from grpc_status import rpc_status


@dataclass(frozen=True, slots=True)
class FieldViolation:
    """One field of a request that is wrong: its path, such as `items[3].payload`, and what is wrong with it."""

    field: str
    description: str


class LookwireError(Exception):
    """A call that failed.

    `message` is for people; `code` and `reason` (upper case, such as "QUEUE_FULL"; the name of the code if the server
    gave none) are for programs, and `metadata` holds the variable parts of the message. `retry_after` is the number of
    seconds after which the server expects to take the call, None unless it said so. `acknowledged` is the number of
    items that an upsert or an import had written before it failed, 0 in any other call.
    """

    def __init__(
        self,
        message: str,
        code: grpc.StatusCode,
        reason: str,
        metadata: Mapping[str, str],
        violations: tuple[FieldViolation, ...],
        retry_after: float | None,
    ) -> None:
        super().__init__(message, code, reason, metadata, violations, retry_after)
        self.message = message
        self.code = code
        self.reason = reason
        self.metadata = dict(metadata)
        self.violations = violations
        self.retry_after = retry_after
        self.acknowledged = 0

    def __str__(self) -> str:
        return self.message


class InvalidArgument(LookwireError):
    """The request is wrong; `violations` says which field."""


class NotFound(LookwireError):
    """A named encoder, collection or item does not exist."""


class AlreadyExists(LookwireError):
    """The name is taken."""


class FailedPrecondition(LookwireError):
    """The request is well formed, the state of the server does not allow it."""


class Conflict(LookwireError):
    """An item does not have the sequence that the write is conditional on; `metadata` says which item, and what it has."""


class ResourceExhausted(LookwireError):
    """A queue or the disk is full, or a message is too large; `retry_after` is None for what will not pass by itself."""


class DeadlineExceeded(LookwireError):
    """No answer came within the timeout; a write may have happened all the same."""


class Cancelled(LookwireError):
    """The client was closed during the call."""


class Unavailable(LookwireError):
    """There is no server, or it is starting or stopping, after all retries."""


class Unimplemented(LookwireError):
    """The server is too old for the call."""


class Internal(LookwireError):
    """The server failed; its log says why."""


_CODES = {code.value[0]: code for code in grpc.StatusCode}
_CLASSES: dict[grpc.StatusCode, type[LookwireError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: InvalidArgument,
    grpc.StatusCode.NOT_FOUND: NotFound,
    grpc.StatusCode.ALREADY_EXISTS: AlreadyExists,
    grpc.StatusCode.FAILED_PRECONDITION: FailedPrecondition,
    grpc.StatusCode.ABORTED: Conflict,
    grpc.StatusCode.RESOURCE_EXHAUSTED: ResourceExhausted,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceeded,
    grpc.StatusCode.CANCELLED: Cancelled,
    grpc.StatusCode.UNAVAILABLE: Unavailable,
    grpc.StatusCode.UNIMPLEMENTED: Unimplemented,
    grpc.StatusCode.INTERNAL: Internal,
}


def from_rpc(error: grpc.RpcError) -> LookwireError:
    """Returns the error for a failed call, with the details that its trailers carry."""
    call = cast(grpc.Call, error)
    try:
        status = rpc_status.from_call(call)
    except (ValueError, DecodeError):  # details that contradict the status, or are none
        status = None
    return from_status(status or Status(code=call.code().value[0], message=call.details() or ""))


def from_status(status: Status) -> LookwireError:
    """Returns the error for a status message, as a failed call or a failed input carries it."""
    code = _CODES.get(status.code, grpc.StatusCode.UNKNOWN)
    info, bad_request, retry = ErrorInfo(), BadRequest(), RetryInfo()
    for detail in status.details:
        for known in (info, bad_request, retry):
            detail.Unpack(known)  # does nothing where the type is another
    if info.domain != "lookwire":
        info = ErrorInfo(reason=code.name)
    violations = tuple(FieldViolation(each.field, each.description) for each in bad_request.field_violations)
    delay = retry.retry_delay
    retry_after = delay.seconds + delay.nanos / 1e9 if retry.HasField("retry_delay") else None
    kind = _CLASSES.get(code, LookwireError)
    return kind(status.message, code, info.reason, dict(info.metadata), violations, retry_after)
