"""The values that the client takes and returns. All are frozen; those that hold arrays compare by identity."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from lookwire.errors import LookwireError

Image: TypeAlias = bytes | Path
"""An encoded image: its bytes, or the path of its file."""
Content: TypeAlias = str | bytes | Path
"""What an encoder takes: a string is a text, never a path; bytes and a path are an image."""
VectorLike: TypeAlias = NDArray[Any] | Sequence[float]
"""A vector [d] of numbers."""
Labels: TypeAlias = Sequence[str] | Mapping[str, Sequence[str]]
"""The labels of a group: names, or names with the prompts that describe each."""


@dataclass(frozen=True, slots=True)
class StageTimes:
    """Where a request spent its time on the server, in microseconds; 0 for a stage that did not happen.

    Stages of one request can overlap, so their sum can exceed `total_us`.
    """

    decode_us: int
    tokenise_us: int
    queue_us: int
    infer_us: int
    search_us: int
    fetch_us: int
    write_us: int
    total_us: int


@dataclass(frozen=True, slots=True)
class ParityFigure:
    """One measurement of an encoder against its reference, and the bound that it had to hold."""

    name: str
    value: float
    at_least: float | None
    at_most: float | None


@dataclass(frozen=True, slots=True)
class ParityRecord:
    """What the export measured against the reference implementation; `passed` if every figure held its bound."""

    reference: str
    passed: bool
    figures: tuple[ParityFigure, ...]


@dataclass(frozen=True, slots=True)
class ImageRules:
    """How an image becomes the pixels that an encoder sees; `lookwire.resize` follows them.

    `decode`: "exact", or "fast": JPEGs are decoded at 1/2, 1/4 or 1/8 of their size, as long as that leaves twice what they
    are resized to.
    `resize`: "shortest" brings the shorter edge to the encoder's `image_size` and crops the middle; "squash" ignores the
    aspect ratio. `interpolation`: "bicubic" or "bilinear".
    `crop`: the middle begins at half of the surplus, by "round" to the nearest even number, by "floor" rounded down.
    `convert_rgb`: "after_resize", which drops transparency, or "before_resize", which lays it on white.

    A value that this client does not know, of a newer server, is its number.
    """

    decode: str
    resize: str
    interpolation: str
    crop: str
    convert_rgb: str


@dataclass(frozen=True, slots=True)
class Encoder:
    """A pair of towers that embed texts and images into one space.

    Vectors may be compared only if their `fingerprint` is the same. `modalities` holds "text" and "image" as served;
    `image_size` (pixels) or `context_length` (tokens) is 0 for one that is not. `logit_bias` is None where the encoder
    has none, `parity` where it was never compared with a reference. `score_rule` says how logits become probabilities:
    "softmax" (the labels of a group share 1) or "sigmoid" (each label for itself). `image_rules` say how an image is brought
    to `image_size`; None for an encoder of texts only, and where the server is too old to tell.
    """

    name: str
    fingerprint: str
    version: int
    description: str
    dimension: int
    modalities: frozenset[str]
    image_size: int
    context_length: int
    precision: str
    logit_scale: float
    logit_bias: float | None
    parity: ParityRecord | None
    score_rule: str
    image_rules: ImageRules | None


@dataclass(frozen=True, slots=True, eq=False)
class Embeddings:
    """A vector for each input.

    `vectors` is float32 [n, d]; each row has length 1. A row whose input failed is NaN and has an entry in `errors`, by
    index; there are such rows only if the call asked for them.
    """

    vectors: NDArray[np.float32]
    fingerprint: str
    times: StageTimes
    errors: Mapping[int, LookwireError]


@dataclass(frozen=True, slots=True, eq=False)
class Scores:
    """How well the inputs of each pair match; arrays are float32 [n], in the order of the pairs.

    `cosines` are in [-1, 1], `clip_scores` are 100 x max(cosine, 0), `logits` are the encoder's scale x cosine + bias.
    `probabilities` are the sigmoids of the logits, or None for an encoder whose rule is the softmax, which needs a set of
    alternatives. A pair that failed is NaN and has an entry in `errors`, by index; there are such pairs only if the call
    asked for them.
    """

    cosines: NDArray[np.float32]
    clip_scores: NDArray[np.float32]
    logits: NDArray[np.float32]
    probabilities: NDArray[np.float32] | None
    fingerprint: str
    times: StageTimes
    errors: Mapping[int, LookwireError]


@dataclass(frozen=True, slots=True)
class LabelGroup:
    """Labels that an input is compared with, such as the colours.

    `labels` are names, or names with prompts of their own, texts that describe the label. A label without prompts is
    described by `templates`, such as "a photo of a {}", each with {} exactly once for the name; without templates, by its
    name alone. Several prompts are averaged.
    """

    labels: Labels
    templates: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class LabelScore:
    """How well one label fits: a cosine in [-1, 1], the encoder's scale x cosine + bias, and a probability in [0, 1].

    The probabilities of all labels of a group sum to 1 where the encoder's rule is the softmax; by the sigmoid each label
    has its own, whatever the others are.
    """

    label: str
    cosine: float
    logit: float
    probability: float


@dataclass(frozen=True, slots=True, eq=False)
class Classifications:
    """The labels of each input, best first, by group: `result.groups[0]["colour"][0].label`.

    `groups` has an element for each input. That of an input that failed is empty and has an entry in `errors`, by index;
    there are such inputs only if the call asked for them.
    """

    groups: tuple[Mapping[str, tuple[LabelScore, ...]], ...]
    fingerprint: str
    times: StageTimes
    errors: Mapping[int, LookwireError]


class FieldType(StrEnum):
    """The type of a payload field that filters can use."""

    STRING = "string"
    INT64 = "int64"
    DOUBLE = "double"
    BOOL = "bool"
    GEO_POINT = "geo_point"
    """A JSON object {"lat": degrees, "lon": degrees}."""
    TEXT = "text"
    """A JSON string whose words hybrid searches find; filters can only ask whether it exists."""
    TIMESTAMP = "timestamp"
    """A JSON string by RFC 3339 with an offset, as `datetime.isoformat` writes one that has a time zone."""


class IndexKind(StrEnum):
    """How vectors are indexed: each compared, by an inverted file, by a graph, or as the server chooses by measuring."""

    AUTOMATIC = "automatic"
    EXACT = "exact"
    IVF = "ivf"
    HNSW = "hnsw"


@dataclass(frozen=True, slots=True)
class IndexSettings:
    """How a collection is to be indexed.

    `target_recall`, in (0, 1], is the share of the true nearest 10 items that a search finds on average; the server sets the
    effort of searches by measuring. Collections below 20,000 items are exact, whatever the kind.
    """

    kind: IndexKind | str = IndexKind.AUTOMATIC
    target_recall: float = 0.98


@dataclass(frozen=True, slots=True)
class Collection:
    """A named set of items that one encoder embedded.

    `fields` are the payload fields that filters can use. `sequence` is the number of the last write, 0 for a new
    collection. `create_time` is in UTC. `aliases` are its further names. `keeps_sources` tells whether the texts and images of
    its items are kept, so that it can be embedded by another encoder.
    """

    name: str
    encoder: str
    fingerprint: str
    dimension: int
    fields: Mapping[str, FieldType]
    item_count: int
    sequence: int
    create_time: datetime
    aliases: tuple[str, ...]
    index: IndexSettings
    keeps_sources: bool


@dataclass(frozen=True, slots=True)
class CollectionStatistics:
    """Figures about a collection at one moment; bytes are those in memory, but `disk_bytes`, the files of the index.

    `row_bytes` (ids, keys and field values) are estimated. Of the items `indexed_count` lie in the index of that `generation`, 0
    before the first; `unindexed_count` were written since and are always compared; `dead_count` places await the next
    generation. The recalls at 10, in [0, 1], are those last measured, with items as queries and with queries of another kind,
    such as texts for images; None if not measured yet. `building` tells whether a new generation is on its way.
    """

    item_count: int
    sequence: int
    vector_bytes: int
    row_bytes: int
    bytes_per_item: float
    disk_bytes: int
    kind: IndexKind | str
    generation: int
    indexed_count: int
    unindexed_count: int
    dead_count: int
    near_recall: float | None
    far_recall: float | None
    building: bool


@dataclass(frozen=True, slots=True)
class ReembedProgress:
    """How many of a collection's items its new collection has; `done` in the last, when both are equal and the alias is set."""

    copied_count: int
    item_count: int
    done: bool


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A copy of a collection as of one moment, in a file of the server.

    `name` is what the file is called, without its ending; `collection` is the name that the collection had, `sequence` the
    number of the last write that is part of the copy. `create_time` is in UTC, `bytes` the size of the file.
    """

    name: str
    collection: str
    encoder: str
    fingerprint: str
    item_count: int
    sequence: int
    create_time: datetime
    bytes: int


@dataclass(frozen=True, slots=True, eq=False)
class Item:
    """What to write: an id (1 to 512 bytes of UTF-8), a payload (a JSON object), and what the vector comes from.

    Exactly one of `text`, `image` and `vector` [d] is given, else ValueError. With `if_sequence` the item is written only if
    the stored item of this id has that sequence, with 0 only if there is none; otherwise it is a Conflict.
    """

    id: str
    payload: Mapping[str, Any] = field(default_factory=dict)
    text: str | None = None
    image: Image | None = None
    vector: VectorLike | None = None
    if_sequence: int | None = None

    def __post_init__(self) -> None:
        if sum(source is not None for source in (self.text, self.image, self.vector)) != 1:
            raise ValueError(f"item {self.id!r} needs exactly one of text, image and vector")


@dataclass(frozen=True, slots=True, eq=False)
class PayloadUpdate:
    """A change of the payload of one item: exactly one of `replacement` and `merge_patch` is given, else ValueError.

    `replacement` is the new payload. The members of `merge_patch` are set in the payload, recursively for mappings, and None
    removes a member (RFC 7396); at most 64 KiB. With `if_sequence` the item must have that sequence, otherwise it is a Conflict.
    """

    id: str
    replacement: Mapping[str, Any] | None = None
    merge_patch: Mapping[str, Any] | None = None
    if_sequence: int | None = None

    def __post_init__(self) -> None:
        if (self.replacement is None) == (self.merge_patch is None):
            raise ValueError(f"the update of item {self.id!r} needs exactly one of replacement and merge_patch")


@dataclass(frozen=True, slots=True, eq=False)
class StoredItem:
    """An item as it is kept; `sequence` numbers the write that made it so.

    `vector` is float32 [d] of length 1, or None unless the call asked for it.
    """

    id: str
    payload: Mapping[str, Any]
    sequence: int
    vector: NDArray[np.float32] | None


@dataclass(frozen=True, slots=True)
class Upserted:
    """A confirmed write: the number of its last chunk (0 if there were no items), and how many ids were new or existed.

    A search with `min_sequence=sequence` is certain to see the items.
    """

    sequence: int
    inserted: int
    replaced: int

    @property
    def count(self) -> int:
        """The number of items written."""
        return self.inserted + self.replaced


@dataclass(frozen=True, slots=True, eq=False)
class Imported:
    """What an import wrote: the number of its last write (0 if nothing was written), and how many ids were new or existed.

    `failed` is how many items were not written; `errors` has the error of each by its id, of the first 10,000.
    """

    sequence: int
    inserted: int
    replaced: int
    failed: int
    errors: Mapping[str, LookwireError]

    @property
    def count(self) -> int:
        """The number of items written."""
        return self.inserted + self.replaced


@dataclass(frozen=True, slots=True)
class Deleted:
    """A confirmed deletion: the number of the write, and how many of the ids existed."""

    sequence: int
    count: int


@dataclass(frozen=True, slots=True)
class Facet:
    """How many items have each value of a field: the commonest values by falling count, equal counts by rising value.

    `value_count` is the number of different values, of which `counts` may have only some; `missing_count` that of the
    items without a value.
    """

    counts: Mapping[str | int | float | bool, int]
    value_count: int
    missing_count: int


@dataclass(frozen=True, slots=True)
class Facets:
    """The facet of each field, of the `match_count` items that match a filter."""

    match_count: int
    fields: Mapping[str, Facet]


@dataclass(frozen=True, slots=True)
class Legs:
    """Where the legs of a hybrid search ranked an item, from 1; 0 by a leg that did not reach it.

    `word_score` is by BM25, higher is better, 0 for an item that the word leg did not reach. `equal` tells whether it has a field
    that is equal to the words. Hits that are `equal` come first, and both these and the others are ordered by `fused_score`: the
    sum of weight / (60 + rank).
    """

    vector_rank: int
    word_rank: int
    word_score: float
    fused_score: float
    equal: bool


@dataclass(frozen=True, slots=True, eq=False)
class Hit:
    """An item found; `score` is its cosine with the query, in [-1, 1].

    `payload` is empty where the call asked for ids only. The rest is None unless the call asked for it: `vector` is float32
    [d]; `calibrated_score`, in [0, 1], says how sure one can be that the score is no accident; `legs` says where the legs of
    a hybrid search ranked the item; `group_value` is its value of the field that the hits are grouped by.
    """

    id: str
    score: float
    payload: Mapping[str, Any]
    vector: NDArray[np.float32] | None
    calibrated_score: float | None = None
    legs: Legs | None = None
    group_value: str | int | bool | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """How a search was carried out.

    `method` is "exact" (every matching item was scanned), "gather" (the few matching items were collected; as exact), "ivf" (the
    items of the nearest cells of an inverted file) or "hnsw" (a graph of near neighbours was walked). `match_count` of the
    collection's `item_count` items matched the filter.

    The rest is there where the call asked to `explain`. `indexed_count` items lie in the index of that `generation` (0 before
    the first); the others are always compared. `probes` of the `cells` of an inverted file were searched, or a graph with a
    candidate list of `ef_search`; 0 for other methods. `candidate_count` items were compared again by their float32 vectors.
    `measured_recall` is the share of the true nearest 10 that the method found for sampled queries of this kind, 0 where it
    was not measured. `batch_size` queries were searched for together. `reason` says in words why this method was chosen.
    """

    method: str
    item_count: int
    match_count: int
    generation: int = 0
    indexed_count: int = 0
    cells: int = 0
    probes: int = 0
    ef_search: int = 0
    candidate_count: int = 0
    measured_recall: float = 0.0
    batch_size: int = 0
    reason: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class SearchResult:
    """The hits, best first; `sequence` is the number of the last write that the search saw."""

    hits: tuple[Hit, ...]
    plan: Plan
    sequence: int
    fingerprint: str
    times: StageTimes


@dataclass(frozen=True, slots=True, eq=False)
class BatchSearchResult:
    """The results of several searches, in order.

    A search that failed has None, and an entry in `errors`, by index; there are such only if the call asked for them.
    """

    results: tuple[SearchResult | None, ...]
    errors: Mapping[int, LookwireError]
