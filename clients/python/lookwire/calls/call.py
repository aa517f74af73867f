"""One call: which method, what to send, and how to read the reply. The clients only carry calls out."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from google.protobuf.message import Message

from lookwire.types import StageTimes
from lookwire.v1.stage_times_pb2 import StageTimes as StageTimesMessage

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Call(Generic[Result]):
    """A request, the name of the RPC that takes it, and the function that makes the result from the response."""

    method: str
    request: Message
    parse: Callable[[Any], Result]


@dataclass(frozen=True, slots=True)
class Page(Generic[Result]):
    """Some members of a list, and the token that asks for the next; empty on the last page."""

    members: tuple[Result, ...]
    next_token: str


def stage_times(message: StageTimesMessage) -> StageTimes:
    """Returns the stage times of a response."""
    return StageTimes(
        decode_us=message.decode_us,
        tokenise_us=message.tokenise_us,
        queue_us=message.queue_us,
        infer_us=message.infer_us,
        search_us=message.search_us,
        fetch_us=message.fetch_us,
        write_us=message.write_us,
        total_us=message.total_us,
    )
