"""The state of an import: what is to be sent, what was sent and is not acknowledged, and what was written."""

from collections import deque
from collections.abc import Iterable

from google.rpc.code_pb2 import INTERNAL
from google.rpc.status_pb2 import Status

from lookwire.calls.item_service import CHUNK_ITEMS, chunks
from lookwire.errors import LookwireError, from_status
from lookwire.types import Imported, Item
from lookwire.v1 import item_service_pb2 as pb

MAX_CHUNK_ITEMS = 1_024
# Chunks that are sent ahead of their acknowledgement, and kept until then: the server takes 4 at a time.
WINDOW = 8
# Errors of items that are kept; further ones are counted only.
MAX_ERRORS = 10_000


class Import:
    """Chunks of items in their order; one is read from `items` when it is asked for. Raises ValueError for a wrong size."""

    def __init__(self, collection: str, items: Iterable[Item], chunk_size: int = CHUNK_ITEMS) -> None:
        if not 1 <= chunk_size <= MAX_CHUNK_ITEMS:
            raise ValueError(f"a chunk has 1 to {MAX_CHUNK_ITEMS} items, not {chunk_size}")
        self._collection = collection
        self._chunks = enumerate(chunks(items, chunk_size))
        self._sent: deque[pb.ImportItemsRequest] = deque()
        self._all_sent = False
        self._sequence = 0
        self._inserted = 0
        self._replaced = 0
        self._failed = 0
        self._errors: dict[str, LookwireError] = {}

    @property
    def unacknowledged(self) -> tuple[pb.ImportItemsRequest, ...]:
        """The chunks that a new stream has to begin with."""
        return tuple(self._sent)

    @property
    def full(self) -> bool:
        """Whether an acknowledgement must come before another chunk may be sent."""
        return len(self._sent) >= WINDOW

    @property
    def finished(self) -> bool:
        """Whether all that there is was sent and acknowledged; not before `next` has returned None."""
        return self._all_sent and not self._sent

    def next(self) -> pb.ImportItemsRequest | None:
        """Reads the next chunk, which is then to be sent; returns None when there is none left."""
        number, items = next(self._chunks, (0, None))
        if items is None:
            self._all_sent = True
            return None
        self._sent.append(pb.ImportItemsRequest(collection=self._collection, chunk=number, items=items))
        return self._sent[-1]

    def acknowledge(self, response: pb.ImportItemsResponse) -> None:
        """Takes in the answer to the first chunk that is not acknowledged."""
        if not self._sent or self._sent[0].chunk != response.chunk:
            raise broken("the server acknowledged a chunk that is not the next")
        self._sent.popleft()
        self._sequence = max(self._sequence, response.sequence)
        self._inserted += response.inserted_count
        self._replaced += response.replaced_count
        self._failed += len(response.errors)
        for error in response.errors:
            if len(self._errors) < MAX_ERRORS:
                self._errors[error.id] = from_status(error.status)

    @property
    def result(self) -> Imported:
        """What was acknowledged so far."""
        return Imported(self._sequence, self._inserted, self._replaced, self._failed, self._errors)


def broken(message: str) -> LookwireError:
    """Returns the error for a server that does not keep to the protocol."""
    return from_status(Status(code=INTERNAL, message=message))
