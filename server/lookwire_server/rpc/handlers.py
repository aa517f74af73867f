"""The methods of the services that a server answers."""

from collections.abc import Callable
from typing import Any, Protocol, TypeAlias

import grpc
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass

from lookwire_server.errors import InvalidArgument

Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
# A request's message, or the error that its bytes are none, with their number: protobuf would write a whole message anew to
# tell its size.
Received: TypeAlias = "tuple[Any, int]"
# What makes a handler, by whether the client streams and the server does.
MAKERS: dict[tuple[bool, bool], Callable[..., Handler]] = {
    (False, False): grpc.unary_unary_rpc_method_handler,
    (False, True): grpc.unary_stream_rpc_method_handler,
    (True, False): grpc.stream_unary_rpc_method_handler,
    (True, True): grpc.stream_stream_rpc_method_handler,
}


class Guard(Protocol):
    """Wraps the method of a full name, e.g. "/lookwire.v1.EncoderService/Embed". What it makes takes a Received."""

    def __call__(self, method: str, behaviour: Any) -> Any:
        """One that returns its reply."""

    def streamed(self, method: str, behaviour: Any) -> Any:
        """One that yields its replies."""


class Handlers(grpc.GenericRpcHandler):
    """Finds a method by its name.

    The generated `add_..._to_server` functions register each method by itself, and grpc.aio then waits for the next call of
    every one of them at each call: with the 50 methods of this server that is a third of the time of a small call.
    """

    def __init__(self) -> None:
        self._handlers: dict[str, Handler] = {}

    def add(self, service: ServiceDescriptor, servicer: object, guard: Guard | None = None) -> None:
        """Adds the methods of a service; with `guard`, which wraps those that take one request, each request is a Received."""
        for method in service.methods:
            name = f"/{service.full_name}/{method.name}"
            behaviour = getattr(servicer, method.name)
            kind = GetMessageClass(method.input_type)
            if guard and not method.client_streaming:
                behaviour = (guard.streamed if method.server_streaming else guard)(name, behaviour)
            parse: Callable[[bytes], Any] = sized(kind) if guard else kind.FromString
            self._handlers[name] = handler(method, behaviour, parse)

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> "Handler | None":
        return self._handlers.get(handler_call_details.method)


def sized(kind: type[Message]) -> Callable[[bytes], Received]:
    """The parser of requests of one kind. It raises nothing: gRPC would tell the caller of an exception's class in Python."""
    parse = kind.FromString

    def received(data: bytes) -> Received:
        try:
            return parse(data), len(data)
        except DecodeError:
            error = InvalidArgument(f"the request is no {kind.DESCRIPTOR.full_name}: it cannot be decoded")
            return error, len(data)

    return received


def handler(method: MethodDescriptor, behaviour: Any, parse: Callable[[bytes], Any]) -> Handler:
    """The handler of one method, by its kind."""
    return MAKERS[method.client_streaming, method.server_streaming](
        behaviour,
        request_deserializer=parse,
        response_serializer=GetMessageClass(method.output_type).SerializeToString,
    )
