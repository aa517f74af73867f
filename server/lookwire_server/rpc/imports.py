"""ImportItems: a stream of chunks that are embedded side by side, written in their order, and acknowledged."""

import asyncio
from collections.abc import AsyncIterable, Coroutine
from dataclasses import dataclass
from typing import Any, TypeVar

import grpc
import numpy as np

from lookwire.v1 import item_service_pb2 as pb
from lookwire_server.encoding.encoders import Encoders
from lookwire_server.errors import InvalidArgument, InvalidVector, LookwireError, Unavailable
from lookwire_server.rpc import convert
from lookwire_server.rpc.guard import Guard, to_status
from lookwire_server.rpc.handlers import Received
from lookwire_server.rpc.item_vectors import item_vectors, new_item
from lookwire_server.search.collection import Collection
from lookwire_server.search.collections import Collections
from lookwire_server.search.item_writes import Imported, Written
from lookwire_server.search.items import CheckedItems, check_count, check_each
from lookwire_server.search.vectors import Matrix, normalised

METHOD = "/lookwire.v1.ItemService/ImportItems"
# Chunks of one stream that are embedded, written or wait to be acknowledged; the next is read when one is done.
MAX_CHUNKS = 4

Context = grpc.aio.ServicerContext[Any, Any]
Result = TypeVar("Result")


class Imports:
    """Serves streams of items."""

    def __init__(self, collections: Collections, encoders: Encoders, guard: Guard) -> None:
        self._collections = collections
        self._encoders = encoders
        self._guard = guard
        self._guarded = guard(METHOD, self._run)
        self._open: set[Import] = set()
        self._stopping = False

    async def serve(self, requests: AsyncIterable[Received], context: Context) -> None:
        """Answers a stream until the client ends it and every chunk is acknowledged."""
        await self._guarded((requests, 0), context)

    def stop(self) -> None:
        """Reads no more; streams end with UNAVAILABLE when the chunks in work are acknowledged, and later ones at once."""
        self._stopping = True
        for stream in self._open:
            stream.stop_reading()

    async def _run(self, requests: AsyncIterable[Received], context: Context) -> None:
        if self._stopping:
            raise Unavailable("the server is stopping")
        stream = Import(self._collections, self._encoders, self._guard, context)
        self._open.add(stream)
        try:
            await stream.run(requests)
        finally:
            self._open.discard(stream)
            await stream.end()


@dataclass(frozen=True, slots=True)
class Prepared:
    """Items of a chunk that are ready to be written, whose ids differ, and the errors of others; both by position."""

    positions: list[int]
    items: CheckedItems
    vectors: Matrix
    errors: dict[int, LookwireError]


