"""The client for threads."""

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Self

import grpc

from lookwire import calls, channel, errors, imports, retry
from lookwire.calls import Call, Page, Result
from lookwire.filters import Filter
from lookwire.queries import Diversity, GroupBy, Hybrid, Query, Search
from lookwire.types import (
    BatchSearchResult,
    Classifications,
    Collection,
    CollectionStatistics,
    Content,
    Deleted,
    Embeddings,
    Encoder,
    Facets,
    FieldType,
    Image,
    Imported,
    IndexSettings,
    Item,
    LabelGroup,
    Labels,
    PayloadUpdate,
    ReembedProgress,
    Scores,
    SearchResult,
    Snapshot,
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
    is safe: an upsert or a deletion has the same effect twice, only its counts then tell of the second time, and a
    condition (`if_sequence`) shows as Conflict, unless an upsert has an idempotency key; and
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
        index: IndexSettings | None = None,
        keep_sources: bool = False,
        timeout: float | None = None,
    ) -> Collection:
        """Makes an empty collection, for items that `encoder` embeds; empty where the server serves exactly one.

        `fields` are the top-level keys of payloads that filters will use, and their types. `index` says how it is indexed;
        without, the server chooses. `keep_sources` keeps the text or image of each item, for `reembed_collection`; it cannot be
        changed later. Raises AlreadyExists for a taken name, NotFound for an unknown encoder.
        """
        call = calls.create_collection(name, fields or {}, encoder, index, keep_sources=keep_sources)
        return self._run(call, timeout)

    def get_collection(self, name: str, *, timeout: float | None = None) -> Collection:
        """Returns one collection. Raises NotFound."""
        return self._run(calls.get_collection(name), timeout)

    def list_collections(self, *, timeout: float | None = None) -> list[Collection]:
        """Returns all collections, by name; `timeout` is for each page of them."""
        return list(self._pages(calls.list_collections, timeout))

    def delete_collection(self, name: str, *, timeout: float | None = None) -> None:
        """Removes a collection and all its items, for good. Raises NotFound."""
        self._run(calls.delete_collection(name), timeout)

    def create_snapshot(self, collection: str, *, timeout: float | None = None) -> Snapshot:
        """Copies a collection as of one moment to a file in the directory `snapshots` of the server's data directory.

        Writes go on meanwhile. Give a timeout that fits the size; a copy that is not ready by then is given up. The copy has
        items, vectors, kept sources, declared fields and settings, but no aliases. Raises NotFound.
        """
        return self._run(calls.create_snapshot(collection), timeout)

    def list_snapshots(self, collection: str = "", *, timeout: float | None = None) -> list[Snapshot]:
        """Returns the readable snapshots of collections of that name, or of all, by name; at most 1,000."""
        return self._run(calls.list_snapshots(collection), timeout)

    def restore_snapshot(self, snapshot: str, collection: str, *, timeout: float | None = None) -> Collection:
        """Makes a new collection, of that name, of the snapshot with the name `snapshot`; it appears whole or not at all.

        Everything else goes on meanwhile. Give a timeout that fits the size; a restore that is not ready by then is given up.
        The collection needs the encoder with the snapshot's fingerprint for what must be encoded, not for vectors.

        Raises NotFound for an unknown snapshot, AlreadyExists for a taken name, FailedPrecondition for a file that is damaged,
        no snapshot, or made by a newer server.
        """
        return self._run(calls.restore_snapshot(snapshot, collection), timeout)

    def delete_snapshot(self, snapshot: str, *, timeout: float | None = None) -> None:
        """Removes the file of a snapshot, for good. Raises NotFound."""
        self._run(calls.delete_snapshot(snapshot), timeout)

    def update_collection(
        self,
        name: str,
        *,
        fields: Mapping[str, FieldType | str] | None = None,
        index: IndexSettings | None = None,
        timeout: float | None = None,
    ) -> Collection:
        """Changes the declared fields, all of which are given, and how it is indexed; None leaves them as they are.

        Raises FailedPrecondition, naming the item, if a payload does not fit a field; nothing is changed then.
        """
        return self._run(calls.update_collection(name, fields, index), timeout)

    def collection_statistics(self, name: str, *, timeout: float | None = None) -> CollectionStatistics:
        """Returns figures about items, memory, disk and index of a collection. Raises NotFound."""
        return self._run(calls.collection_statistics(name), timeout)

    def set_alias(self, alias: str, collection: str, *, timeout: float | None = None) -> Collection:
        """Makes a further name for a collection, or points one to another collection, at once for all calls that come later.

        Every method takes an alias where it takes a collection's name. Raises AlreadyExists for the name of a collection.
        """
        return self._run(calls.set_alias(alias, collection), timeout)

    def delete_alias(self, alias: str, *, timeout: float | None = None) -> None:
        """Removes an alias; the collection stays. Raises NotFound."""
        self._run(calls.delete_alias(alias), timeout)

    def reembed_collection(
        self, name: str, target: str, encoder: str, *, alias: str = "", timeout: float | None = None
    ) -> Iterator[ReembedProgress]:
        """Copies a collection into a new one, `target`, embedded by another encoder, while both serve; yields the progress.

            for progress in client.reembed_collection("shoes", "shoes-2", "vit-l-14", alias="shop"):
                print(progress.copied_count, "of", progress.item_count)

        The collection must keep its sources. Items written meanwhile are copied too. Once both are equal `alias`, if given, names
        the new one, and the last progress is `done`. It goes on as long as it is read: given up, or broken off by an error, the
        same call goes on from there. `timeout` is for the whole; there is none by default.

        Raises FailedPrecondition for an item without a source, AlreadyExists for a target that is another collection.
        """
        return self._stream(calls.reembed_collection(name, target, encoder, alias), timeout)

    def upsert(
        self,
        collection: str,
        items: Iterable[Item],
        *,
        idempotency_key: str = "",
        progress: Callable[[int], None] | None = None,
        timeout: float | None = None,
    ) -> Upserted:
        """Adds items, and replaces those whose id exists as a whole: payload and vector.

        The items go out in chunks of at most 256 items and about 4 MiB, one after the other, so `items` may be a
        generator of any length; an id that comes twice in a chunk is InvalidArgument. Each chunk is atomic, the whole
        is not: on an error the chunks before are written, and the chunk that failed is written whole or not at all.
        The error's `acknowledged` says how many items were confirmed, and its field violations count the items from the
        first of all. `progress` is called after each chunk with the number of confirmed items; `timeout` is for each.

        With an `idempotency_key` (at most 128 bytes; chunks after the first append "/" and their number) an upsert that
        is repeated writes nothing again and returns what it returned before; InvalidArgument if the items are others. The
        server remembers the last 10,000 keys of a collection. Raises Conflict for an item that does not have its `if_sequence`.
        """
        total = Upserted(sequence=0, inserted=0, replaced=0)
        for call in calls.upsert(collection, items, idempotency_key):
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

    def import_items(
        self,
        collection: str,
        items: Iterable[Item],
        *,
        chunk_size: int = 256,
        progress: Callable[[int], None] | None = None,
        timeout: float | None = None,
    ) -> Imported:
        """Adds and replaces items over one stream: quicker than `upsert` for many, and it goes on past items that are bad.

        `items` may be a generator of any length, and is read as the server takes them, images given as paths too. They go
        out in chunks of at most `chunk_size` (1 to 1,024) items and about 4 MiB, of which up to 8 are kept until the
        server has acknowledged them. An item that cannot be written has an error in the result; of equal ids the last counts.
        `progress` is called after each chunk with the number of items that were written or refused.

        Where the server cannot be reached, is stopping or overloaded, the import goes on from the last acknowledged chunk. Then
        some items may be written twice, which shows in the counts, and as a Conflict for those with `if_sequence`. It fails when
        it has waited `timeout` seconds for an acknowledgement; the error's `acknowledged` says how many items were written.
        """
        state = calls.Import(collection, items, chunk_size)
        seconds = self._timeout if timeout is None else timeout
        return imports.run(self._methods["ImportItems"], state, progress, seconds, self._closed)

    def update_payloads(
        self, collection: str, updates: Iterable[PayloadUpdate], *, timeout: float | None = None
    ) -> int:
        """Changes the payloads of 1 to 1,024 items, all or none, and keeps their vectors; returns the sequence of the write.

            client.update_payloads("shop", [PayloadUpdate("a", merge_patch={"price": 35.0, "old_price": None})])

        Raises NotFound for an id that does not exist, Conflict for an item that does not have its `if_sequence`. Made again
        because the server could not be reached, an update with `if_sequence` can be a Conflict with itself.
        """
        return self._run(calls.update_payloads(collection, updates), timeout)

    def delete_items(
        self,
        collection: str,
        ids: Sequence[str] = (),
        *,
        filter: Filter | None = None,
        timeout: float | None = None,
    ) -> Deleted:
        """Removes items by id, 1 to 1,024, or all that match a filter; ids that do not exist are passed over.

        Raises ValueError unless exactly one of ids and filter is given.
        """
        return self._run(calls.delete_items(collection, ids, filter), timeout)

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

    def facet_items(
        self,
        collection: str,
        fields: Sequence[str],
        *,
        filter: Filter | None = None,
        limit: int = 10,
        timeout: float | None = None,
    ) -> Facets:
        """Counts the items that match a filter, or all, by the values of 1 to 16 string, int64 or bool fields.

            client.facet_items("shop", ["colour"], filter=field("price") < 50).fields["colour"].counts["red"]

        The `limit` (1 to 1,000) commonest values of each field are returned. Raises InvalidArgument for another field.
        """
        return self._run(calls.facet_items(collection, fields, filter, limit), timeout)

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
        calibrated_threshold: float | None = None,
        include_calibrated_scores: bool = False,
        hybrid: Hybrid | None = None,
        diversity: Diversity | None = None,
        group_by: GroupBy | None = None,
        collapse_cosine: float | None = None,
        ids_only: bool = False,
        payload_fields: Sequence[str] = (),
        include_vectors: bool = False,
        exact: bool = False,
        explain: bool = False,
        min_sequence: int | None = None,
        timeout: float | None = None,
    ) -> SearchResult:
        """Returns the at most `top_k` (1 to 1,000) items nearest to a query, best first.

        Exactly one of `text`, `image`, `vector` [d], `item_id` (that item is not among the hits) and `query` says what
        to look for. `filter` limits the items considered; `exact` compares all of them, whatever index there is.

        Hits with a score, a cosine in [-1, 1], below `score_threshold` are dropped, and so are those below
        `calibrated_threshold`: a calibrated score, in [0, 1], says how sure one can be that a score is no accident, and 0.5
        is a sensible threshold for every encoder. That threshold, or `include_calibrated_scores`, adds these scores.
        `hybrid` looks for words too and ranks by both; `collapse_cosine`, in (0, 1], drops a hit whose cosine with a better
        one is that or higher; `group_by` returns the best hits of each value of a field, and `diversity` hits that differ.
        They work in this order, and together.

        `ids_only` leaves out the payloads, `payload_fields` are the top-level keys to return of them (all if none is named),
        `include_vectors` adds the vectors, `explain` says all about how the search was carried out. Every confirmed write is
        seen; `min_sequence` makes sure of it: FailedPrecondition if the collection has not reached that write.

        Raises NotFound for an unknown collection or item, InvalidArgument for a field that is not declared as it must be,
        FailedPrecondition if the collection's encoder is needed and not served, or has changed, or for a hybrid search without
        text fields, ResourceExhausted for payloads and vectors of more than 64 MiB.
        """
        search = Search(
            text=text,
            image=image,
            vector=vector,
            item_id=item_id,
            query=query,
            filter=filter,
            top_k=top_k,
            score_threshold=score_threshold,
            calibrated_threshold=calibrated_threshold,
            include_calibrated_scores=include_calibrated_scores,
            hybrid=hybrid,
            diversity=diversity,
            group_by=group_by,
            collapse_cosine=collapse_cosine,
            ids_only=ids_only,
            payload_fields=payload_fields,
            include_vectors=include_vectors,
            exact=exact,
            explain=explain,
            min_sequence=min_sequence,
        )
        return self._run(calls.search(collection, search), timeout)

    def batch_search(
        self, collection: str, searches: Sequence[Search], *, partial: bool = False, timeout: float | None = None
    ) -> BatchSearchResult:
        """Carries out 1 to 256 searches of at most 10,000 hits in all at once.

            client.batch_search("shop", [Search(text="a red dress"), Search(text="a hat", top_k=3)])

        A search that fails raises its error, which names its index; with `partial` its result is None and its error is in
        `errors`, by index. One whose payloads and vectors no longer fit with those before into 64 MiB is ResourceExhausted.
        """
        return self._run(calls.batch_search(collection, searches, partial=partial), timeout)

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

    def _stream(self, call: Call[Result], timeout: float | None) -> Iterator[Result]:
        replies = self._methods[call.method](call.request, timeout=timeout)
        try:
            for response in replies:
                yield call.parse(response)
        except grpc.RpcError as error:
            raise errors.from_rpc(error) from error
        finally:
            replies.cancel()

    def _pages(self, page_call: Callable[[str], Call[Page[Result]]], timeout: float | None) -> Iterator[Result]:
        token = ""
        while True:
            page = self._run(page_call(token), timeout)
            yield from page.members
            token = page.next_token
            if not token:
                return
