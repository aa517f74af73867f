"""Which models answer: the look-up for requests, readiness, and the index."""

from collections.abc import Mapping

from lookwire_server.errors import LookwireError, NotFound, Unavailable
from lookwire_server.models.managed import Loaded, Managed, ModelState, State
from lookwire_server.models.model import Model
from lookwire_server.models.source import DUPLICATE


class Served:
    """The versions that are loaded and lack nothing they need. `refresh` takes over what has changed."""

    def __init__(self, managed: Mapping[str, Managed]) -> None:
        self._managed = managed
        self._versions: dict[str, dict[int | None, Model]] = {}
        self.models: list[Model] = []

    def refresh(self) -> None:
        """Takes over what is loaded now, and tells each version what it lacks."""
        self._versions = {}
        for name in self._managed:
            self._resolve(name)
        self.models = [
            model
            for _, versions in sorted(self._versions.items())
            for version, model in versions.items()
            if version is not None
        ]

    def _resolve(self, name: str) -> dict[int | None, Model]:
        """The versions of a model that answer, ascending; under None the newest."""
        versions = self._versions.get(name)
        if versions is None:
            versions = self._versions[name] = {}
            loaded = self._managed[name].loaded if name in self._managed else {}
            for number in sorted(loaded):
                loaded[number].lacks = self._lacks(loaded[number])
                if not loaded[number].lacks:
                    versions[number] = loaded[number].model
            if versions:
                versions[None] = versions[max(number for number in versions if number is not None)]
        return versions

    def _lacks(self, loaded: Loaded) -> str:
        for name in sorted(loaded.needs.names):
            if not self._resolve(name):
                return f"needs model '{name}', which is not ready"
        for step in loaded.model.config.steps:
            if step.model in loaded.needs.names and step.version not in self._resolve(step.model):
                return f"needs version {step.version} of model '{step.model}', which is not ready"
        return ""

    def __contains__(self, name: str) -> bool:
        """Whether a version of the model answers."""
        return bool(self._versions.get(name))

    def get(self, name: str, version: int | None) -> Model:
        """The version, or the newest; NotFound if there is no such, Unavailable if it is known and does not answer."""
        try:
            return self._versions[name][version]
        except KeyError:
            raise self._missing(name, version) from None

    def _missing(self, name: str, version: int | None) -> LookwireError:
        managed = self._managed.get(name)
        rows = [row for row in managed.rows() if row.state is not State.NEVER] if managed else []
        wanted = f"Request for unknown model: '{name}'"
        if not rows:
            return NotFound(f"{wanted} is not found", model=name)
        if version is not None and version not in [row.version for row in rows]:
            served = ", ".join(map(str, self.versions(name))) or "none"
            return NotFound(
                f"{wanted} version {version} is not found; ready are: {served}", model=name, version=version
            )
        states = ", ".join(
            f"{f'version {row.version}' if row.version is not None else 'model'} is {row.state}"
            for row in rows
            if version in (None, row.version)
        )
        if version is None:
            return Unavailable(f"{wanted} has no available versions: it is not at ready state ({states})", model=name)
        return Unavailable(f"{wanted} version {version} is not at ready state ({states})", model=name, version=version)

    def versions(self, name: str) -> list[int]:
        """The version numbers that answer, ascending."""
        return [version for version in self._versions.get(name, ()) if version is not None]

    def ready(self) -> bool:
        """Whether every model that the server should have answers, in all its versions."""
        return all(
            managed.loaded and not any(loaded.lacks for loaded in managed.loaded.values())
            for managed in self._managed.values()
            if managed.wanted
        )

    def index(self, folders: Mapping[str, int]) -> list[ModelState]:
        """A row for each version that is or was served, and for each model of `folders` (in how many roots) that never was."""
        rows = []
        for name in sorted(folders.keys() | self._managed.keys()):
            managed = self._managed.get(name)
            if folders.get(name, 0) > 1 and not (managed and managed.loaded):
                rows.append(ModelState(name, None, State.UNAVAILABLE, DUPLICATE))
            elif managed:
                rows += managed.rows()
            else:
                rows.append(ModelState(name, None, State.NEVER, ""))
        return rows
