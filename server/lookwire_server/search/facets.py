"""Facets: how many items of a selection have each value of a field."""

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from lookwire_server.errors import InvalidArgument
from lookwire_server.search.fields import Field, FieldType, Value, listed, shown
from lookwire_server.search.filters import Filter
from lookwire_server.search.index.columns import Mask, ScalarColumn, StringColumn
from lookwire_server.search.index.view import View

MAX_FIELDS = 16
MAX_VALUES = 1_000
COUNTED = (FieldType.STRING, FieldType.INT64, FieldType.BOOL)


@dataclass(frozen=True, slots=True)
class Facet:
    """The commonest values of a field by falling count, equal counts by rising value.

    `value_count` is the number of different values, `missing_count` that of the items without one.
    """

    field: str
    values: list[Value]
    counts: list[int]
    value_count: int
    missing_count: int


@dataclass(frozen=True, slots=True)
class Facets:
    """A facet for each field asked for, of the `match_count` items that match the filter."""

    facets: list[Facet]
    match_count: int


def check_facets(names: Sequence[str], limit: int, fields: Mapping[str, Field]) -> None:
    """Raises InvalidArgument, with the path of what is at fault, unless the values of the fields can be counted."""
    if not 1 <= len(names) <= MAX_FIELDS:
        raise InvalidArgument(f"{len(names)} fields: a request has 1 to {MAX_FIELDS}", field="fields", limit=MAX_FIELDS)
    if not 1 <= limit <= MAX_VALUES:
        raise InvalidArgument(f"a limit is 1 to {MAX_VALUES}, not {limit}", field="limit", limit=MAX_VALUES)
    for position, name in enumerate(names):
        path = f"fields[{position}]"
        field = fields.get(name)
        if field is None:
            declared = listed(list(fields))
            raise InvalidArgument(
                f"the collection has no field {shown(name)}: it declares {declared or 'none'}",
                field=path,
                declared=declared,
            )
        if field.type not in COUNTED:
            raise InvalidArgument(
                f"field {shown(name)} is {field.type.with_article}; values are counted of fields of type {' or '.join(COUNTED)}",
                field=path,
                type=field.type,
            )


def count_facets(view: View, names: Sequence[str], filter: Filter | None, limit: int) -> Facets:
    """Counts the values of fields that were checked; at most `limit` of each are returned."""
    selected = view.matching(filter)
    match_count = int(np.count_nonzero(selected))
    return Facets([_facet(view, name, selected, match_count, limit) for name in names], match_count)


def _facet(view: View, name: str, selected: Mask, match_count: int, limit: int) -> Facet:
    column = cast(StringColumn | ScalarColumn, view.columns[name])
    codes, counts = column.tally(selected)
    commonest = np.flatnonzero(counts >= _least(counts, limit))
    # Of the least count there may be more than are wanted.
    pairs = zip(column.decoded(codes[commonest]), counts[commonest].tolist(), strict=True)
    ranked = heapq.nsmallest(limit, pairs, key=lambda pair: (-pair[1], cast(Any, pair[0])))
    return Facet(
        name,
        [value for value, _ in ranked],
        [count for _, count in ranked],
        len(counts),
        match_count - int(counts.sum()),
    )


def _least(counts: NDArray[np.int64], limit: int) -> int:
    """Returns the smallest of the `limit` largest counts."""
    return int(np.partition(counts, -limit)[-limit]) if len(counts) > limit else 0
