"""The ensemble backend: models of the repository as the steps of one, executed as soon as their inputs are there."""

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from lookwire_server.errors import InvalidArgument, LookwireError, ModelFailure, Unavailable
from lookwire_server.models.backends.ensemble_graph import check_graph
from lookwire_server.models.config import ModelConfig, Step
from lookwire_server.models.model import Model, Request, Response, Tensor, check
from lookwire_server.models.repository import Repository
from lookwire_server.models.statistics import Statistics


@dataclass(frozen=True, slots=True)
class EnsembleBackend:
    """Loads ensembles. Their models are loaded before them, and looked up anew for each request."""

    async def load(self, config: ModelConfig, version: int, directory: Path, repository: Repository) -> Model:
        """Checks the steps against each other and against the models that they name."""
        children = []
        for step in config.steps:
            if step.model == config.name:
                raise InvalidArgument(f"ensemble '{config.name}' is a step of itself")
            versions = await repository.need(step.model, by=config.name)
            newest = max(versions) if step.version is None else step.version
            if newest not in versions:
                raise InvalidArgument(
                    f"ensemble '{config.name}' needs version {newest} of model '{step.model}'; loaded: "
                    f"{', '.join(map(str, sorted(versions)))}"
                )
            children.append(versions[newest].config)
        check_graph(config, children)
        return repository.cached(Ensemble(config, version, repository))


class Ensemble:
    """A model that has no instance and no queue of its own: its steps have."""

    def __init__(self, config: ModelConfig, version: int, repository: Repository) -> None:
        self.config = config
        self.version = version
        self.statistics = Statistics()
        self._repository = repository
        self._outputs = tuple(spec.name for spec in config.outputs)
        self._all_steps = self._plan(self._outputs)
        self._in_flight = 0
        self._closing = False
        self._drained = asyncio.Event()

    def check_wait(self, deadline: float | None) -> None:
        """Nothing: each step's model refuses for itself."""

    async def infer(self, request: Request) -> Response:
        """Executes the steps that the outputs asked for need; the first error of one ends the others, and is the answer."""
        started = time.monotonic()
        self._in_flight += 1
        try:
            if self._closing:
                raise Unavailable(f"model '{self.config.name}' is stopping")
            rows = check(self.config, request.inputs)
            outputs = await self._execute(request)
        except BaseException as error:
            self.statistics.failed(error, time.monotonic() - started)
            raise
        finally:
            self._in_flight -= 1
            if self._closing and not self._in_flight:
                self._drained.set()
        seconds = time.monotonic() - started
        self.statistics.executed(rows, 1, 0.0, seconds, 0.0)
        self.statistics.queue.add(0.0)
        self.statistics.success.add(seconds)
        return Response(outputs, 0.0, seconds)

    async def _execute(self, request: Request) -> dict[str, Tensor]:
        wanted = request.outputs or self._outputs
        if unknown := [name for name in wanted if name not in self._outputs]:
            raise InvalidArgument(f"unexpected inference output '{unknown[0]}' for model '{self.config.name}'")
        run = Run(self._repository, request, self._plan(wanted) if request.outputs else self._all_steps)
        try:
            async with asyncio.TaskGroup() as group:
                await run.follow(group)
        except ExceptionGroup as failures:
            error = next(
                (each for each in failures.exceptions if isinstance(each, LookwireError)), failures.exceptions[0]
            )
            raise error from None
        return {name: run.tensors[name] for name in wanted}

    def _plan(self, wanted: Sequence[str]) -> "list[tuple[Step, frozenset[str]]]":
        """The steps that these outputs need, each with those of its tensors that they or other steps need."""
        makers = {tensor: step for step in self.config.steps for tensor in step.outputs.values()}
        needed: dict[int, set[str]] = {}
        open = list(wanted)
        while open:
            tensor = open.pop()
            step = makers.get(tensor)
            if step is None:
                continue
            if id(step) not in needed:
                needed[id(step)] = set()
                open += step.inputs.values()
            needed[id(step)].add(tensor)
        return [(step, frozenset(needed[id(step)])) for step in self.config.steps if id(step) in needed]

    async def close(self) -> None:
        """Takes no more requests and finishes those in hand; the models of the steps stay."""
        self._closing = True
        if self._in_flight:
            await self._drained.wait()


class Run:
    """One request on its way through the steps. `tensors` are those of the ensemble that are there already."""

    def __init__(
        self, repository: Repository, request: Request, steps: "Sequence[tuple[Step, frozenset[str]]]"
    ) -> None:
        self.tensors: dict[str, Tensor] = dict(request.inputs)
        self._repository = repository
        self._request = request
        self._waiting = list(steps)
        self._to_come = {tensor for _, tensors in steps for tensor in tensors}

    async def follow(self, group: asyncio.TaskGroup, due: "tuple[Step, frozenset[str]] | None" = None) -> None:
        """Executes a step and then what it made possible: one step here, the others as tasks of the group."""
        while True:
            if due is not None:
                await self._execute(*due)
            ready = [item for item in self._waiting if self._to_come.isdisjoint(item[0].inputs.values())]
            if not ready:
                return
            self._waiting = [item for item in self._waiting if item not in ready]
            due, *others = ready
            for other in others:
                group.create_task(self.follow(group, other), name=f"ensemble step {other[0].model}")

    async def _execute(self, step: Step, wanted: frozenset[str]) -> None:
        # Inputs that are optional may be missing; the model says so if they may not.
        inputs = {name: self.tensors[tensor] for name, tensor in step.inputs.items() if tensor in self.tensors}
        outputs = {name: tensor for name, tensor in step.outputs.items() if tensor in wanted}
        model = self._repository.get(step.model, step.version)
        response = await model.infer(replace(self._request, inputs=inputs, outputs=tuple(outputs)))
        self._take(step, outputs, response.outputs)

    def _take(self, step: Step, outputs: Mapping[str, str], answer: Mapping[str, Tensor]) -> None:
        for name, tensor in outputs.items():
            if name not in answer:
                raise ModelFailure(f"model '{step.model}', a step of an ensemble, did not answer with output '{name}'")
            self.tensors[tensor] = answer[name]
        self._to_come.difference_update(outputs.values())
