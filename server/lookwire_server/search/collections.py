"""All collections of a data directory."""

import asyncio
import re
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import structlog

from lookwire_server.errors import FailedPrecondition, InvalidArgument, NotFound, Unavailable
from lookwire_server.metrics import Metrics
from lookwire_server.search import gauges
from lookwire_server.search.collection import Collection
from lookwire_server.search.collection_writes import (
    BeginCopy,
    CreateCollection,
    DeleteCollection,
    EndCopy,
    RemoveAlias,
    SetAlias,
    taken,
)
from lookwire_server.search.declarations import UpdateDeclarations
from lookwire_server.search.engine import Engine, Probe
from lookwire_server.search.fields import MAX_SHOWN_NAMES, Field, check_fields, listed, shown
from lookwire_server.search.index.generation import Doubtful
from lookwire_server.search.index.generations import INDEXES, Generations
from lookwire_server.search.index.live import VectorIndex
from lookwire_server.search.index.load import load
from lookwire_server.search.reembedding import Embed, Reembedding
from lookwire_server.search.restore import remove_unfinished
from lookwire_server.search.snapshots import Snapshots
from lookwire_server.search.store.collections import CollectionRow, IndexSettings, NewCollection
from lookwire_server.search.store.copies import Copy
from lookwire_server.search.store.store import Store
from lookwire_server.search.writer import Result, Write

log = structlog.get_logger()

NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]{0,127}")
# How often a long start says how far it is.
PROGRESS_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Reembedded:
    """The collection that a copy is made as, and the encoder that embeds it."""

    target: str
    encoder: str
    fingerprint: str
    dimension: int


