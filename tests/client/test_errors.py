import pickle

import grpc
import pytest
from google.protobuf.any_pb2 import Any
from google.protobuf.message import Message
from google.rpc import code_pb2
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status

from lookwire import Client, FieldViolation, LookwireError, errors
from tests.client.fake_server import FakeServer


def status(code: int, message: str, *details: Message) -> Status:
    packed = [Any() for _ in details]
    for each, detail in zip(packed, details, strict=True):
        each.Pack(detail)
    return Status(code=code, message=message, details=packed)


def raised(client: Client) -> LookwireError:
    with pytest.raises(LookwireError) as caught:
        client.get_collection("shop")
    return caught.value


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (code_pb2.INVALID_ARGUMENT, errors.InvalidArgument),
        (code_pb2.NOT_FOUND, errors.NotFound),
        (code_pb2.ALREADY_EXISTS, errors.AlreadyExists),
        (code_pb2.FAILED_PRECONDITION, errors.FailedPrecondition),
        (code_pb2.RESOURCE_EXHAUSTED, errors.ResourceExhausted),
        (code_pb2.DEADLINE_EXCEEDED, errors.DeadlineExceeded),
        (code_pb2.CANCELLED, errors.Cancelled),
        (code_pb2.UNIMPLEMENTED, errors.Unimplemented),
        (code_pb2.INTERNAL, errors.Internal),
        (code_pb2.PERMISSION_DENIED, LookwireError),
    ],
    ids=lambda value: code_pb2.Code.Name(value) if isinstance(value, int) else value.__name__,
)
def test_codes(client: Client, server: FakeServer, code: int, kind: type[LookwireError]) -> None:
    """Each code is an error of its own class, and a plain error where there is no class."""
    server.reply(status(code, "what happened"))

    error = raised(client)

    assert type(error) is kind
    assert str(error) == error.message == "what happened"
    assert error.code.value[0] == code
    assert error.reason == code_pb2.Code.Name(code)
    assert (error.metadata, error.violations, error.acknowledged) == ({}, (), 0)


def test_details(client: Client, server: FakeServer) -> None:
    """Reason and metadata come from ErrorInfo, violations from BadRequest; other details are passed over."""
    bad_request = BadRequest(
        field_violations=[
            {"field": "name", "description": "too long"},
            {"field": "fields[1].type", "description": "unset"},
        ]
    )
    info = ErrorInfo(reason="BAD_COLLECTION", domain="lookwire", metadata={"limit": "128"})
    server.reply(status(code_pb2.INVALID_ARGUMENT, "no", RetryInfo(), bad_request, info))

    error = raised(client)

    assert error.reason == "BAD_COLLECTION"
    assert error.metadata == {"limit": "128"}
    assert error.violations == (FieldViolation("name", "too long"), FieldViolation("fields[1].type", "unset"))


def test_details_of_another_domain(client: Client, server: FakeServer) -> None:
    """A reason that a proxy on the way gave is not taken for the server's."""
    info = ErrorInfo(reason="QUOTA", domain="proxy.example", metadata={"limit": "1"})
    server.reply(status(code_pb2.RESOURCE_EXHAUSTED, "no", info))

    error = raised(client)

    assert (error.reason, error.metadata) == ("RESOURCE_EXHAUSTED", {})


@pytest.mark.parametrize("details", [b"\xff\xff", status(code_pb2.NOT_FOUND, "other").SerializeToString()])
def test_details_that_cannot_be_used(client: Client, server: FakeServer, details: bytes) -> None:
    """Details that are no status, or that contradict the code, leave code and message as they are."""
    server.raw_details = details
    server.reply(status(code_pb2.INTERNAL, "what happened"))

    error = raised(client)

    assert (type(error), str(error)) == (errors.Internal, "what happened")


def test_servicer_that_raises(client: Client, server: FakeServer) -> None:
    """A failure without any details is an error all the same."""
    error = raised(client)  # no reply is prepared, so the servicer fails

    assert error.code is grpc.StatusCode.UNKNOWN
    assert type(error) is LookwireError
    assert error.reason == "UNKNOWN"


def test_unknown_code() -> None:
    """A code that gRPC does not know becomes UNKNOWN."""
    assert errors.from_status(Status(code=999, message="?")).code is grpc.StatusCode.UNKNOWN


def test_pickle() -> None:
    """An error crosses process borders with all it holds."""
    info = ErrorInfo(reason="GONE", domain="lookwire", metadata={"name": "shop"})
    error = errors.from_status(status(code_pb2.NOT_FOUND, "no shop", info))
    error.acknowledged = 5

    copy = pickle.loads(pickle.dumps(error))

    assert type(copy) is errors.NotFound
    assert vars(copy) == vars(error)
    assert copy.metadata == {"name": "shop"}
