"""One name of the repository: the versions that are served under it, and what became of its loads."""

import asyncio
import enum
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from lookwire_server.models.model import Model
from lookwire_server.models.source import Source


class State(enum.StrEnum):
    """Triton's states of a model version; NEVER is that of a model that nobody asked for."""

    UNKNOWN = "UNKNOWN"
    READY = "READY"
    UNAVAILABLE = "UNAVAILABLE"
    LOADING = "LOADING"
    UNLOADING = "UNLOADING"
    NEVER = ""


@dataclass(frozen=True, slots=True)
class ModelState:
    """A row of the repository's index: a version of a model (None: of none), its state, and why it is in that state."""

    name: str
    version: int | None
    state: State
    reason: str


@dataclass(slots=True)
class Needs:
    """What a version asked for while it was loaded: the models it needs, and those versions that it goes on using."""

    names: set[str] = field(default_factory=set)
    kept: "list[Loaded]" = field(default_factory=list)


@dataclass(slots=True, eq=False)
class Loaded:
    """A version that is loaded.

    `origin` is all that it was made from: with an equal one it need not be loaded again. `users` counts the versions that
    go on using it; it is closed when it is `retired`, replaced or unloaded, and has none. `lacks` says which model it
    needs that does not answer, empty if none is missing.
    """

    model: Model
    source: Source
    origin: object
    needs: Needs
    seconds: float
    users: int = 0
    retired: bool = False
    lacks: str = ""

    @property
    def stale(self) -> bool:
        """Whether it uses a version that the repository has replaced or unloaded."""
        return any(kept.retired for kept in self.needs.kept)


class Managed:
    """A model by name. Whoever changes it holds `lock`.

    `wanted`: the server is not ready without it. `seen` is its folder at the last attempt to load it, `source` at the last that
    succeeded; None where the files came with a load request. `config` is the JSON of that request, if it brought one.
    `directory` is where the loaded versions are from. `needs` are those of the version that is being loaded. `awaits` names
    the model for want of which it was taken down. `failures` holds the errors of the last attempt by version (None: of
    the whole), `gone` the versions that were served until the last change, `closing` counts those that finish their work.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.lock = asyncio.Lock()
        self.wanted = False
        self.seen: Source | None = None
        self.source: Source | None = None
        self.config: str | None = None
        self.directory: Path | None = None
        self.loaded: dict[int, Loaded] = {}
        self.loading: frozenset[int] = frozenset()
        self.needs: Needs | None = None
        self.awaits = ""
        self.closing: Counter[int] = Counter()
        self.failures: dict[int | None, str] = {}
        self.gone: frozenset[int] = frozenset()

    def needed(self) -> set[str]:
        """The models that it needs, or was taken down for want of; those that a load in progress needs included."""
        names = {name for loaded in self.loaded.values() for name in loaded.needs.names}
        return names | (self.needs.names if self.needs else set()) | ({self.awaits} if self.awaits else set())

    def failure(self) -> str:
        """What was wrong at the last attempt to load it."""
        return "; ".join(
            cause if version is None else f"version {version}: {cause}" for version, cause in self.failures.items()
        )

    @property
    def stale(self) -> bool:
        """Whether a version uses one of another model that the repository has replaced or unloaded."""
        return any(loaded.stale for loaded in self.loaded.values())

    def state(self, version: int) -> tuple[State, str]:
        """The state of a version and the reason for it."""
        failure = self.failures.get(version) or self.failures.get(None, "")
        if version in self.loaded:
            lacks = self.loaded[version].lacks
            return (State.UNAVAILABLE, lacks) if lacks else (State.READY, failure)
        if version in self.loading:
            return State.LOADING, ""
        if failure:
            return State.UNAVAILABLE, failure
        if self.closing.get(version):
            return State.UNLOADING, ""
        return (State.UNAVAILABLE, "unloaded") if version in self.gone else (State.UNKNOWN, "")

    def rows(self) -> list[ModelState]:
        """Its rows of the index, one a version that is or was served or should be; one without a version if it has none."""
        named = {version for version in self.failures if version is not None}
        versions = sorted({*self.loaded, *self.loading, *self.gone, *(+self.closing), *named})
        if versions:
            return [ModelState(self.name, version, *self.state(version)) for version in versions]
        if None in self.failures:
            return [ModelState(self.name, None, State.UNAVAILABLE, self.failures[None])]
        return [ModelState(self.name, None, State.LOADING if self.lock.locked() else State.NEVER, "")]
