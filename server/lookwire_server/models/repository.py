"""The model repository: Triton's layout on disk, and the models loaded from it.

`<root>/<model>/config.pbtxt` and `<root>/<model>/<version>/`, versions being folders named by positive integers.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import structlog

from lookwire_server.errors import FailedPrecondition, InvalidArgument, LookwireError, NotFound
from lookwire_server.metrics import Metrics
from lookwire_server.models.batcher import Batcher
from lookwire_server.models.config import ModelConfig
from lookwire_server.models.config_file import FILE, read
from lookwire_server.models.model import Model
from lookwire_server.models.session import Session

log = structlog.get_logger()


class Backend(Protocol):
    """Makes served models of one kind of file."""

    async def load(self, config: ModelConfig, version: int, directory: Path, repository: "Repository") -> Model:
        """Loads the version in `directory`, warm and ready; raises a LookwireError that says what is wrong there."""


@dataclass(frozen=True, slots=True)
class ModelState:
    """A row of the repository's index: a version of a model, and why it is not ready (empty if it is)."""

    name: str
    version: int | None
    reason: str


class Repository:
    """All models below one folder."""

    def __init__(
        self,
        root: Path,
        backends: Mapping[str, Backend],
        metrics: Metrics,
        on_failure: Callable[[str], None],
    ) -> None:
        self.root = root
        self.metrics = metrics
        self.on_failure = on_failure
        self._backends = backends
        self._loading: dict[str, asyncio.Task[dict[int, Model]]] = {}
        self._models: dict[str, dict[int, Model]] = {}

    async def load_all(self) -> None:
        """Loads every model; raises one error that lists all that could not be loaded."""
        if not self.root.is_dir():
            raise NotFound(
                f"the model repository '{self.root}' is no folder; give one with --model-repository", path=self.root
            )
        names = sorted(path.parent.name for path in self.root.glob(f"*/{FILE}"))
        if not names:
            raise FailedPrecondition(f"the model repository '{self.root}' holds no <model>/{FILE}", path=self.root)
        results = await asyncio.gather(*(self.load(name) for name in names), return_exceptions=True)
        failures = [
            (name, result) for name, result in zip(names, results, strict=True) if isinstance(result, BaseException)
        ]
        for _, error in failures:
            if not isinstance(error, LookwireError):
                raise error
        if failures:
            lines = [f"  {name}: {error}" for name, error in failures]
            raise FailedPrecondition("\n".join([f"{len(failures)} of {len(names)} models cannot be served:", *lines]))

    async def load(self, name: str) -> dict[int, Model]:
        """The versions of a model by number, loaded if they are not yet; models that need others load them by this."""
        if name not in self._loading:
            self._loading[name] = asyncio.create_task(self._load(name), name=f"load-{name}")
        return await asyncio.shield(self._loading[name])

    async def _load(self, name: str) -> dict[int, Model]:
        directory = self.root / name
        if not (directory / FILE).is_file():
            raise NotFound(f"the model repository has no model '{name}'", model=name)
        config = read(directory)
        if config.backend not in self._backends:
            raise InvalidArgument(
                f"{directory / FILE}: backend '{config.backend}' is not one of {', '.join(sorted(self._backends))}"
            )
        models = {}
        for version in self._versions(config, directory):
            models[version] = await self._backends[config.backend].load(config, version, directory / str(version), self)
            log.info("model loaded", model=name, version=version, backend=config.backend)
        self._models[name] = models
        return models

    def serve(self, config: ModelConfig, version: int, sessions: Sequence[Session]) -> Model:
        """The model that these sessions, one an instance, make behind a batcher."""
        return Batcher(config, version, sessions, self.metrics, self.on_failure)

    def _versions(self, config: ModelConfig, directory: Path) -> list[int]:
        """The version numbers that the config's version_policy selects, ascending."""
        present = sorted(
            int(path.name) for path in directory.iterdir() if path.is_dir() and path.name.isdecimal() and int(path.name)
        )
        policy = config.message.version_policy
        match policy.WhichOneof("policy_choice"):
            case "all":
                selected = present
            case "specific":
                selected = [version for version in present if version in policy.specific.versions]
            case _:
                selected = present[-(policy.latest.num_versions or 1) :]
        if not selected:
            raise InvalidArgument(
                f"{directory}: at least one version must be available under the version policy; "
                f"versions are folders named 1, 2, ...; found {present or 'none'}"
            )
        return selected

    def get(self, name: str, version: int | None = None) -> Model:
        """A version of a model, the highest if none is named; raises NotFound."""
        versions = self._models.get(name)
        if not versions:
            raise NotFound(f"Request for unknown model: '{name}' is not found", model=name)
        if version is None:
            return versions[max(versions)]
        if version not in versions:
            raise NotFound(
                f"Request for unknown model: '{name}' version {version} is not found", model=name, version=version
            )
        return versions[version]

    def models(self) -> list[Model]:
        """Every loaded version, by name and number."""
        return [versions[number] for _, versions in sorted(self._models.items()) for number in sorted(versions)]

    def versions(self, name: str) -> list[int]:
        """The loaded version numbers of a model, ascending; empty if there are none."""
        return sorted(self._models.get(name, ()))

    def index(self) -> list[ModelState]:
        """A row for each version that is loaded and for each folder that is not."""
        rows = [ModelState(model.config.name, model.version, "") for model in self.models()]
        folders = {path.name for path in self.root.iterdir() if path.is_dir()} if self.root.is_dir() else set()
        rows += [ModelState(name, None, "") for name in folders - self._models.keys()]
        return sorted(rows, key=lambda row: (row.name, row.version or 0))

    async def close(self) -> None:
        """Closes every model, those that use others first."""
        for model in reversed([model for versions in self._models.values() for model in versions.values()]):
            await model.close()
        self._models.clear()
