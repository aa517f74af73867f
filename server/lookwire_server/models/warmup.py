"""Warm-up: what every instance executes before a model is ready, so that no caller pays for a first run."""

from collections.abc import Sequence
from math import prod
from pathlib import Path

import numpy as np
import structlog

from lookwire_server.errors import InvalidArgument, LookwireError, ModelFailure
from lookwire_server.models import datatypes
from lookwire_server.models.config import ModelConfig, Warmup, WarmupInput
from lookwire_server.models.model import Request, Tensor, check
from lookwire_server.models.padding import Padding
from lookwire_server.models.session import Session

log = structlog.get_logger()

FOLDER = "warmup"
# Random integers stay below this: they fit every integer type, and are in range for most vocabularies.
MAX_RANDOM_INTEGER = 100
# Largest tensor of a sample, in elements.
MAX_ELEMENTS = 1 << 26


def warm(config: ModelConfig, directory: Path, sessions: Sequence[Session]) -> None:
    """Executes the config's samples on every session; files of samples are in `directory`/warmup.

    Raises InvalidArgument for a sample that is wrong and ModelFailure for one that the model fails on, with its name.
    """
    for sample in config.warmups:
        place = f"model '{config.name}': warm-up sample '{sample.name}'"
        try:
            request = Request(
                {name: tensor(name, spec, sample, config, directory) for name, spec in sample.inputs.items()}
            )
            check(config, request.inputs)
        except LookwireError as error:
            raise InvalidArgument(f"{place}: {error}") from error
        for session in sessions:
            for _ in range(sample.count):
                try:
                    (answer,) = session.execute([request]).answers
                except Exception as error:  # a model may raise anything
                    raise ModelFailure(f"{place} failed: {error!r}") from error
                if isinstance(answer, LookwireError):
                    raise ModelFailure(f"{place} failed: {answer}") from answer


def rehearse(config: ModelConfig, sessions: Sequence[Session]) -> None:
    """Executes zeros on every session, one row and the largest batch, for a model whose config has no samples.

    Dims of any size are 1, or the smallest bucket; the largest batch has no more rows than MAX_ELEMENTS allow. A graph that
    refuses such input, or needs more memory than there is, is served all the same.
    """
    padding = Padding.of(config)
    dims = {spec.name: [padding.bucket(1) if dim == -1 else dim for dim in spec.dims] for spec in config.inputs}
    most = MAX_ELEMENTS // max(map(prod, dims.values()), default=1)
    try:
        if not most:
            raise InvalidArgument(f"one row of an input has more than {MAX_ELEMENTS} elements")
        for rows in sorted({1, min(config.max_batch_size or 1, most)}):
            batch = [rows] * bool(config.max_batch_size)
            request = Request({spec.name: zeros(spec.datatype, batch + dims[spec.name]) for spec in config.inputs})
            for session in sessions:
                session.execute([request])
    except Exception as error:  # noqa: BLE001 - onnxruntime raises classes of its own, without a common base
        log.warning(
            "the model refuses zeros, so that it is served without warm-up; model_warmup in its config can give better "
            "samples",
            model=config.name,
            error=repr(error),
        )


def tensor(name: str, input: WarmupInput, sample: Warmup, config: ModelConfig, directory: Path) -> Tensor:
    """An input of a sample, the same data in each row."""
    if input.datatype not in datatypes.NUMPY:
        raise InvalidArgument(f"input '{name}' has data_type '{input.datatype}', which is not served")
    if config.max_batch_size:
        if sample.rows > config.max_batch_size:
            raise InvalidArgument(f"batch_size is {sample.rows}, more than max_batch_size, {config.max_batch_size}")
        rows = sample.rows
    elif sample.rows > 1:
        raise InvalidArgument(f"batch_size is {sample.rows}, but the model has no batches (max_batch_size is 0)")
    else:
        rows = 1
    if rows * prod(input.dims) > MAX_ELEMENTS:
        raise InvalidArgument(
            f"input '{name}' has dims {list(input.dims)}: more than {MAX_ELEMENTS} elements in {rows} rows"
        )
    if input.source:
        row = from_file(name, input, directory)
    elif input.random:
        row = random(input.datatype, input.dims)
    else:
        row = zeros(input.datatype, input.dims)
    return np.repeat(row[np.newaxis], rows, axis=0) if config.max_batch_size else row


def zeros(datatype: str, shape: Sequence[int]) -> Tensor:
    """Zeros; empty strings for BYTES."""
    return np.full(shape, b"" if datatype == "BYTES" else 0, datatypes.NUMPY[datatype])


def random(datatype: str, shape: Sequence[int]) -> Tensor:
    """Random values, the same at each start: numbers in [0, 1), integers in [0, 100), decimal digits for BYTES."""
    generator = np.random.default_rng(0)
    dtype = datatypes.NUMPY[datatype]
    if dtype.kind == "f":
        return generator.random(shape).astype(dtype)
    integers = generator.integers(2 if dtype.kind == "b" else MAX_RANDOM_INTEGER, size=shape)
    if datatype == "BYTES":
        return np.array([b"%d" % integer for integer in integers.flat], np.object_).reshape(shape)
    return integers.astype(dtype)


def from_file(name: str, input: WarmupInput, directory: Path) -> Tensor:
    """One row: little-endian raw contents; for BYTES each element is its length in four bytes, then the bytes."""
    folder = (directory / FOLDER).resolve()
    path = (folder / input.source).resolve()
    if not path.is_relative_to(folder):
        raise InvalidArgument(f"input '{name}': input_data_file '{input.source}' leads out of {directory / FOLDER}")
    dtype = datatypes.NUMPY[input.datatype]
    elements = prod(input.dims)
    try:
        size = path.stat().st_size
        if dtype.hasobject:
            return np.array(strings(path.read_bytes(), elements), np.object_).reshape(input.dims)
        if size != elements * dtype.itemsize:
            raise InvalidArgument(
                f"input '{name}': {path} has {size} bytes; one row of {input.datatype} with dims {list(input.dims)} has "
                f"{elements * dtype.itemsize}"
            )
        return np.fromfile(path, dtype.newbyteorder("<")).astype(dtype, copy=False).reshape(input.dims)
    except OSError as error:
        raise InvalidArgument(f"input '{name}': cannot read input_data_file: {error}") from None
    except ValueError as error:
        raise InvalidArgument(f"input '{name}': {path} {error}") from None


def strings(data: bytes, elements: int) -> list[bytes]:
    """The elements of a BYTES tensor in raw contents; ValueError if there are not so many."""
    found = []
    position = 0
    while position < len(data):
        start = position + 4
        position = start + int.from_bytes(data[position:start], "little")
        found.append(data[start:position])
    if position != len(data) or len(found) != elements:
        raise ValueError(f"holds {len(found)} whole or partial strings, not {elements} whole ones")
    return found
