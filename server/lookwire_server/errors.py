"""The errors that callers see.

    LookwireError
    ├── InvalidArgument        the request itself is wrong: which field, what was expected
    │   ├── InvalidImage       bytes that are no image, or one over the limits
    │   └── InvalidVector      wrong dimension, NaN, infinite or all-zero
    ├── NotFound               a named encoder, model, collection or item does not exist
    ├── AlreadyExists          a name is taken
    ├── FailedPrecondition     the request is well formed, the state does not allow it
    ├── Conflict               an item is not at the sequence that the write is conditional on
    ├── QueueFull              a bounded queue has no room, or not in time
    ├── QueueTimeout           a request waited longer in a queue than its model allows
    ├── Overloaded             the requests in flight hold as many bytes as the server allows
    ├── ReplyTooLarge          what was asked for is more than one reply may hold
    ├── DeadlineExceeded       nobody waits for the answer any more
    ├── Unavailable            the server, or a part of it, is stopping or not ready
    ├── StorageFailure         the disk refused a write; nothing of the request was kept
    ├── ModelFailure           the model's execution failed; the cause is in the server's log
    ├── LoadFailure            a model cannot be found in the repository, or what a load request brings cannot be kept
    ├── SharedMemoryFailure    a client's shared memory cannot be opened, or is too small for an output
    └── Unimplemented          a part of a protocol that this server does not have, or has switched off

`code` names a canonical gRPC status, `reason` is stable and meant for programs, `metadata` holds every variable part of the
message. `rpc/guard.py` turns these into statuses; any other exception is logged and answered as INTERNAL with a fixed text.
"""

from typing import ClassVar, Self


class LookwireError(Exception):
    """An expected error: its message is safe to show to the caller.

    `field` is the path of the request's field that is at fault, e.g. `items[3].payload`; empty if none is. `retry_after` is the
    number of seconds after which the same request may succeed; None if it will fail again.
    """

    code: ClassVar[str] = "INTERNAL"
    reason: ClassVar[str] = "INTERNAL"
    retry_after: float | None = None

    def __init__(self, message: str, *, field: str = "", **metadata: object) -> None:
        super().__init__(message)
        self.message = message
        self.field = field
        self.metadata = {key: str(value) for key, value in metadata.items()}

    def at(self, field: str, prefix: str = "") -> Self:
        """The same error of this field, with something before its message."""
        error = type(self)(prefix + self.message, field=field, **self.metadata)
        error.retry_after = self.retry_after
        return error


class InvalidArgument(LookwireError):
    code = "INVALID_ARGUMENT"
    reason = "INVALID_ARGUMENT"


class InvalidImage(InvalidArgument):
    reason = "INVALID_IMAGE"


class InvalidVector(InvalidArgument):
    reason = "INVALID_VECTOR"


class NotFound(LookwireError):
    code = "NOT_FOUND"
    reason = "NOT_FOUND"


class AlreadyExists(LookwireError):
    code = "ALREADY_EXISTS"
    reason = "ALREADY_EXISTS"


class FailedPrecondition(LookwireError):
    code = "FAILED_PRECONDITION"
    reason = "FAILED_PRECONDITION"


class Conflict(LookwireError):
    code = "ABORTED"
    reason = "CONFLICT"


class QueueFull(LookwireError):
    code = "RESOURCE_EXHAUSTED"
    reason = "QUEUE_FULL"
    retry_after = 1.0


class QueueTimeout(LookwireError):
    code = "UNAVAILABLE"
    reason = "QUEUE_TIMEOUT"


class Overloaded(LookwireError):
    code = "RESOURCE_EXHAUSTED"
    reason = "OVERLOADED"
    retry_after = 1.0


class ReplyTooLarge(LookwireError):
    code = "RESOURCE_EXHAUSTED"
    reason = "REPLY_TOO_LARGE"


class DeadlineExceeded(LookwireError):
    code = "DEADLINE_EXCEEDED"
    reason = "DEADLINE_EXCEEDED"


class Unavailable(LookwireError):
    code = "UNAVAILABLE"
    reason = "UNAVAILABLE"


class StorageFailure(LookwireError):
    code = "RESOURCE_EXHAUSTED"
    reason = "STORAGE_FAILURE"


class ModelFailure(LookwireError):
    code = "INTERNAL"
    reason = "MODEL_FAILURE"


class LoadFailure(LookwireError):
    code = "INTERNAL"
    reason = "LOAD_FAILURE"


class SharedMemoryFailure(LookwireError):
    code = "INTERNAL"
    reason = "SHARED_MEMORY_FAILURE"


class Unimplemented(LookwireError):
    code = "UNIMPLEMENTED"
    reason = "UNIMPLEMENTED"
