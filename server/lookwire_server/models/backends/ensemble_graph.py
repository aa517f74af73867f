"""Whether the steps of an ensemble fit each other, and the models that they name."""

from collections.abc import Sequence
from dataclasses import dataclass

from lookwire_server.errors import InvalidArgument
from lookwire_server.models.config import ModelConfig, Step, TensorSpec


@dataclass(frozen=True, slots=True)
class Use:
    """Where a tensor of the ensemble is made or read, and what it is there; dims are those on the wire."""

    place: str
    datatype: str
    dims: tuple[int, ...]


def check_graph(config: ModelConfig, children: Sequence[ModelConfig]) -> None:
    """Raises InvalidArgument that says which step or tensor is wrong. `children` are the steps' models, in order.

    Every tensor has one source and is used, the steps form no circle, and types, dims and batching agree. A model's largest
    batch may be smaller than the ensemble's: the batcher executes a larger request in pieces.
    """
    ensemble = f"ensemble '{config.name}'"
    if not config.steps:
        raise InvalidArgument(f"{ensemble} has no steps: ensemble_scheduling must list them")
    if config.warmups:
        raise InvalidArgument(f"{ensemble} must not have model_warmup: its models have their own")
    if not (config.inputs and config.outputs):
        raise InvalidArgument(f"{ensemble} must declare 'input' and 'output'")
    sources = {spec.name: use(config, config, spec, f"an input of {ensemble}") for spec in config.inputs}
    readers: list[tuple[str, Use]] = []
    optional = {spec.name for spec in config.inputs if spec.optional}
    for number, (step, child) in enumerate(zip(config.steps, children, strict=True)):
        place = f"step {number} (model '{step.model}') of {ensemble}"
        if config.max_batch_size and not child.max_batch_size:
            raise InvalidArgument(
                f"{ensemble} takes batches (max_batch_size {config.max_batch_size}), but the model of step {number}, "
                f"'{step.model}', does not (max_batch_size 0)"
            )
        for name, tensor in step.outputs.items():
            spec = named(name, child.outputs, place, "output")
            if tensor in sources:
                raise InvalidArgument(
                    f"tensor '{tensor}' has two sources: {sources[tensor].place}, and output '{name}' of {place}"
                )
            sources[tensor] = use(config, child, spec, f"output '{name}' of {place}")
        for name, tensor in step.inputs.items():
            spec = named(name, child.inputs, place, "input")
            if tensor in optional and not spec.optional:
                raise InvalidArgument(
                    f"input '{tensor}' of {ensemble} is optional, but input '{name}' of {place}, which it goes to, is not"
                )
            readers.append((tensor, use(config, child, spec, f"input '{name}' of {place}")))
        lacking = [spec.name for spec in child.inputs if not spec.optional and spec.name not in step.inputs]
        if lacking:
            raise InvalidArgument(f"{place} gives no input '{lacking[0]}', which the model requires")
    if passed := sorted(optional & {spec.name for spec in config.outputs}):
        raise InvalidArgument(f"input '{passed[0]}' of {ensemble} is optional, so that it cannot be an output too")
    readers += [(spec.name, use(config, config, spec, f"an output of {ensemble}")) for spec in config.outputs]
    for tensor, reader in readers:
        if tensor not in sources:
            raise InvalidArgument(
                f"tensor '{tensor}', {reader.place}, has no source: no step makes it, and it is no input"
            )
        compare(tensor, sources[tensor], reader)
    if unused := sources.keys() - {tensor for tensor, _ in readers}:
        tensor = min(unused)
        raise InvalidArgument(
            f"tensor '{tensor}', {sources[tensor].place}, is not used: no step reads it, and it is no output"
        )
    check_order(config, ensemble)


def named(name: str, specs: Sequence[TensorSpec], place: str, kind: str) -> TensorSpec:
    """The spec of this name."""
    for spec in specs:
        if spec.name == name:
            return spec
    raise InvalidArgument(f"{place} maps {kind} '{name}', the model has {', '.join(spec.name for spec in specs)}")


def use(ensemble: ModelConfig, model: ModelConfig, spec: TensorSpec, place: str) -> Use:
    """A tensor as the ensemble sees it: without the batch where the ensemble has one, whole where it has none."""
    whole = model.max_batch_size > 0 and ensemble.max_batch_size == 0
    return Use(place, spec.datatype, (-1, *spec.dims) if whole else spec.dims)


def compare(tensor: str, source: Use, reader: Use) -> None:
    """Raises InvalidArgument if what is made cannot be what is read."""
    if source.datatype != reader.datatype:
        raise InvalidArgument(
            f"tensor '{tensor}' is {source.datatype} as {source.place}, but {reader.datatype} as {reader.place}"
        )
    if len(source.dims) != len(reader.dims) or any(
        made != read and -1 not in (made, read) for made, read in zip(source.dims, reader.dims, strict=True)
    ):
        raise InvalidArgument(
            f"tensor '{tensor}' has shape {list(source.dims)} as {source.place}, but {list(reader.dims)} as {reader.place}"
        )


def check_order(config: ModelConfig, ensemble: str) -> None:
    """Raises InvalidArgument if steps wait for each other in a circle."""
    there = {spec.name for spec in config.inputs}
    waiting: list[Step] = list(config.steps)
    while waiting:
        ready = [step for step in waiting if there.issuperset(step.inputs.values())]
        if not ready:
            models = ", ".join(f"'{step.model}'" for step in waiting)
            raise InvalidArgument(f"{ensemble} has a circular dependency between its steps of models {models}")
        there.update(tensor for step in ready for tensor in step.outputs.values())
        waiting = [step for step in waiting if step not in ready]