class Collections:
    """Opens a data directory, and finds, makes and deletes collections in it."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        # By name and by alias; never changed but replaced whole, by the writer's thread.
        self._by_name: dict[str, Collection] = {}
        self.snapshots = Snapshots(engine, self)

    @classmethod
    def open(
        cls,
        data_dir: Path,
        metrics: Metrics,
        *,
        search_threads: int,
        on_failure: Callable[[BaseException], None],
        probe: Probe = lambda _: None,
    ) -> "Collections":
        """Reads all into memory. `on_failure` is called once, in another thread, if writing becomes impossible.

        `probe` is called in another thread with a collection whose index is to be tuned and that has seen few queries.
        """
        store = Store(data_dir)
        try:
            remove_unfinished(store)
            rows = store.collections.all()
            remove_orphans(store, rows)
            aliases = store.collections.aliases()
            loaded = [(row, loaded_index(store, row)) for row in rows]
        except BaseException:
            store.close()
            raise
        engine = Engine.start(store, metrics, search_threads=search_threads, on_failure=on_failure, probe=probe)
        collections = cls(engine)
        by_number = {row.number: collections.adopt(row, index) for row, index in loaded}
        for alias, number in aliases.items():
            collections.point(alias, by_number[number])
        collections.snapshots.remove_unfinished()
        return collections

    def close(self) -> None:
        """Writes what waits, finishes what runs, and closes the database."""
        self._engine.close()

    def get(self, name: str, field: str = "") -> Collection:
        """Returns the collection of a name or an alias, which the request has at `field`; raises NotFound."""
        collection = self._by_name.get(name)
        if collection is None:
            names = sorted(self._by_name)
            existing = "there are none" if not names else f"existing: {listed(names)}"
            raise NotFound(
                f"no collection {shown(name)}" + (f"; {existing}" if len(names) <= MAX_SHOWN_NAMES else ""),
                field=field,
                collection=name,
            )
        return collection

    def check_means(self, name: str, collection: Collection) -> None:
        """Raises Unavailable if the name means another collection by now: no write may be confirmed that went elsewhere."""
        if self._by_name.get(name, collection) is not collection:
            raise Unavailable(f"alias {name!r} was pointed to another collection meanwhile; try again", alias=name)

    def list(self) -> list[Collection]:
        """Returns all, by name."""
        return [collection for name, collection in sorted(self._by_name.items()) if name == collection.name]

    async def create(self, new: NewCollection) -> Collection:
        """Returns the new, empty collection, which is on disk. Raises AlreadyExists for a taken name."""
        check_name(new.name, "name")
        check_fields(new.fields)
        check_settings(new.index)
        return await self._write(CreateCollection(self, new))

    async def delete(self, name: str) -> None:
        """Removes a collection and its items; when it returns this is on disk. Searches that run are not disturbed."""
        await self._write(DeleteCollection(self, self.get(name, "name")))

    async def update(
        self, name: str, fields: tuple[Field, ...] | None = None, settings: IndexSettings | None = None
    ) -> Collection:
        """Declares other fields, other settings of the index, or both; None leaves them. When it returns this is on disk.

        Raises FailedPrecondition, naming the item, if the payload of one does not fit the fields; nothing is changed then.
        """
        collection = self.get(name, "name")
        if fields is not None:
            check_fields(fields)
        if settings is not None:
            check_settings(settings)
        await self._write(UpdateDeclarations(collection, fields, settings))
        return collection

    async def set_alias(self, alias: str, name: str) -> Collection:
        """Points an alias to a collection, for all calls that come later. Raises AlreadyExists for a collection's own name."""
        check_name(alias, "alias")
        return await self._write(SetAlias(self, alias, self.get(name, "collection")))

    async def remove_alias(self, alias: str) -> None:
        """Raises NotFound if there is no such alias."""
        await self._write(RemoveAlias(self, alias))

    async def reembed(self, name: str, new: Reembedded, alias: str, embed: Embed) -> Reembedding:
        """Returns the copying of a collection into the one of that target, new or begun before, ready to run.

        At its end it points the alias, unless that is empty. Raises FailedPrecondition if the source lacks sources, AlreadyExists
        if the target is none that such a copy began.
        """
        source = self.get(name, "name")
        check_name(new.target, "target")
        if alias:
            check_name(alias, "alias")
            if alias == new.target or alias in (each.name for each in self.list()):
                raise taken(alias, "alias")
        await self._check_sources(source)
        number = source.row.number
        target = self._by_name.get(new.target)
        copy = Copy(number)
        if target is None:
            made = NewCollection(
                new.target, new.encoder, new.fingerprint, new.dimension, source.row.fields, source.row.index, True
            )
            target = await self._write(CreateCollection(self, made, copy_of=number))
        else:
            row = target.row
            if (row.name, row.encoder, row.fingerprint) != (new.target, new.encoder, new.fingerprint):
                raise taken(new.target, "target")
            begun = await self._engine.reading.run(partial(self._engine.store.copies.of, row.number))
            if begun is None:
                await self._write(BeginCopy(target, source))
            elif begun.source != number:
                raise taken(new.target, "target")
            else:
                copy = begun
        ended = partial(self._end_copy, source, target, alias)
        return Reembedding(self._engine, source, target, copy, embed, ended)

    async def _end_copy(self, source: Collection, target: Collection, alias: str, copy: Copy) -> int | None:
        return await self._write(EndCopy(self, source, target, copy, alias))

    async def _check_sources(self, source: Collection) -> None:
        """Raises FailedPrecondition unless the collection has the source of every item."""
        name = source.name
        if not source.row.keeps_sources:
            raise FailedPrecondition(
                f"collection {name!r} keeps no sources: its items cannot be embedded again",
                field="name",
                collection=name,
            )
        id = await self._engine.reading.run(partial(self._engine.store.sources.first_without, source.row.number))
        if id is not None:
            raise FailedPrecondition(
                f"item {shown(id)} of collection {name!r} was given as a vector: there is nothing to embed",
                field="name",
                collection=name,
                item=id,
            )

    async def _write(self, write: Write[Result]) -> Result:
        return await asyncio.wrap_future(self._engine.writer.submit(write))

    def check_free(self, name: str, field: str) -> None:
        """Raises InvalidArgument, with the path `field`, or AlreadyExists unless a new collection may have the name."""
        check_name(name, field)
        if name in self._by_name:
            raise taken(name, field)

    # By the writer.

    def adopt(self, row: CollectionRow, index: VectorIndex) -> Collection:
        """Makes a collection visible that is on disk with what is in `index`."""
        collection = Collection(row, index, self._engine)
        self._rename({**self._by_name, row.name: collection})
        collection.published()
        gauges.add(self._engine.metrics, collection)
        self._engine.builder.watch(collection)
        return collection

    def remove(self, collection: Collection) -> None:
        """Forgets a collection, and its aliases."""
        self._rename({name: other for name, other in self._by_name.items() if other is not collection})
        collection.mark_deleted()
        gauges.remove(self._engine.metrics, collection.name)

    def point(self, alias: str, collection: Collection | None) -> None:
        """Has the alias mean the collection, or nothing any more."""
        others = {name: other for name, other in self._by_name.items() if name != alias}
        self._rename(others if collection is None else {**others, alias: collection})

    def _rename(self, by_name: dict[str, Collection]) -> None:
        aliases: dict[Collection, list[str]] = {collection: [] for collection in by_name.values()}
        for name, collection in sorted(by_name.items()):
            if name != collection.name:
                aliases[collection].append(name)
        for collection, names in aliases.items():
            collection.aliases = tuple(names)
        self._by_name = by_name