class Import:
    """One stream: `run` it to its end, then `end` it."""

    def __init__(self, collections: Collections, encoders: Encoders, guard: Guard, context: Context) -> None:
        self._collections = collections
        self._encoders = encoders
        self._guard = guard
        self._context = context
        self._chunks: asyncio.Queue[asyncio.Task[pb.ImportItemsResponse] | None] = asyncio.Queue()  # bounded by _room
        self._room = asyncio.Semaphore(MAX_CHUNKS)
        self._tasks: set[asyncio.Task[Any]] = set()
        self._reading: asyncio.Task[None] | None = None
        self._named = ""

    async def run(self, requests: AsyncIterable[Received]) -> None:
        """Acknowledges chunks in their order; raises the first error that is of the stream and not of an item."""
        self._reading = self._start(self._read(requests))
        self._reading.add_done_callback(lambda _: self._chunks.put_nowait(None))
        while (chunk := await self._chunks.get()) is not None:
            await self._context.write(await chunk)
            self._room.release()
        if self._reading.cancelled():
            raise Unavailable("the server is stopping")
        self._reading.result()

    def stop_reading(self) -> None:
        """Takes no more chunks."""
        if self._reading:
            self._reading.cancel()

    async def end(self) -> None:
        """Gives up what is still in work, and waits for that; a write that has begun is carried out."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _read(self, requests: AsyncIterable[Received]) -> None:
        collection: Collection | None = None
        before = asyncio.Event()
        before.set()
        await self._room.acquire()
        async for request, size in requests:
            if isinstance(request, LookwireError):
                raise request
            collection = self._collection(request, collection)
            check_count(len(request.items), "items")
            submitted = asyncio.Event()
            self._chunks.put_nowait(self._start(self._chunk(collection, request, size, before, submitted)))
            before = submitted
            # Before the next is read, so that a client that sends too fast is held back.
            del request
            await self._room.acquire()

    def _collection(self, request: pb.ImportItemsRequest, collection: Collection | None) -> Collection:
        """The collection of the stream, which its first message names."""
        if collection is None:
            if not request.collection:
                raise InvalidArgument("the first message of an import names the collection", field="collection")
            self._named = request.collection
            return self._collections.get(request.collection, "collection")
        if request.collection not in ("", self._named):
            raise InvalidArgument(
                f"an import is to one collection, and this one began with '{self._named}'", field="collection"
            )
        return collection

    async def _chunk(
        self,
        collection: Collection,
        request: pb.ImportItemsRequest,
        size: int,
        before: asyncio.Event,
        submitted: asyncio.Event,
    ) -> pb.ImportItemsResponse:
        """Writes a chunk; begins with the writing after `before`, and sets `submitted` when it has begun."""
        with self._guard.holding(size):
            prepared = await self._prepare(collection, request.items)
            await before.wait()
            writing = self._start(self._write(collection, prepared))
            submitted.set()
            imported = await writing
            self._collections.check_means(self._named, collection)
        errors = {**prepared.errors, **imported.errors}
        return pb.ImportItemsResponse(
            chunk=request.chunk,
            sequence=imported.written.sequence,
            inserted_count=imported.written.inserted,
            replaced_count=imported.written.replaced,
            errors=[
                pb.ItemError(index=index, id=request.items[index].id, status=to_status(error))
                for index, error in sorted(errors.items())
            ],
        )

    async def _prepare(self, collection: Collection, messages: Any) -> Prepared:
        keeps = collection.row.keeps_sources
        items = [new_item(message, keeps_source=keeps) for message in messages]
        positions, checked, errors = check_each(enumerate(items), collection.row.fields)
        made = await item_vectors(
            collection,
            self._encoders,
            [(position, messages[position]) for position in positions],
            convert.deadline(self._context),
        )
        errors.update(made.errors)
        vectors = normalised_each(positions, made.rows, errors)
        # Of equal ids the last that is good counts.
        last = {
            item.id: place
            for place, (position, item) in enumerate(zip(positions, checked.items, strict=True))
            if position not in errors
        }
        kept = sorted(last.values())
        return Prepared([positions[place] for place in kept], checked.at(kept), vectors[kept], errors)

    async def _write(self, collection: Collection, prepared: Prepared) -> Imported:
        if not prepared.positions:
            return Imported(Written(0, 0, 0), {})
        return await collection.import_items(prepared.positions, prepared.items, prepared.vectors)

    def _start(self, work: Coroutine[Any, Any, Result]) -> "asyncio.Task[Result]":
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        # The first failure ends the stream; those behind it are nobody's to hear.
        if not task.cancelled():
            task.exception()


def normalised_each(positions: list[int], rows: Matrix, errors: dict[int, LookwireError]) -> Matrix:
    """The rows with length 1, zeros for those that have an error; adds the errors of vectors that are bad."""
    vectors = np.zeros_like(rows)
    good = [place for place, position in enumerate(positions) if position not in errors]
    try:
        vectors[good] = normalised(rows[good], rows.shape[1], str)
    except InvalidVector:
        for place in good:
            position = positions[place]
            try:
                vectors[place] = normalised(rows[[place]], rows.shape[1], str)
            except InvalidVector as error:
                errors[position] = error.at(f"items[{position}].vector")
    return vectors
