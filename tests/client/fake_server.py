"""A server that remembers requests and answers with prepared replies."""

import threading
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
from google.protobuf.message import Message
from google.rpc.status_pb2 import Status
from grpc_status import rpc_status

from lookwire.v1 import collection_service_pb2_grpc as collection
from lookwire.v1 import encoder_service_pb2_grpc as encoder
from lookwire.v1 import item_service_pb2_grpc as item
from lookwire.v1 import search_service_pb2_grpc as search
from lookwire.v1 import snapshot_service_pb2_grpc as snapshot


class FakeServer(
    encoder.EncoderServiceServicer,
    collection.CollectionServiceServicer,
    item.ItemServiceServicer,
    search.SearchServiceServicer,
    snapshot.SnapshotServiceServicer,
):
    """Answers each request with the next of its replies; a `Status` as a failed call."""

    def __init__(self, port: int = 0) -> None:
        self.requests: list[Message] = []
        self.seconds_left: list[float] = []
        self.replies: deque[Message] = deque()
        self.raw_details: bytes | None = None  # sent in place of a status's details
        self.released = threading.Event()
        self.released.set()  # cleared: requests wait
        self.grpc = grpc.server(ThreadPoolExecutor(4), options=[("grpc.max_receive_message_length", -1)])
        encoder.add_EncoderServiceServicer_to_server(self, self.grpc)
        collection.add_CollectionServiceServicer_to_server(self, self.grpc)
        item.add_ItemServiceServicer_to_server(self, self.grpc)
        search.add_SearchServiceServicer_to_server(self, self.grpc)
        snapshot.add_SnapshotServiceServicer_to_server(self, self.grpc)
        self.address = f"127.0.0.1:{self.grpc.add_insecure_port(f'127.0.0.1:{port}')}"

    def reply(self, *replies: Message) -> None:
        self.replies.extend(replies)

    def _answer(self, request: Any, context: Any) -> Any:
        self.requests.append(request)
        self.seconds_left.append(context.time_remaining())
        self.released.wait()
        reply = self.replies.popleft()
        if isinstance(reply, Status) and self.raw_details is not None:
            context.set_trailing_metadata((("grpc-status-details-bin", self.raw_details),))
            context.abort(rpc_status.to_status(reply).code, reply.message)
        if isinstance(reply, Status):
            context.abort_with_status(rpc_status.to_status(reply))
        return reply

    def _answer_all(self, request: Any, context: Any) -> Any:
        """Answers one request with all replies that there are."""
        self.requests.append(request)
        self.seconds_left.append(context.time_remaining())
        while self.replies:
            reply = self.replies.popleft()
            if isinstance(reply, Status):
                context.abort_with_status(rpc_status.to_status(reply))
            yield reply

    def ImportItems(self, requests: Any, context: Any) -> Any:
        """Answers each request of the stream with the next reply; a `Status` ends the stream, None leaves one unanswered."""
        for request in requests:
            self.requests.append(request)
            reply = self.replies.popleft() if self.replies else None
            if isinstance(reply, Status):
                context.abort_with_status(rpc_status.to_status(reply))
            if reply is not None:
                yield reply

    ListEncoders = GetEncoder = Embed = Score = Classify = _answer
    CreateCollection = GetCollection = ListCollections = DeleteCollection = _answer
    UpdateCollection = GetCollectionStatistics = SetAlias = DeleteAlias = _answer
    ReembedCollection = _answer_all
    UpsertItems = UpdatePayloads = GetItems = DeleteItems = ListItems = CountItems = FacetItems = _answer
    Search = BatchSearch = _answer
    CreateSnapshot = ListSnapshots = RestoreSnapshot = DeleteSnapshot = _answer
