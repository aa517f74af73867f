"""The encoder: two towers, their preprocessing and tokenizer, under one fingerprint."""

import asyncio
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lookwire_server.encoding.cache import Flight, LruCache
from lookwire_server.encoding.images import ImageDecoder
from lookwire_server.encoding.manifest import ImageRules, Manifest, TextRules
from lookwire_server.encoding.texts import TextTokenizer
from lookwire_server.errors import InvalidArgument, LookwireError, Unavailable
from lookwire_server.lanes import Lane
from lookwire_server.metrics import Metrics
from lookwire_server.models.config import ModelConfig
from lookwire_server.models.model import Model, Request, Response, Tensor, check
from lookwire_server.models.statistics import Statistics
from lookwire_server.models.together import together

Vectors = np.ndarray[Any, np.dtype[np.float32]]

# Characters that are tokenised on the event loop; more go to a thread. About 0.1 ms.
INLINE_CHARACTERS = 2_000
INLINE_TEXTS = 64
# Texts of one call that wait in the tower's queue at a time.
MAX_QUEUED_TEXTS = 1_024
# What a kept vector costs beside its text and its numbers, roughly: Python's objects.
ENTRY_BYTES = 350


@dataclass(slots=True)
class Times:
    """Seconds that an embedding spent in each stage; the queue and infer times are those of the slowest row."""

    decode: float = 0.0
    tokenise: float = 0.0
    queue: float = 0.0
    infer: float = 0.0

    def answered(self, response: Response) -> None:
        self.queue = max(self.queue, response.queue_seconds)
        self.infer = max(self.infer, response.infer_seconds)

    def waited_for(self, work: "Times") -> None:
        """Takes in the times of work that others may have begun."""
        self.tokenise = max(self.tokenise, work.tokenise)
        self.queue = max(self.queue, work.queue)
        self.infer = max(self.infer, work.infer)


@dataclass(slots=True, frozen=True)
class Embedded:
    """L2-normalised float32 vectors of shape [inputs, dimension]; a row of zeros for each index in `errors`."""

    vectors: Vectors
    errors: dict[int, LookwireError]
    times: Times


@dataclass(slots=True)
class TextVectors:
    """What embedding texts has made: a float32 vector of shape [dimension] for each, and the times that it took."""

    vectors: dict[str, Vectors]
    times: Times


# A text, and the fingerprint of the encoder: another encoder never finds the vectors of this one.
TextKey = tuple[str, str]
TextCache = LruCache[TextKey, Vectors]
TextFlight = Flight[str, TextVectors]


@dataclass(slots=True, frozen=True)
class Job:
    """One call of `embed`: what it was asked with, and the answer that its tasks fill in."""

    lane: Lane
    deadline: float | None
    answer: Embedded


@dataclass(slots=True, frozen=True)
class ImageTower:
    """The image half: decoded pixels go to `model`."""

    model: Model
    rules: ImageRules
    decoder: ImageDecoder


@dataclass(slots=True, frozen=True)
class TextTower:
    """The text half: token ids go to `model`."""

    model: Model
    rules: TextRules
    tokenizer: TextTokenizer

    def padded(self, ids: Sequence[Sequence[int]]) -> Tensor:
        """int32 of shape [texts, length]: as long as the longest, or as the context where the tower needs that."""
        rules = self.rules
        length = max(map(len, ids)) if rules.padding == "longest" else rules.context_length
        matrix = np.full((len(ids), length), rules.pad_id, np.int32)
        for row, own in enumerate(ids):
            matrix[row, : len(own)] = own
        return matrix


