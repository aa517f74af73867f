"""The identity backend: outputs are inputs, after a delay if one is set. For tests, and for measuring the server itself."""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lookwire_server.errors import InvalidArgument
from lookwire_server.models.backends.load_threads import in_load_thread
from lookwire_server.models.config import ModelConfig, TensorSpec
from lookwire_server.models.model import Model, Request, Tensor
from lookwire_server.models.repository import Repository
from lookwire_server.models.session import Execution
from lookwire_server.models.warmup import warm, zeros


@dataclass(frozen=True, slots=True)
class IdentityBackend:
    """Loads models that have no file.

    Parameters: `execute_delay_ms` is the time of an execution; instance i above 0 takes it i times
    `instance_wise_delay_multiplier`; `creation_delay_sec` is the time of loading.
    """

    async def load(self, config: ModelConfig, version: int, directory: Path, repository: Repository) -> Model:
        """Pairs outputs with inputs, and warms the instances up."""
        pairs = paired(config)
        delay = number(config, "execute_delay_ms") / 1e3
        multiplier = number(config, "instance_wise_delay_multiplier", 1.0)
        await asyncio.sleep(number(config, "creation_delay_sec"))
        sessions = [
            IdentitySession(config, pairs, delay * (instance * multiplier if instance else 1))
            for instance in range(config.instances)
        ]
        await in_load_thread(warm, config, directory.parent, sessions)
        return repository.serve(config, version, sessions)


class IdentitySession:
    """One instance. It stacks nothing: every request is answered with its own tensors."""

    concurrent = False

    def __init__(self, config: ModelConfig, pairs: Sequence[tuple[str, str]], delay: float) -> None:
        self._pairs = pairs
        self._delay = delay
        self.immediate = delay == 0
        self._outputs = {spec.name: spec for spec in config.outputs}
        self._batched = config.max_batch_size > 0
        self._always_complete = not any(spec.optional for spec in config.inputs)

    def execute(self, requests: Sequence[Request]) -> Execution:
        start = time.perf_counter()
        if self._delay:
            time.sleep(self._delay)
        if self._always_complete:
            answers = [{output: request.inputs[input] for output, input in self._pairs} for request in requests]
        else:
            answers = [self._answer(request) for request in requests]
        return Execution(answers, 0.0, time.perf_counter() - start, 0.0)

    def _answer(self, request: Request) -> dict[str, Tensor]:
        """The request's tensors, zeros in place of the optional ones that it lacks."""
        rows = len(next(iter(request.inputs.values()))) if self._batched and request.inputs else 1
        return {
            output: request.inputs[input] if input in request.inputs else self._zeros(self._outputs[output], rows)
            for output, input in self._pairs
        }

    def _zeros(self, spec: TensorSpec, rows: int) -> Tensor:
        dims = [1 if dim == -1 else dim for dim in spec.dims]
        return zeros(spec.datatype, [rows, *dims] if self._batched else dims)

    def close(self) -> None:
        """Holds nothing."""


def paired(config: ModelConfig) -> list[tuple[str, str]]:
    """The outputs, each with its input: INPUTk for OUTPUTk if both are declared, else the input at the same place."""
    inputs = {spec.name: spec for spec in config.inputs}
    pairs = []
    for place, output in enumerate(config.outputs):
        named = inputs.get(output.name.replace("OUTPUT", "INPUT", 1))
        if named is None and place >= len(config.inputs):
            raise InvalidArgument(
                f"model '{config.name}': output '{output.name}' has no input to be equal to; an identity model needs at "
                "least as many inputs as outputs"
            )
        input = named or config.inputs[place]
        if input.datatype != output.datatype:
            raise InvalidArgument(
                f"model '{config.name}': output '{output.name}' is {output.datatype}, but input '{input.name}', which it is "
                f"equal to, is {input.datatype}"
            )
        pairs.append((output.name, input.name))
    return pairs


def number(config: ModelConfig, parameter: str, default: float = 0.0) -> float:
    """A parameter that is a finite number, 0 or more."""
    text = config.parameters.get(parameter, str(default))
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < np.inf:
        raise InvalidArgument(
            f"model '{config.name}': parameter '{parameter}' must be a number, 0 or more, got '{text}'"
        )
    return value