def check_name(name: str, field: str) -> None:
    """Raises InvalidArgument, with the path `field`, unless a collection or an alias may have the name."""
    if not NAME.fullmatch(name):
        kind = "an alias" if field == "alias" else "a collection's name"
        raise InvalidArgument(
            f"{kind} has 1 to 128 of the characters a-z, A-Z, 0-9, '_', '-' and '.', a letter or digit first",
            field=field,
        )


def check_settings(settings: IndexSettings) -> None:
    """Raises InvalidArgument unless an index may be made by the settings."""
    if not 0 < settings.target_recall <= 1:
        raise InvalidArgument(
            f"a target recall is above 0 and at most 1, got {settings.target_recall:g}", field="index.target_recall"
        )


def remove_orphans(store: Store, rows: list[CollectionRow]) -> None:
    """Removes the indexes of collections that are gone."""
    numbers = {str(row.number) for row in rows}
    directory = store.directory / INDEXES
    for path in directory.iterdir() if directory.is_dir() else ():
        if path.name not in numbers:
            shutil.rmtree(path, ignore_errors=True)


def loaded_index(store: Store, row: CollectionRow) -> VectorIndex:
    """Returns the index from the newest sound generation and the store, or from the store alone."""
    started = said = time.monotonic()

    def progress(done: int, total: int) -> None:
        nonlocal said
        if time.monotonic() - said > PROGRESS_SECONDS:
            said = time.monotonic()
            log.info("reading the items of a collection", collection=row.name, done=done, total=total)

    unread: dict[str, str] = {}
    generations = Generations(store.directory, store.identity, row.number)
    generation = generations.newest(row, row.sequence)
    try:
        index = load(store, row, generation, progress, unread)
    except Doubtful as doubt:
        log.warning("index not used, it is made again from the database", collection=row.name, doubt=str(doubt))
        generations.remove_all_but(None)
        index = load(store, row, None, progress, unread)
    index.publish()
    if unread:
        reason = next(iter(unread.values()))
        log.warning(
            "payloads cannot be read, conditions on fields do not find their items",
            collection=row.name,
            items=listed(list(unread)),
            reason=reason,
        )
    if time.monotonic() - started > PROGRESS_SECONDS:
        seconds = round(time.monotonic() - started, 1)
        log.info("collection read", collection=row.name, items=index.item_count, seconds=seconds)
    return index
