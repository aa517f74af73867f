"""Loading a model's versions, and loading again no more than has changed."""

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import structlog

from lookwire_server.errors import InvalidArgument, LookwireError
from lookwire_server.models import config_file
from lookwire_server.models.config import ModelConfig, warnings
from lookwire_server.models.managed import Loaded, Managed, Needs
from lookwire_server.models.model import Model
from lookwire_server.models.retired import Retired
from lookwire_server.models.source import Source

if TYPE_CHECKING:
    from lookwire_server.models.repository import Repository

log = structlog.get_logger()


# Characters of a cause that are kept, for the index holds it.
MAX_CAUSE = 2048


class Backend(Protocol):
    """Makes served models of one kind of file."""

    async def load(self, config: ModelConfig, version: int, directory: Path, repository: "Repository") -> Model:
        """Loads the version in `directory`, warm and ready; raises a LookwireError that says what is wrong there."""


class LoadRefused(InvalidArgument):
    """A model, or with `version` a version of it, that cannot be loaded; `cause` says why without naming it again."""

    def __init__(self, model: str, version: int | None, cause: str) -> None:
        if len(cause) > MAX_CAUSE:  # it may quote the config; what was expected stands at its end
            cause = f"{cause[: MAX_CAUSE // 2]} ... {cause[-MAX_CAUSE // 2 :]}"
        # Clients match on these words.
        place = f"version {version} is at UNAVAILABLE state: " if version is not None else ""
        super().__init__(f"failed to load '{model}', load failed for model '{model}': {place}{cause}", model=model)
        self.version = version
        self.cause = cause


@dataclass(frozen=True, slots=True)
class Loader:
    """Loads versions by their backends. `config_name` picks configs/<config_name>.pbtxt where a model has it."""

    backends: Mapping[str, Backend]
    retired: Retired
    config_name: str
    auto_complete: bool

    async def load(
        self, managed: Managed, source: Source, config_json: str | None, repository: "Repository"
    ) -> dict[int, Loaded]:
        """The versions that the config selects; those that are loaded already and would load alike are taken as they are.

        `config_json` takes the place of the config file. Raises LoadRefused, and then nothing of what it loaded is left.
        """
        try:
            config = await asyncio.to_thread(self._read, source.directory, config_json)
            selected = source.selected(config)
        except (LookwireError, OSError) as error:
            raise LoadRefused(managed.name, None, str(error)) from error
        # The version policy says which versions are loaded, not how.
        message = type(config.message)()
        message.CopyFrom(config.message)
        message.ClearField("version_policy")
        common = (source.directory, source.common, message.SerializeToString(deterministic=True))
        kept: dict[int, Loaded] = {}
        fresh: dict[int, Loaded] = {}
        for version in selected:
            loaded = managed.loaded.get(version)
            if loaded and not loaded.stale and loaded.origin == (*common, source.versions[version]):
                kept[version] = loaded
        managed.loading = frozenset(selected) - kept.keys()
        repository.changed()
        try:
            for version in sorted(managed.loading):
                model, needs, seconds = await self._version(managed, config, version, source.directory, repository)
                origin = (*common, source.versions[version])
                fresh[version] = Loaded(model, source, origin, needs, seconds)
                self.retired.share(source)
        except BaseException:
            for loaded in fresh.values():
                self.retired.add(managed, loaded)
            raise
        finally:
            managed.loading = frozenset()
        return kept | fresh

    def _read(self, directory: Path, config_json: str | None) -> ModelConfig:
        if config_json is not None:
            config = config_file.from_json(config_json, directory)
        else:
            config = config_file.read(directory, self.config_name)
        if config.backend not in self.backends:
            raise InvalidArgument(
                f"{directory / config_file.FILE}: backend '{config.backend}' is not one of {', '.join(sorted(self.backends))}"
            )
        if not self.auto_complete and not (config.inputs and config.outputs):
            raise InvalidArgument(
                f"{directory / config_file.FILE}: must declare 'input' and 'output': auto-completion is switched off "
                "(--disable-auto-complete-config)"
            )
        for warning in warnings(config.message):
            log.warning(warning, model=config.name)
        return config

    async def _version(
        self, managed: Managed, config: ModelConfig, version: int, directory: Path, repository: "Repository"
    ) -> tuple[Model, Needs, float]:
        """The version's model, what it needs, and the seconds that it took to load."""
        needs = managed.needs = Needs()
        started = time.monotonic()
        try:
            model = await self.backends[config.backend].load(config, version, directory / str(version), repository)
        except BaseException as error:
            self.retired.let_go(needs)
            if isinstance(error, LookwireError):
                raise LoadRefused(managed.name, version, str(error)) from error
            if isinstance(error, Exception):
                log.exception("a backend failed", model=managed.name, version=version, backend=config.backend)
                cause = f"backend '{config.backend}' failed; the cause is in the server's log"
                raise LoadRefused(managed.name, version, cause) from error
            raise
        finally:
            managed.needs = None
        seconds = time.monotonic() - started
        log.info("model loaded", model=config.name, version=version, backend=config.backend, seconds=round(seconds, 3))
        return model, needs, seconds
