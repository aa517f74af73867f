"""The client for asyncio."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
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


class AsyncClient:
    """`Client` for asyncio: the same methods, to be awaited, with the same arguments, results and errors.

        async with AsyncClient("localhost:8001") as client:
            result = await client.search("shop", text="a red dress")

    To be made and used in one event loop. Images given as paths are read in that loop.
    """

    def __init__(
        self, address: str, *, credentials: grpc.ChannelCredentials | None = None, timeout: float = 30.0
    ) -> None:
        if credentials is None:
            self._channel = grpc.aio.insecure_channel(address, options=channel.OPTIONS)
        else:
            self._channel = grpc.aio.secure_channel(address, credentials, options=channel.OPTIONS)
        self._methods = channel.methods(self._channel)
        self._watch_health: grpc.aio.UnaryStreamMultiCallable[bytes, bytes] = self._channel.unary_stream(
            channel.HEALTH_WATCH
        )
        self._timeout = timeout
        self._closed = False

    async def close(self) -> None:
        """See `Client.close`."""
        self._closed = True
        await self._channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def wait_until_ready(self, timeout: float = 30.0) -> None:
        """See `Client.wait_until_ready`."""
        deadline = time.monotonic() + timeout
        while True:
            remaining = max(0.0, deadline - time.monotonic())
            try:
                async for status in self._watch_health(channel.HEALTH_REQUEST, timeout=remaining, wait_for_ready=True):
                    if status == channel.HEALTH_SERVING:
                        return
            except grpc.RpcError as error:
                failure = errors.from_rpc(error)
                if not isinstance(failure, errors.Unavailable | errors.Cancelled):  # a server that stops may come back
                    raise failure from error

    async def list_encoders(self, *, timeout: float | None = None) -> list[Encoder]:
        """See `Client.list_encoders`."""
        return await self._run(calls.list_encoders(), timeout)

    async def get_encoder(self, name: str = "", *, timeout: float | None = None) -> Encoder:
        """See `Client.get_encoder`."""
        return await self._run(calls.get_encoder(name), timeout)

    async def embed(
        self,
        texts: Sequence[str] = (),
        images: Sequence[Image] = (),
        *,
        encoder: str = "",
        partial: bool = False,
        float16: bool = False,
        timeout: float | None = None,
    ) -> Embeddings:
        """See `Client.embed`."""
        return await self._run(calls.embed(texts, images, encoder, partial=partial, float16=float16), timeout)

    async def score(
        self,
        pairs: Sequence[tuple[Content, Content]],
        *,
        encoder: str = "",
        partial: bool = False,
        timeout: float | None = None,
    ) -> Scores:
        """See `Client.score`."""
        return await self._run(calls.score(pairs, encoder, partial=partial), timeout)

    async def classify(
        self,
        inputs: Sequence[Content],
        groups: Mapping[str, Labels | LabelGroup],
        *,
        top_k: int = 0,
        encoder: str = "",
        partial: bool = False,
        timeout: float | None = None,
    ) -> Classifications:
        """See `Client.classify`."""
        return await self._run(calls.classify(inputs, groups, encoder, top_k=top_k, partial=partial), timeout)

    async def create_collection(
        self,
        name: str,
        fields: Mapping[str, FieldType | str] | None = None,
        *,
        encoder: str = "",
        index: IndexSettings | None = None,
        keep_sources: bool = False,
        timeout: float | None = None,
    ) -> Collection:
        """See `Client.create_collection`."""
        call = calls.create_collection(name, fields or {}, encoder, index, keep_sources=keep_sources)
        return await self._run(call, timeout)

    async def get_collection(self, name: str, *, timeout: float | None = None) -> Collection:
        """See `Client.get_collection`."""
        return await self._run(calls.get_collection(name), timeout)

    async def list_collections(self, *, timeout: float | None = None) -> list[Collection]:
        """See `Client.list_collections`."""
        return [each async for each in self._pages(calls.list_collections, timeout)]

    async def delete_collection(self, name: str, *, timeout: float | None = None) -> None:
        """See `Client.delete_collection`."""
        await self._run(calls.delete_collection(name), timeout)

    async def create_snapshot(self, collection: str, *, timeout: float | None = None) -> Snapshot:
        """See `Client.create_snapshot`."""
        return await self._run(calls.create_snapshot(collection), timeout)

    async def list_snapshots(self, collection: str = "", *, timeout: float | None = None) -> list[Snapshot]:
        """See `Client.list_snapshots`."""
        return await self._run(calls.list_snapshots(collection), timeout)

    async def restore_snapshot(self, snapshot: str, collection: str, *, timeout: float | None = None) -> Collection:
        """See `Client.restore_snapshot`."""
        return await self._run(calls.restore_snapshot(snapshot, collection), timeout)

    async def delete_snapshot(self, snapshot: str, *, timeout: float | None = None) -> None:
        """See `Client.delete_snapshot`."""
        await self._run(calls.delete_snapshot(snapshot), timeout)

    async def update_collection(
        self,
        name: str,
        *,
        fields: Mapping[str, FieldType | str] | None = None,
        index: IndexSettings | None = None,
        timeout: float | None = None,
    ) -> Collection:
        """See `Client.update_collection`."""
        return await self._run(calls.update_collection(name, fields, index), timeout)

    async def collection_statistics(self, name: str, *, timeout: float | None = None) -> CollectionStatistics:
        """See `Client.collection_statistics`."""
        return await self._run(calls.collection_statistics(name), timeout)

    async def set_alias(self, alias: str, collection: str, *, timeout: float | None = None) -> Collection:
        """See `Client.set_alias`."""
        return await self._run(calls.set_alias(alias, collection), timeout)

    async def delete_alias(self, alias: str, *, timeout: float | None = None) -> None:
        """See `Client.delete_alias`."""
        await self._run(calls.delete_alias(alias), timeout)

    def reembed_collection(
        self, name: str, target: str, encoder: str, *, alias: str = "", timeout: float | None = None
    ) -> AsyncIterator[ReembedProgress]:
        """See `Client.reembed_collection`."""
        return self._stream(calls.reembed_collection(name, target, encoder, alias), timeout)

    async def upsert(
        self,
        collection: str,
        items: Iterable[Item],
        *,
        idempotency_key: str = "",
        progress: Callable[[int], None] | None = None,
        timeout: float | None = None,
    ) -> Upserted:
        """See `Client.upsert`."""
        total = Upserted(sequence=0, inserted=0, replaced=0)
        for call in calls.upsert(collection, items, idempotency_key):
            try:
                total = calls.added(total, await self._run(call, timeout))
            except errors.LookwireError as error:
                raise calls.failed_after(total, error) from error
            if progress:
                progress(total.count)
        return total

    async def get_items(
        self, collection: str, ids: Sequence[str], *, include_vectors: bool = False, timeout: float | None = None
    ) -> list[StoredItem]:
        """See `Client.get_items`."""
        return await self._run(calls.get_items(collection, ids, include_vectors=include_vectors), timeout)

    async def import_items(
        self,
        collection: str,
        items: Iterable[Item],
        *,
        chunk_size: int = 256,
        progress: Callable[[int], None] | None = None,
        timeout: float | None = None,
    ) -> Imported:
        """See `Client.import_items`."""
        state = calls.Import(collection, items, chunk_size)
        seconds = self._timeout if timeout is None else timeout
        return await imports.run_async(self._methods["ImportItems"], state, progress, seconds, lambda: self._closed)

    async def update_payloads(
        self, collection: str, updates: Iterable[PayloadUpdate], *, timeout: float | None = None
    ) -> int:
        """See `Client.update_payloads`."""
        return await self._run(calls.update_payloads(collection, updates), timeout)

    async def delete_items(
        self,
        collection: str,
        ids: Sequence[str] = (),
        *,
        filter: Filter | None = None,
        timeout: float | None = None,
    ) -> Deleted:
        """See `Client.delete_items`."""
        return await self._run(calls.delete_items(collection, ids, filter), timeout)

    def list_items(
        self, collection: str, *, filter: Filter | None = None, timeout: float | None = None
    ) -> AsyncIterator[StoredItem]:
        """See `Client.list_items`."""
        return self._pages(lambda token: calls.list_items(collection, filter, token), timeout)

    async def count_items(self, collection: str, *, filter: Filter | None = None, timeout: float | None = None) -> int:
        """See `Client.count_items`."""
        return await self._run(calls.count_items(collection, filter), timeout)

    async def facet_items(
        self,
        collection: str,
        fields: Sequence[str],
        *,
        filter: Filter | None = None,
        limit: int = 10,
        timeout: float | None = None,
    ) -> Facets:
        """See `Client.facet_items`."""
        return await self._run(calls.facet_items(collection, fields, filter, limit), timeout)

    async def search(
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
        """See `Client.search`."""
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
        return await self._run(calls.search(collection, search), timeout)

    async def batch_search(
        self, collection: str, searches: Sequence[Search], *, partial: bool = False, timeout: float | None = None
    ) -> BatchSearchResult:
        """See `Client.batch_search`."""
        return await self._run(calls.batch_search(collection, searches, partial=partial), timeout)

    async def _run(self, call: Call[Result], timeout: float | None) -> Result:
        deadline = time.monotonic() + (self._timeout if timeout is None else timeout)
        while True:
            try:
                response = await self._methods[call.method](call.request, timeout=deadline - time.monotonic())
                return call.parse(response)
            except grpc.RpcError as error:
                failure = errors.from_rpc(error)
                pause = retry.pause(failure, deadline - time.monotonic())
                if pause is None:
                    raise failure from error
                await asyncio.sleep(pause)
                if self._closed:
                    raise failure from error

    async def _stream(self, call: Call[Result], timeout: float | None) -> AsyncIterator[Result]:
        replies = self._methods[call.method](call.request, timeout=timeout)
        try:
            async for response in replies:
                yield call.parse(response)
        except grpc.RpcError as error:
            raise errors.from_rpc(error) from error
        finally:
            replies.cancel()

    async def _pages(
        self, page_call: Callable[[str], Call[Page[Result]]], timeout: float | None
    ) -> AsyncIterator[Result]:
        token = ""
        while True:
            page = await self._run(page_call(token), timeout)
            for member in page.members:
                yield member
            token = page.next_token
            if not token:
                return
