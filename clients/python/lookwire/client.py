"""The client for threads."""

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Self

import grpc

from lookwire import calls, channel, errors, retry
from lookwire.calls import Call, Page, Result
from lookwire.filters import Filter
from lookwire.queries import Query
from lookwire.types import (
    Classifications,
    Collection,
    Content,
    Deleted,
    Embeddings,
    Encoder,
    FieldType,
    Image,
    Item,
    LabelGroup,
    Labels,
    Scores,
    SearchResult,
    StoredItem,
    Upserted,
    VectorLike,
)


class Client:
    """A connection to a Lookwire server, which any number of threads may share.

        with Client("localhost:8001") as client:
            for hit in client.search("shop", text="a red dress").hits:
                print(hit.id, hit.score)

    It connects at the first call. Give `credentials` (`grpc.ssl_channel_credentials()`) to speak TLS. A call ends after
    `timeout` seconds, retries included; each method takes a timeout of its own.

    A call that finds no server, or one that is stopping (UNAVAILABLE), is made up to 4 times, with growing pauses. That
    is safe: an upsert or a deletion by id has the same effect twice, only its counts then tell of the second time; and
    a collection that the first attempt created or deleted shows as AlreadyExists or NotFound.

    A call that an overloaded server refuses for now (RESOURCE_EXHAUSTED with a delay) is made again when that delay and up
    to half as much again has passed, as often as the timeout allows: a refused call had no effect. So an import waits for
    its turn; give a short timeout to be told at once, by an error whose `retry_after` is the delay.

    Every method raises a `lookwire.errors.LookwireError` for a call that failed, and TypeError or ValueError for
    arguments that cannot be sent. A request is at most 64 MiB.
    """

    def __init__(
        self, address: str, *, credentials: grpc.ChannelCredentials | None = None, timeout: float = 30.0
    ) -> None:
        if credentials is None:
            self._channel = grpc.insecure_channel(address, options=channel.OPTIONS)
        else:
            self._channel = grpc.secure_channel(address, credentials, options=channel.OPTIONS)
        self._methods = channel.methods(self._channel)
        self._watch_health: grpc.UnaryStreamMultiCallable[bytes, bytes] = self._channel.unary_stream(
            channel.HEALTH_WATCH
        )
        self._timeout = timeout
        self._closed = threading.Event()

    def close(self) -> None:
        """Closes the connection; calls under way fail with Cancelled, those that wait to be made again with their refusal."""
        self._closed.set()
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def wait_until_ready(self, timeout: float = 30.0) -> None:
        """Returns when the server reports that it serves; raises DeadlineExceeded after `timeout` seconds."""
        deadline = time.monotonic() + timeout
        while True:
            remaining = max(0.0, deadline - time.monotonic())
            try:
                for status in self._watch_health(channel.HEALTH_REQUEST, timeout=remaining, wait_for_ready=True):
                    if status == channel.HEALTH_SERVING:
                        return
            except grpc.RpcError as error:
                failure = errors.from_rpc(error)
                if not isinstance(failure, errors.Unavailable | errors.Cancelled):  # a server that stops may come back
                    raise failure from error

    def list_encoders(self, *, timeout: float | None = None) -> list[Encoder]:
        """Returns the encoders that the server serves, by name."""
        return self._run(calls.list_encoders(), timeout)

    def get_encoder(self, name: str = "", *, timeout: float | None = None) -> Encoder:
        """Returns one encoder; the name may be empty where the server serves exactly one. Raises NotFound."""
        return self._run(calls.get_encoder(name), timeout)

    def embed(
        self,
        texts: Sequence[str] = (),
        images: Sequence[Image] = (),
        *,
        encoder: str = "",
        partial: bool = False,
        float16: bool = False,
        timeout: float | None = None,
    ) -> Embeddings:
        """Returns a vector of length 1 for each text and then for each image, 1 to 1,024 in all.

        An input that cannot be embedded raises its error, which names its index; with `partial` its row is NaN and its
        error is in `errors`, by index. `float16` halves the bytes of the reply and rounds to about 3 decimal digits;
        the vectors are float32 all the same. Raises NotFound for an unknown encoder, ResourceExhausted while the queue
        is full.
        """
        return self._run(calls.embed(texts, images, encoder, partial=partial, float16=float16), timeout)

    def score(
        self,
        pairs: Sequence[tuple[Content, Content]],
        *,
        encoder: str = "",
        partial: bool = False,
        timeout: float | None = None,
    ) -> Scores:
        """Returns how well the inputs of each pair match: image and text, two images, or two texts; 1 to 1,024 pairs.

        A string is a text, never a path; bytes and a `Path` are an image. Equal inputs are embedded once. A pair with an
        input that cannot be embedded raises its error, which names that input, as in `pairs[3].first`; with `partial` its
        scores are NaN and its error is in `errors`, by index. Raises as `embed` does besides.
        """
        return self._run(calls.score(pairs, encoder, partial=partial), timeout)

    def classify(
        self,
        inputs: Sequence[Content],
        groups: Mapping[str, Labels | LabelGroup],
        *,
        top_k: int = 0,
        encoder: str = "",
        partial: bool = False,
        timeout: float | None = None,
    ) -> Classifications:
        """Returns which labels of each group fit each input, best first.

            client.classify([Path("a.jpg")], {"colour": ["red", "blue"], "kind": LabelGroup(KINDS, ["a photo of a {}"])})

        A string is a text, never a path; bytes and a `Path` are an image; 1 to 1,024 in any mix. A group is a list of names, a
        dict of names to lists of prompts, or a `LabelGroup`, which has templates too. There are 1 to 256 groups, with at most
        4,096 prompts of 4,194,304 characters in all; inputs x groups are at most 65,536. `top_k` is the number of labels
        returned of each group, 0 for all of them; at most 1,048,576 are returned, counting each input.

        An input that cannot be embedded raises its error, which names its index; with `partial` it has no labels and its
        error is in `errors`, by index. Raises InvalidArgument for groups that are wrong, and as `embed` does besides.
        """
        return self._run(calls.classify(inputs, groups, encoder, top_k=top_k, partial=partial), timeout)

    def create_collection(
        self,
        name: str,
        fields: Mapping[str, FieldType | str] | None = None,
        *,
        encoder: str = "",
        timeout: float | None = None,
    ) -> Collection:
        """Makes an empty collection, for items that `encoder` embeds; empty where the server serves exactly one.

        `fields` are the top-level keys of payloads that filters will use, and their types; they cannot be changed
        later. Raises AlreadyExists for a taken name, NotFound for an unknown encoder.
        """
        return self._run(calls.create_collection(name, fields or {}, encoder), timeout)

    def get_collection(self, name: str, *, timeout: float | None = None) -> Collection:
        """Returns one collection. Raises NotFound."""
        return self._run(calls.get_collection(name), timeout)

    def list_collections(self, *, timeout: float | None = None) -> list[Collection]:
        """Returns all collections, by name; `timeout` is for each page of them."""
        return list(self._pages(calls.list_collections, timeout))

    def delete_collection(self, name: str, *, timeout: float | None = None) -> None:
        """Removes a collection and all its items, for good. Raises NotFound."""
        self._run(calls.delete_collection(name), timeout)

    def upsert(
        self,
        collection: str,
        items: Iterable[Item],
        *,
        progress: Callable[[int], None] | None = None,
        timeout: float | None = None,
    ) -> Upserted:
        """Adds items, and replaces those whose id exists as a whole: payload and vector.

        The items go out in chunks of at most 256 items and about 4 MiB, one after the other, so `items` may be a
        generator of any length; an id that comes twice in a chunk is InvalidArgument. Each chunk is atomic, the whole
        is not: on an error the chunks before are written, and the chunk that failed is written whole or not at all.
        The error's `acknowledged` says how many items were confirmed, and its field violations count the items from the
        first of all. `progress` is called after each chunk with the number of confirmed items; `timeout` is for each.
        """
        total = Upserted(sequence=0, inserted=0, replaced=0)
        for call in calls.upsert(collection, items):
            try:
                total = calls.added(total, self._run(call, timeout))
            except errors.LookwireError as error:
                raise calls.failed_after(total, error) from error
            if progress:
                progress(total.count)
        return total

    def get_items(
        self, collection: str, ids: Sequence[str], *, include_vectors: bool = False, timeout: float | None = None
    ) -> list[StoredItem]:
        """Returns items by id, 1 to 1,024, in the order of `ids`; those that do not exist are left out."""
        return self._run(calls.get_items(collection, ids, include_vectors=include_vectors), timeout)

    def delete_items(self, collection: str, ids: Sequence[str], *, timeout: float | None = None) -> Deleted:
        """Removes items by id, 1 to 1,024; those that do not exist are passed over."""
        return self._run(calls.delete_items(collection, ids), timeout)

    def list_items(
        self, collection: str, *, filter: Filter | None = None, timeout: float | None = None
    ) -> Iterator[StoredItem]:
        """Yields the items that match a filter, or all, in the order of their ids; fetches them page by page.

        An item written meanwhile is seen or not; none is seen twice. `timeout` is for each page.
        """
        return self._pages(lambda token: calls.list_items(collection, filter, token), timeout)

    def count_items(self, collection: str, *, filter: Filter | None = None, timeout: float | None = None) -> int:
        """Returns how many items match a filter, or how many there are."""
        return self._run(calls.count_items(collection, filter), timeout)

    def search(
        self,
        collection: str,
        *,
        text: str | None = None,
        image: Image | None = None,
        vector: VectorLike | None = None,
        item_id: str | None = None,
        query: Query | None = None,
        filter: Filter | None = None,
        top_k: int = 10,
        score_threshold: float | None = None,
        ids_only: bool = False,
        include_vectors: bool = False,
        min_sequence: int | None = None,
        timeout: float | None = None,
    ) -> SearchResult:
        """Returns the at most `top_k` (1 to 1,000) items nearest to a query, best first.

        Exactly one of `text`, `image`, `vector` [d], `item_id` (that item is not among the hits) and `query` says what
        to look for. `filter` limits the items considered. Hits with a score, a cosine in [-1, 1], below
        `score_threshold` are dropped. `ids_only` leaves out the payloads, `include_vectors` adds the vectors. Every
        confirmed write is seen; `min_sequence` makes sure of it: FailedPrecondition if the collection has not reached
        that write.

        Raises NotFound for an unknown collection or item, FailedPrecondition if the collection's encoder has changed.
        """
        call = calls.search(
            collection,
            text=text,
            image=image,
            vector=vector,
            item_id=item_id,
            query=query,
            filter=filter,
            top_k=top_k,
            score_threshold=score_threshold,
            ids_only=ids_only,
            include_vectors=include_vectors,
            min_sequence=min_sequence,
        )
        return self._run(call, timeout)

    def _run(self, call: Call[Result], timeout: float | None) -> Result:
        deadline = time.monotonic() + (self._timeout if timeout is None else timeout)
        while True:
            try:
                response = self._methods[call.method](call.request, timeout=deadline - time.monotonic())
                return call.parse(response)
            except grpc.RpcError as error:
                failure = errors.from_rpc(error)
                pause = retry.pause(failure, deadline - time.monotonic())
                if pause is None or self._closed.wait(pause):
                    raise failure from error

    def _pages(self, page_call: Callable[[str], Call[Page[Result]]], timeout: float | None) -> Iterator[Result]:
        token = ""
        while True:
            page = self._run(page_call(token), timeout)
            yield from page.members
            token = page.next_token
            if not token:
                return
