"""The model repository: which models are loaded from its folders, when, and how one takes the place of another."""

import asyncio
import enum
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import structlog

from lookwire_server.errors import (
    FailedPrecondition,
    InvalidArgument,
    LoadFailure,
    LookwireError,
    NotFound,
    Unavailable,
)
from lookwire_server.metrics import Metrics
from lookwire_server.models import config_file
from lookwire_server.models.batcher import Batcher
from lookwire_server.models.cache import CachedModel, ResponseCache
from lookwire_server.models.config import ModelConfig
from lookwire_server.models.lifecycle import Lifecycle, Override
from lookwire_server.models.loader import Backend, Loader
from lookwire_server.models.managed import Managed, ModelState
from lookwire_server.models.model import Model
from lookwire_server.models.retired import Retired
from lookwire_server.models.served import Served
from lookwire_server.models.session import Session
from lookwire_server.models.source import UNKNOWN, names, scan_all
from lookwire_server.models.tasks import Tasks

log = structlog.get_logger()


class ControlMode(enum.StrEnum):
    """Triton's modes: all models at the start; all, and what changes on disk; those that load requests name."""

    NONE = "none"
    POLL = "poll"
    EXPLICIT = "explicit"


class Repository:
    """The models of one or more folders. Every change of what is served is one step on the event loop."""

    def __init__(
        self,
        roots: Sequence[Path],
        backends: Mapping[str, Backend],
        metrics: Metrics,
        on_failure: Callable[[str], None],
        *,
        mode: ControlMode = ControlMode.NONE,
        startup_models: Sequence[str] = (),
        poll_seconds: float = 15.0,
        exit_on_error: bool = True,
        config_name: str = "",
        auto_complete: bool = True,
        hold_first_batch: int = 0,
        cache: ResponseCache | None = None,
    ) -> None:
        self.metrics = metrics
        self.on_failure = on_failure
        self.on_change: list[Callable[[], None]] = []
        self.load_seconds: dict[tuple[str, int], float] = {}
        self._roots = roots
        self._mode = mode
        self._startup_models = startup_models
        self._poll_seconds = poll_seconds
        self._exit_on_error = exit_on_error
        self._hold_first_batch = hold_first_batch
        self._cache = cache
        self._managed: dict[str, Managed] = {}
        self._served = Served(self._managed)
        loader = Loader(backends, Retired(self.changed), config_name, auto_complete)
        self._lifecycle = Lifecycle(roots, self._managed, self._served, loader, on_failure, self)
        self._tasks = Tasks(on_failure)
        self._started = False
        self._stopping = False

    async def start(self) -> None:
        """Loads what the mode says; raises one error that lists all that could not be loaded, unless told to go on."""
        for root in self._roots:
            if not root.is_dir():
                raise NotFound(
                    f"the model repository '{root}' is no folder; give one with --model-repository", path=root
                )
        wanted = self._wanted(await asyncio.to_thread(names, self._roots))
        for name in wanted:
            self._managed.setdefault(name, Managed(name)).wanted = True
        results = await asyncio.gather(*(self._lifecycle.load(name) for name in wanted), return_exceptions=True)
        failures = []
        for name, result in zip(wanted, results, strict=True):
            if isinstance(result, LookwireError):
                failures.append(f"  {name}: {self._managed[name].failure()}")
            elif isinstance(result, BaseException):
                raise result
        if failures:
            message = "\n".join([f"{len(failures)} of {len(wanted)} models cannot be served:", *failures])
            if self._exit_on_error:
                raise FailedPrecondition(message)
            log.error(message)
        self._started = True
        self.changed()
        if self._mode is ControlMode.POLL:
            self._tasks.spawn(self._poll(), "polling the model repository")

    def _wanted(self, found: Mapping[str, int]) -> list[str]:
        """The models to load at the start."""
        if self._mode is ControlMode.EXPLICIT:
            if "*" not in self._startup_models:
                return list(dict.fromkeys(self._startup_models))
            if len(self._startup_models) > 1:
                raise InvalidArgument("--load-model '*' means all models, and must stand alone")
        elif self._startup_models:
            raise InvalidArgument("--load-model needs --model-control-mode explicit; the other modes load every model")
        elif self._mode is ControlMode.NONE and not found:
            roots = "', '".join(map(str, self._roots))
            raise FailedPrecondition(
                f"the model repository '{roots}' holds no model: no <model>/{config_file.FILE} and no <model>/<version>/"
            )
        return list(found)

    def get(self, name: str, version: int | None = None) -> Model:
        """A version that answers, the newest if none is named; NotFound, or Unavailable if it is known and does not answer."""
        return self._served.get(name, version)

    def models(self) -> list[Model]:
        """Every version that answers, by name and number. Not to be changed."""
        return self._served.models

    def versions(self, name: str) -> list[int]:
        """The version numbers of a model that answer, ascending; empty if there are none."""
        return self._served.versions(name)

    def ready(self) -> bool:
        """Whether all that was to be loaded at the start, or has been loaded since and was not unloaded, answers."""
        return self._started and self._served.ready()

    def folders(self) -> dict[str, int]:
        """The models on disk, and in how many folders each is; it reads the disk, and may be called from any thread."""
        try:
            return names(self._roots)
        except OSError as error:
            log.warning("the model repository cannot be read", error=str(error))
            return {}

    def index(self, folders: Mapping[str, int] | None = None) -> list[ModelState]:
        """A row for each version that is or was served, and for each model of `folders`, by default those on disk now."""
        return self._served.index(self.folders() if folders is None else folders)

    def directory(self, name: str) -> Path:
        """The folder that the loaded versions of a model are from."""
        directory = self._managed[name].directory if name in self._managed else None
        if directory is None:
            raise NotFound(f"model '{name}' is not loaded", model=name)
        return directory

    def serve(self, config: ModelConfig, version: int, sessions: Sequence[Session]) -> Model:
        """The model that these sessions, one an instance, make behind a batcher, and behind the cache if its config asks."""
        return self.cached(Batcher(config, version, sessions, self.metrics, self.on_failure, self._hold_first_batch))

    def cached(self, model: Model) -> Model:
        """The model behind the response cache if its config asks, else as it is."""
        if not model.config.response_cache:
            return model
        if self._cache is None:
            log.warning(
                "response_cache has no effect: the server was started without --cache-config", model=model.config.name
            )
            return model
        return CachedModel(model, self._cache)

    async def load_model(self, name: str, config: str | None = None, files: Mapping[str, bytes] | None = None) -> None:
        """Loads a model, or loads it again if it has changed on disk or the request brings something.

        `config` is a ModelConfig as JSON that takes the place of the file; `files` ("file:1/model.onnx": contents) take
        the place of the whole folder, and need a config. The versions served now serve until the new ones are ready, and go
        on if these fail. Raises LoadFailure if the model cannot be found or kept, InvalidArgument for all else.
        """
        self._check_explicit()
        if not name.strip():
            raise InvalidArgument("Model name cannot be empty. Please enter a valid name to deploy.")
        if "/" in name or "\\" in name or name.strip() in (".", ".."):
            raise InvalidArgument("model name must not contain path traversal characters")
        if files and config is None:
            raise LoadFailure(
                f"{UNKNOWN.format(name=name)}: files take the place of the model's folder, and need a 'config' beside them",
                model=name,
            )
        await self._lifecycle.load(name, None if config is None else Override(config, files or {}))

    async def unload_model(self, name: str, *, dependents: bool = False) -> None:
        """Unloads a model, with `dependents` also those it needs that no other model needs; an unknown name is ignored.

        Returns when it is no longer served, with `dependents` when its requests are answered; without, they still are.
        """
        self._check_explicit()
        await self._lifecycle.unload(name, dependents=dependents)

    def _check_explicit(self) -> None:
        if self._mode is not ControlMode.EXPLICIT:
            raise Unavailable(
                "explicit model load / unload is not allowed if polling is enabled; this server runs with "
                f"--model-control-mode {self._mode}: start it with --model-control-mode explicit"
            )

    async def need(self, name: str, *, by: str) -> dict[int, Model]:
        """The loaded versions of a model that `by`, which is being loaded, needs; loads it if that is due.

        FailedPrecondition if none can be had, InvalidArgument if that model needs `by` in turn.
        """
        return await self._lifecycle.need(name, by, retry=self._started)

    def keep(self, model: Model, *, by: str) -> None:
        """Keeps a version that `need` has just returned open for as long as the version of `by` that is being loaded.

        `by` is loaded again when the version kept is replaced, and taken down when it is unloaded.
        """
        self._lifecycle.keep(model, by)

    def changed(self) -> None:
        """Takes over a change in what is loaded, and tells those who want to know."""
        self._served.refresh()
        self.load_seconds = {
            (name, version): loaded.seconds
            for name, managed in self._managed.items()
            for version, loaded in managed.loaded.items()
        }
        if not self._stopping:
            for callback in self.on_change:
                callback()

    async def _poll(self) -> None:
        """Follows what changes on disk, for ever. What cannot be loaded is tried again when it has changed again."""
        while True:
            await asyncio.sleep(self._poll_seconds)
            try:
                found = await asyncio.to_thread(scan_all, self._roots)
            except OSError as error:
                log.warning("the model repository cannot be read", error=str(error))
                continue
            known = {
                name: managed.seen for name, managed in self._managed.items() if managed.loaded or managed.failures
            }
            changed = [name for name, source in found.items() if source != known.get(name)]
            removed = [name for name in known if name not in found]
            outcomes = await asyncio.gather(
                *(self._lifecycle.load(name) for name in changed),
                *(self._lifecycle.unload(name) for name in removed),
                return_exceptions=True,
            )
            for outcome in outcomes:
                if isinstance(outcome, BaseException) and not isinstance(outcome, LookwireError):
                    raise outcome

    async def close(self) -> None:
        """Stops loading, and closes every model, those that need others first."""
        self._stopping = True
        await self._tasks.cancel()
        await self._lifecycle.close()
