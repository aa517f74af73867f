"""A text tower that stands still until it is told to go on."""

import asyncio

import numpy as np

from lookwire_server.errors import QueueFull
from lookwire_server.lanes import Lane
from lookwire_server.models import config_file
from lookwire_server.models.model import Request, Response
from lookwire_server.models.statistics import Statistics
from tests.conftest import MODEL_REPOSITORY


class Tower:
    """A text tower that answers when its gate is open, with unit vectors, or with `failure`; it refuses while it is `full`."""

    def __init__(self) -> None:
        self.config = config_file.read(MODEL_REPOSITORY / "garments-text")
        self.version = 1
        self.statistics = Statistics()
        self.lanes: list[Lane] = []
        self.cancelled = 0
        self.full = False
        self.failure: Exception | None = None
        self.gate = asyncio.Event()
        self.gate.set()

    def check_wait(self, deadline: float | None) -> None:
        if self.full:
            raise QueueFull("too much waits")

    async def infer(self, request: Request) -> Response:
        self.lanes.append(request.lane)
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if self.failure:
            raise self.failure
        embedding = np.zeros((len(request.inputs["input_ids"]), 64), np.float32)
        embedding[:, 0] = 1
        return Response({"embedding": embedding}, 0.0, 0.0)

    async def close(self) -> None:
        pass


async def until_asked(tower: Tower, times: int) -> None:
    while len(tower.lanes) < times:
        await asyncio.sleep(0)