class Encoder:
    """A loaded encoder. As a V2 model it takes TEXT or IMAGE (BYTES) and returns EMBEDDING.

    Equal texts that are asked for at once are embedded once, and `cache` keeps their vectors as first made (those of int8
    depend slightly on the batch that they were in). Images are not kept: their bytes are large keys, and seldom come again.
    """

    def __init__(
        self,
        config: ModelConfig,
        version: int,
        manifest: Manifest,
        image: ImageTower | None,
        text: TextTower | None,
        max_text_bytes: int,
        cache: TextCache,
        metrics: Metrics,
    ) -> None:
        self.config = config
        self.version = version
        self.statistics = Statistics()
        self.manifest = manifest
        self.name = config.name
        self.fingerprint = manifest.fingerprint()
        self.dimension = manifest.dimension
        self._image = image
        self._text = text
        self._max_text_bytes = max_text_bytes
        self._cache = cache
        self._flights: dict[Lane, dict[str, TextFlight]] = {lane: {} for lane in Lane}
        self._hits = metrics.embedding_cache_hits
        self._misses = metrics.embedding_cache_misses
        self._embedding = 0
        self._closing = False
        self._idle = asyncio.Event()
        self._decode_seconds = metrics.stage_seconds.labels("decode")
        self._tokenise_seconds = metrics.stage_seconds.labels("tokenise")

    async def embed(
        self, inputs: Sequence[str | bytes], *, lane: Lane = Lane.INTERACTIVE, deadline: float | None = None
    ) -> Embedded:
        """Embeds texts (str) and images (bytes) in any mix; an input that can't be embedded has an error, the others a vector."""
        if self._closing:
            raise Unavailable(f"encoder '{self.name}' is stopping")
        self._embedding += 1
        try:
            return await self._embed(inputs, lane, deadline)
        finally:
            self._embedding -= 1
            if not self._embedding:
                self._idle.set()

    async def _embed(self, inputs: Sequence[str | bytes], lane: Lane, deadline: float | None) -> Embedded:
        answer = Embedded(np.zeros((len(inputs), self.dimension), np.float32), {}, Times())
        job = Job(lane, deadline, answer)
        texts = {index: value for index, value in enumerate(inputs) if isinstance(value, str)}
        images = {index: value for index, value in enumerate(inputs) if isinstance(value, bytes)}
        work = [self._embed_image(job, index, image) for index, image in images.items()]
        if texts:
            work.append(self._embed_texts(job, texts))
        await together(work)
        return answer

    async def _embed_image(self, job: Job, index: int, image: bytes) -> None:
        times = job.answer.times
        started = time.monotonic()
        try:
            if self._image is None:
                raise InvalidArgument(f"encoder '{self.name}' has no image tower; it takes texts only")
            if job.lane is Lane.INTERACTIVE:
                self._image.model.check_wait(job.deadline)
            pixels = await self._image.decoder.pixels(image, self._image.rules, job.lane)
        except InvalidArgument as error:
            job.answer.errors[index] = error
            return
        decoded = time.monotonic() - started
        self._decode_seconds.observe(decoded)
        times.decode = max(times.decode, decoded)
        response = await self._image.model.infer(Request({"pixels": pixels[np.newaxis]}, job.lane, job.deadline))
        times.answered(response)
        job.answer.vectors[index] = response.outputs["embedding"][0]

    async def _embed_texts(self, job: Job, texts: Mapping[int, str]) -> None:
        tower = self._text
        if tower is None:
            error = InvalidArgument(f"encoder '{self.name}' has no text tower; it takes images only")
            job.answer.errors.update(dict.fromkeys(texts, error))
            return
        refused = 0
        new: dict[str, list[int]] = {}
        joined: dict[TextFlight, list[int]] = {}
        for index, text in texts.items():
            if text in new:
                new[text].append(index)
            elif (vector := self._cache.get((self.fingerprint, text))) is not None:
                job.answer.vectors[index] = vector
            elif (flight := self._in_flight(job.lane, text)) is not None:
                joined.setdefault(flight, []).append(index)
            elif (refusal := self.refusal(text)) is not None:
                refused += 1
                job.answer.errors[index] = refusal
            else:
                new[text] = [index]
        if hits := len(texts) - len(new) - refused:
            self._hits.inc(hits)
        # Its own work first: two calls that wait for each other have then both done theirs.
        if new:
            if job.lane is Lane.INTERACTIVE:
                tower.model.check_wait(job.deadline)
            self._misses.inc(len(new))
            with Flight(self._flights[job.lane], new) as flight:
                made = await self._make(tower, list(new), job.lane, job.deadline)
                flight.land(made)
            job.answer.times.waited_for(made.times)
            for text, indexes in new.items():
                for index in indexes:
                    job.answer.vectors[index] = made.vectors[text]
        for flight, indexes in joined.items():
            landed = await flight.wait(job.deadline)
            if landed is None:
                await self._embed_texts(job, {index: texts[index] for index in indexes})
                continue
            job.answer.times.waited_for(landed.times)
            for index in indexes:
                job.answer.vectors[index] = landed.vectors[texts[index]]

    def refusal(self, text: str) -> InvalidArgument | None:
        """Why the text cannot be embedded, if it cannot."""
        if (size := len(text.encode())) <= self._max_text_bytes:
            return None
        return InvalidArgument(
            f"the text has {size} bytes, at most {self._max_text_bytes} are taken",
            bytes=size,
            limit=self._max_text_bytes,
        )

    def missing(self, texts: Iterable[str]) -> int:
        """How many of the texts have no vector that is kept."""
        return sum((self.fingerprint, text) not in self._cache for text in texts)

    def _in_flight(self, lane: Lane, text: str) -> TextFlight | None:
        """The work that makes the vector of this text now. A query does not wait for bulk work: it is embedded beside it."""
        return self._flights[Lane.INTERACTIVE].get(text) or self._flights[lane].get(text)

    async def _make(self, tower: TextTower, texts: Sequence[str], lane: Lane, deadline: float | None) -> TextVectors:
        """Embeds texts, no two of them equal, and keeps their vectors."""
        made = TextVectors({}, Times())
        # One request may not fill the queue of the tower: what it has more waits here.
        for start in range(0, len(texts), MAX_QUEUED_TEXTS):
            await self._make_some(tower, texts[start : start + MAX_QUEUED_TEXTS], lane, deadline, made)
        return made

    async def _make_some(
        self, tower: TextTower, texts: Sequence[str], lane: Lane, deadline: float | None, made: TextVectors
    ) -> None:
        """Adds the vectors of some texts to what is made."""
        started = time.monotonic()
        if sum(map(len, texts)) <= INLINE_CHARACTERS and len(texts) <= INLINE_TEXTS:
            ids = tower.tokenizer.encode(texts)
        else:
            ids = await asyncio.to_thread(tower.tokenizer.encode, texts)
        tokenise = time.monotonic() - started
        self._tokenise_seconds.observe(tokenise)
        made.times.tokenise += tokenise

        response = await tower.model.infer(Request({"input_ids": tower.padded(ids)}, lane, deadline))
        made.times.answered(response)
        for text, row in zip(texts, response.outputs["embedding"], strict=True):
            made.vectors[text] = vector = row.copy()  # the row is part of a large batch
            nbytes = ENTRY_BYTES + sys.getsizeof(text) + vector.nbytes
            # Bulk work takes free room only: an import drives out no query.
            self._cache.put((self.fingerprint, text), vector, nbytes, first_to_go=lane is Lane.BULK)

    def check_wait(self, deadline: float | None) -> None:
        """Nothing: `embed` has its towers refuse before it decodes and tokenises."""

    async def infer(self, request: Request) -> Response:
        """The V2 face: one of TEXT and IMAGE, BYTES of shape [rows, 1], to EMBEDDING, FP32 of shape [rows, dimension]."""
        started = time.monotonic()
        try:
            rows = check(self.config, request.inputs)
            if len(request.inputs) != 1:
                raise InvalidArgument(
                    f"model '{self.name}' takes either TEXT or IMAGE, got {len(request.inputs)} inputs"
                )
            embedded = await self.embed(self._contents(request.inputs), lane=request.lane, deadline=request.deadline)
            for index, error in sorted(embedded.errors.items()):
                raise error.at(error.field, f"row {index}: ")
        except BaseException as error:
            self.statistics.failed(error, time.monotonic() - started)
            raise
        self.statistics.success.add(time.monotonic() - started)
        self.statistics.queue.add(embedded.times.queue)
        self.statistics.executed(rows, 1, embedded.times.decode + embedded.times.tokenise, embedded.times.infer, 0.0)
        return Response({"EMBEDDING": embedded.vectors}, embedded.times.queue, embedded.times.infer)

    def _contents(self, inputs: Mapping[str, Tensor]) -> list[str | bytes]:
        if "IMAGE" in inputs:
            return list(inputs["IMAGE"].ravel())
        try:
            return [text.decode() for text in inputs["TEXT"].ravel()]
        except UnicodeDecodeError as error:
            raise InvalidArgument(f"TEXT must be UTF-8: {error.reason} at byte {error.start}") from None

    async def close(self) -> None:
        """Takes no more inputs, and waits for those it has; the towers and the decoder have other owners."""
        self._closing = True
        if self._embedding:
            self._idle.clear()
            await self._idle.wait()
