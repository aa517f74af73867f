"""The methods of the services that a server answers."""

from collections.abc import Callable
from typing import Any, TypeAlias

import grpc
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message_factory import GetMessageClass

Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
# Wraps the unary method of that full name, e.g. "/lookwire.v1.EncoderService/Embed". What it makes takes the request's message
# with its size in bytes: protobuf would write a whole message anew to tell its size.
Guard = Callable[[str, Any], Any]


class Handlers(grpc.GenericRpcHandler):
    """Finds a method by its name.

    The generated `add_..._to_server` functions register each method by itself, and grpc.aio then waits for the next call of
    every one of them at each call: with the 50 methods of this server that is a third of the time of a small call.
    """

    def __init__(self) -> None:
        self._handlers: dict[str, Handler] = {}

    def add(self, service: ServiceDescriptor, servicer: object, guard: Guard | None = None) -> None:
        """Adds the methods of a service; `guard` wraps the unary ones."""
        for method in service.methods:
            name = f"/{service.full_name}/{method.name}"
            behaviour = getattr(servicer, method.name)
            parse: Callable[[bytes], Any] = GetMessageClass(method.input_type).FromString
            if guard and not (method.client_streaming or method.server_streaming):
                behaviour = guard(name, behaviour)
                parse = sized(parse)
            self._handlers[name] = handler(method, behaviour, parse)

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> "Handler | None":
        return self._handlers.get(handler_call_details.method)


def sized(parse: Callable[[bytes], Any]) -> Callable[[bytes], tuple[Any, int]]:
    """Makes of a request's bytes its message and their number."""
    return lambda data: (parse(data), len(data))


def handler(method: MethodDescriptor, behaviour: Any, parse: Callable[[bytes], Any]) -> Handler:
    """The handler of one method, by its kind."""
    make = {
        (False, False): grpc.unary_unary_rpc_method_handler,
        (False, True): grpc.unary_stream_rpc_method_handler,
        (True, False): grpc.stream_unary_rpc_method_handler,
        (True, True): grpc.stream_stream_rpc_method_handler,
    }[method.client_streaming, method.server_streaming]
    return make(
        behaviour,
        request_deserializer=parse,
        response_serializer=GetMessageClass(method.output_type).SerializeToString,
    )
