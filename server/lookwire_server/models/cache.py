"""The response cache: equal requests to a model whose config enables it are answered without executing it again."""

import time
from collections import OrderedDict
from collections.abc import Hashable, Mapping
from dataclasses import dataclass

import numpy as np

from lookwire_server.errors import Unavailable
from lookwire_server.models.config import ModelConfig
from lookwire_server.models.model import Model, Parameter, Request, Response, Tensor
from lookwire_server.models.statistics import Statistics

# What an entry costs beside its tensors' bytes, roughly: Python's objects, and the names and shapes.
ENTRY_BYTES = 1024
# What a Python object costs in an array of strings, roughly.
STRING_BYTES = 64


@dataclass(frozen=True, slots=True)
class Entry:
    """Outputs that are kept, and what they and their key take in bytes."""

    outputs: Mapping[str, Tensor]
    parameters: Mapping[str, Parameter] | None
    nbytes: int


class ResponseCache:
    """Answers of all models that cache, the least recently used dropped when they exceed `max_bytes`.

    A key is the whole request, compared in full. Used on the event loop only.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.nbytes = 0
        self._entries: OrderedDict[tuple[object, Hashable], Entry] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, owner: object, key: Hashable) -> Entry | None:
        """The answer to this request of `owner`, if it is kept."""
        entry = self._entries.get((owner, key))
        if entry is not None:
            self._entries.move_to_end((owner, key))
        return entry

    def put(self, owner: object, key: Hashable, entry: Entry) -> None:
        """Keeps an answer, in place of others; one larger than the cache is not kept."""
        if entry.nbytes > self.max_bytes:
            return
        if (old := self._entries.pop((owner, key), None)) is not None:
            self.nbytes -= old.nbytes
        self._entries[owner, key] = entry
        self.nbytes += entry.nbytes
        while self.nbytes > self.max_bytes:
            _, oldest = self._entries.popitem(last=False)
            self.nbytes -= oldest.nbytes

    def drop(self, owner: object) -> None:
        """Drops all answers of `owner`."""
        for key in [key for key in self._entries if key[0] is owner]:
            self.nbytes -= self._entries.pop(key).nbytes


class CachedModel:
    """A model with the cache before it. Errors are not kept; outputs of a hit are read-only and shared."""

    def __init__(self, model: Model, cache: ResponseCache) -> None:
        self.config: ModelConfig = model.config
        self.version = model.version
        self.statistics: Statistics = model.statistics
        self._model = model
        self._cache = cache
        self._closing = False

    async def infer(self, request: Request) -> Response:
        if self._closing:
            raise Unavailable(f"model '{self.config.name}' is stopping")
        started = time.perf_counter()
        key = key_of(request)
        entry = self._cache.get(self, key)
        looked_up = time.perf_counter() - started
        if entry is not None:
            self.statistics.last_inference_ms = int(time.time() * 1e3)
            self.statistics.success.add(looked_up)
            self.statistics.queue.add(0.0)
            self.statistics.cache_hit.add(looked_up)
            return Response(entry.outputs, 0.0, 0.0, entry.parameters)
        response = await self._model.infer(request)
        answered = time.perf_counter()
        if not self._closing:
            outputs = {name: kept(tensor) for name, tensor in response.outputs.items()}
            parameters = {**(request.parameters or {}), **(response.parameters or {})}
            size = ENTRY_BYTES + sum(len(name) + len(str(value)) for name, value in parameters.items())
            size += sum(map(nbytes, request.inputs.values())) + sum(map(nbytes, outputs.values()))
            self._cache.put(self, key, Entry(outputs, response.parameters, size))
        self.statistics.cache_miss.add(looked_up + time.perf_counter() - answered)
        return response

    def check_wait(self, deadline: float | None) -> None:
        """Nothing: an answer may be kept."""

    async def close(self) -> None:
        """Drops the model's answers, and closes it."""
        self._closing = True
        self._cache.drop(self)
        await self._model.close()


def key_of(request: Request) -> Hashable:
    """All of a request that decides the answer: not its id, priority, lane or deadline."""
    return (
        tuple(
            (name, tensor.dtype.char, tensor.shape, contents(tensor)) for name, tensor in sorted(request.inputs.items())
        ),
        frozenset(request.outputs),
        # By type too, for True, 1 and 1.0 are equal in Python.
        tuple((name, type(value), value) for name, value in sorted((request.parameters or {}).items())),
    )


def contents(tensor: Tensor) -> Hashable:
    """The elements of a tensor in row-major order."""
    return tuple(tensor.flat) if tensor.dtype.hasobject else tensor.tobytes()


def kept(tensor: Tensor) -> Tensor:
    """A read-only copy: a tensor may be a small part of a large batch, or stand in a message that goes."""
    copy = np.array(tensor, copy=True)
    copy.flags.writeable = False
    return copy


def nbytes(tensor: Tensor) -> int:
    """What a tensor takes in memory."""
    if tensor.dtype.hasobject:
        return tensor.nbytes + sum(STRING_BYTES + len(element) for element in tensor.flat)
    return tensor.nbytes
