"""A backend for tests of the repository: models that multiply by the number in a file, and one that uses another model."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np

from lookwire_server.errors import InvalidArgument
from lookwire_server.metrics import Metrics
from lookwire_server.models.config import ModelConfig
from lookwire_server.models.model import Model, Request, Response
from lookwire_server.models.repository import ControlMode, Repository
from lookwire_server.models.session import StackedSession
from lookwire_server.models.statistics import Statistics

CONFIG = """
backend: "{backend}" max_batch_size: 8
input [{{ name: "x" data_type: TYPE_INT32 dims: [1] }}]
output [{{ name: "y" data_type: TYPE_INT32 dims: [1] }}]
{more}
"""


class Scaling:
    """Loads `<version>/factor.txt`. Those in `held` wait; `loads` records the loads, `closed` the versions given back."""

    def __init__(self) -> None:
        self.held: set[tuple[str, int]] = set()
        self.loads: list[tuple[str, int]] = []
        self.closed: list[tuple[str, int]] = []

    async def load(self, config: ModelConfig, version: int, directory: Path, repository: Repository) -> Model:
        self.loads.append((config.name, version))
        while (config.name, version) in self.held:
            await asyncio.sleep(0.005)
        text = (directory / "factor.txt").read_text()
        if text == "bug":
            raise RuntimeError("a secret of the backend")
        if not text.isdecimal():
            raise InvalidArgument(f"factor.txt holds '{text}', not a number")
        session = Session(config, lambda inputs: {"y": inputs["x"] * int(text)})
        session.closed = lambda: self.closed.append((config.name, version))
        return repository.serve(config, version, [session])


class Session(StackedSession):
    """One that says when it is closed."""

    closed: Callable[[], None]

    def close(self) -> None:
        self.closed()


class Wrapping:
    """Loads models that pass requests on to the model named by the parameter `uses`, looked up at each request or kept."""

    def __init__(self) -> None:
        self.loads: list[tuple[str, int]] = []

    async def load(self, config: ModelConfig, version: int, directory: Path, repository: Repository) -> Model:
        self.loads.append((config.name, version))
        name = config.parameters["uses"]
        versions = await repository.need(name, by=config.name)
        kept = None
        if config.parameters.get("keep"):
            kept = versions[max(versions)]
            repository.keep(kept, by=config.name)
        return Wrapper(config, version, lambda: kept or repository.get(name))


class Wrapper:
    def __init__(self, config: ModelConfig, version: int, inner: Callable[[], Model]) -> None:
        self.config = config
        self.version = version
        self.statistics = Statistics()
        self._inner = inner

    def check_wait(self, deadline: float | None) -> None:
        self._inner().check_wait(deadline)

    async def infer(self, request: Request) -> Response:
        return await self._inner().infer(request)

    async def close(self) -> None:
        pass


def write(root: Path, name: str, versions: Mapping[int, object], more: str = "") -> None:
    """Writes a model of the backend `scaling`, its versions with their factors."""
    for version, factor in versions.items():
        folder = root / name / str(version)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "factor.txt").write_text(str(factor))
    (root / name).mkdir(parents=True, exist_ok=True)
    (root / name / "config.pbtxt").write_text(CONFIG.format(backend="scaling", more=more))


def write_wrapper(root: Path, name: str, uses: str, *, keep: bool = False) -> None:
    """Writes a model of the backend `wrapping`."""
    (root / name / "1").mkdir(parents=True, exist_ok=True)
    more = f'parameters {{ key: "uses" value {{ string_value: "{uses}" }} }}'
    if keep:
        more += ' parameters { key: "keep" value { string_value: "yes" } }'
    (root / name / "config.pbtxt").write_text(CONFIG.format(backend="wrapping", more=more))


@asynccontextmanager
async def repository(
    *roots: Path, mode: ControlMode = ControlMode.EXPLICIT, start: bool = True, **options: Any
) -> AsyncIterator[tuple[Repository, Scaling]]:
    """A started repository with both backends, closed at the end; a failure of one of its parts fails the test."""
    failures: list[str] = []
    scaling = Scaling()
    served = Repository(
        roots, {"scaling": scaling, "wrapping": Wrapping()}, Metrics(), failures.append, mode=mode, **options
    )
    try:
        if start:
            await served.start()
        yield served, scaling
    finally:
        scaling.held.clear()
        await served.close()
    assert failures == []


async def answer(served: Repository, name: str, version: int | None = None) -> int:
    """The factor that a model multiplies by."""
    response = await served.get(name, version).infer(Request({"x": np.array([[1]], np.int32)}))
    return int(response.outputs["y"][0, 0])


def states(served: Repository) -> Sequence[tuple[str, int | None, str, str]]:
    """The index, row by row."""
    return [(row.name, row.version, row.state.value, row.reason) for row in served.index()]
