"""How models come and go: loaded beside the old, swapped in one step, and what that means for the models that need them."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

from lookwire_server.errors import FailedPrecondition, InvalidArgument, LoadFailure, LookwireError, Unavailable
from lookwire_server.models.loader import Loader, LoadRefused
from lookwire_server.models.managed import Loaded, Managed
from lookwire_server.models.model import Model
from lookwire_server.models.served import Served
from lookwire_server.models.source import UNKNOWN, Source, find, keep_files
from lookwire_server.models.tasks import Tasks

if TYPE_CHECKING:
    from lookwire_server.models.repository import Repository

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Override:
    """What a load request brings: the config as JSON, and files that take the place of the model's folder."""

    config: str
    files: Mapping[str, bytes] = field(default_factory=dict)


class Lifecycle:
    """Loads, replaces and unloads the models of `managed`, one change of a model at a time.

    A model's lock may be waited for while that of one which needs it is held, never the other way round.
    """

    def __init__(
        self,
        roots: Sequence[Path],
        managed: dict[str, Managed],
        served: Served,
        loader: Loader,
        on_failure: Callable[[str], None],
        repository: "Repository",
    ) -> None:
        self._roots = roots
        self._managed = managed
        self._served = served
        self._loader = loader
        self._retired = loader.retired
        self._tasks = Tasks(on_failure)
        self._repository = repository
        self._stopping = False

    async def load(self, name: str, override: Override | None = None) -> None:
        """Loads a model if that is due, then those that use what it replaced; goes on to the end once it has begun.

        Raises LoadFailure if the model cannot be found or kept, LoadRefused for all else.
        """
        managed = await self._acquire(name)
        await self._tasks.to_the_end(self._load(managed, override))

    async def unload(self, name: str, *, dependents: bool = False) -> None:
        """Takes a model out of service, with `dependents` also those that only it needs; an unknown name is ignored."""
        if name in self._managed:
            managed = await self._acquire(name)
            await self._tasks.to_the_end(self._unload(managed, dependents))

    async def need(self, name: str, by: str, *, retry: bool) -> dict[int, Model]:
        """The loaded versions of a model that `by`, which is being loaded, needs."""
        if needs := self._managed[by].needs:
            needs.names.add(name)
        if self._reaches(name, by):
            raise InvalidArgument(f"model '{by}' needs itself, by way of model '{name}'")
        managed = await self._acquire(name)
        changed = False
        try:
            if managed.failures and not managed.loaded and not retry:
                raise FailedPrecondition(managed.failure())
            changed = await self._refresh(managed, None, again=False)
        except LookwireError as error:
            if not managed.loaded:
                cause = error.cause if isinstance(error, LoadRefused) else error.message
                raise FailedPrecondition(f"needs model '{name}', which cannot be served: {cause}") from error
        finally:
            self._release(managed)
        if changed:
            self._tasks.spawn(self._follow(name), f"follow-{name}")
        return {version: loaded.model for version, loaded in managed.loaded.items()}

    def keep(self, model: Model, by: str) -> None:
        """Keeps a version that `need` has just returned open for as long as the version of `by` that is being loaded."""
        loaded = self._managed[model.config.name].loaded[model.version]
        needs = self._managed[by].needs
        assert needs is not None, f"'{by}' is not being loaded"  # noqa: S101 - a fault of the backend
        loaded.users += 1
        needs.kept.append(loaded)

    async def close(self) -> None:
        """Takes all out of service, those that need others first, and waits until their work is done."""
        self._stopping = True
        await self._tasks.cancel()
        while left := [managed for managed in self._managed.values() if managed.loaded]:
            needed = {name for managed in left for name in managed.needed()}
            for managed in [managed for managed in left if managed.name not in needed] or left:
                self._swap(managed, {})
            await self._retired.closed()
        await self._retired.closed()

    def _reaches(self, name: str, target: str) -> bool:
        """Whether a model is, or needs in any number of steps, the target."""
        seen: set[str] = set()
        todo = {name}
        while todo:
            seen |= todo
            todo = {need for each in todo if each in self._managed for need in self._managed[each].needed()} - seen
        return target in seen

    async def _acquire(self, name: str) -> Managed:
        """The model of that name, with its lock held. Who gives up while it waits has begun nothing."""
        while not self._stopping:
            managed = self._managed.setdefault(name, Managed(name))
            await managed.lock.acquire()
            if self._managed.get(name) is managed and not self._stopping:
                return managed
            managed.lock.release()  # forgotten meanwhile
        raise Unavailable("the server is stopping")

    def _release(self, managed: Managed) -> None:
        """Lets go of the lock, and forgets a model that is neither on disk nor loaded."""
        if not managed.loaded and not managed.wanted and managed.seen is None:
            self._managed.pop(managed.name, None)
        managed.lock.release()
        self._repository.changed()

    async def _load(self, managed: Managed, override: Override | None) -> None:
        try:
            changed = await self._refresh(managed, override, again=True)
        finally:
            self._release(managed)
        if changed:
            await self._follow(managed.name)

    async def _unload(self, managed: Managed, dependents: bool) -> None:
        needed = managed.needed()
        managed.wanted = False
        managed.failures = {}
        managed.awaits = ""
        self._swap(managed, {})
        self._release(managed)
        await self._follow(managed.name)
        if dependents and needed:
            await self._retired.finished(managed)  # its requests go on to the models that it needs
        for name in sorted(needed) if dependents else ():
            if not any(name in other.needed() for other in self._managed.values()):
                await self._unload(await self._acquire(name), dependents)

    async def _follow(self, name: str) -> None:
        """Sees to the models that use a version of `name` which is gone: loads them again, or takes them down.

        Those that were taken down for want of `name` are loaded again.
        """
        for dependent in [managed.name for managed in self._managed.values() if name in managed.needed()]:
            managed = await self._acquire(dependent)
            changed = False
            try:
                if name in self._served and (managed.stale or managed.awaits == name):
                    changed = await self._refresh(managed, None, again=True)
                elif managed.stale:
                    managed.awaits = name
                    managed.failures = {None: f"needs model '{name}', which is not ready"}
                    self._swap(managed, {})
                    changed = True
            except LookwireError as error:
                log.warning("a model was not loaded again", model=dependent, because_of=name, error=str(error))
            finally:
                self._release(managed)
            if changed:
                await self._follow(dependent)

    async def _refresh(self, managed: Managed, override: Override | None, *, again: bool) -> bool:
        """Loads a model whose lock is held if that is due, and says whether anything has changed.

        It is due if nothing is loaded, if the folder has changed (without `again`: since the last attempt, even one that
        failed), or if a version uses one that is gone. What an earlier request brought holds until the folder changes.
        """
        try:
            disk = await asyncio.to_thread(find, self._roots, managed.name)
            unchanged = bool(managed.loaded) and disk == managed.source
            current = unchanged or (bool(managed.loaded) and not again and disk == managed.seen)
            if current and not override and not managed.stale:
                await self._complete(managed)
                return False
            managed.seen = disk
            source, config = disk, None
            if override:
                config = override.config
                if override.files:
                    source = await asyncio.to_thread(keep_files, managed.name, override.files)
            elif unchanged:
                source, config = next(iter(managed.loaded.values())).source, managed.config
            if source is None:
                raise LoadFailure(f"{UNKNOWN.format(name=managed.name)}: no such model", model=managed.name)
            await self._replace(managed, source, config)
        except LoadFailure as error:
            managed.failures = {None: str(error)}
            raise
        except LookwireError as error:
            refused = error if isinstance(error, LoadRefused) else LoadRefused(managed.name, None, str(error))
            managed.failures = {refused.version: refused.cause}
            log.warning("model not loaded", model=managed.name, version=refused.version, cause=refused.cause)
            raise refused from error
        managed.source = disk
        return True

    async def _complete(self, managed: Managed) -> None:
        """Loads what a loaded model needs, where it was unloaded since."""
        for name in sorted(managed.needed()):
            if name not in self._served:
                await self.need(name, managed.name, retry=True)

    async def _replace(self, managed: Managed, source: Source, config: str | None) -> None:
        """Loads from `source` beside what is loaded, then swaps."""
        self._retired.share(source)
        try:
            loaded = await self._loader.load(managed, source, config, self._repository)
        finally:
            await self._retired.release(source)
        managed.directory, managed.config = source.directory, config
        managed.failures = {}
        managed.awaits = ""
        managed.wanted = True
        self._swap(managed, loaded)

    def _swap(self, managed: Managed, loaded: dict[int, Loaded]) -> None:
        """Serves `loaded` in place of what is loaded, whose versions finish their work unless they are among them."""
        before = managed.loaded
        managed.loaded = loaded
        managed.gone = frozenset(before) - loaded.keys()
        self._repository.changed()
        for version, old in before.items():
            if loaded.get(version) is not old:
                self._retired.add(managed, old)
