"""The best hits of each value of a field."""

from collections.abc import Sequence
from dataclasses import dataclass

from lookwire_server.errors import InvalidArgument
from lookwire_server.search.fields import Field, FieldType, Value, listed, shown
from lookwire_server.search.filters import AllOf, Exists, Filter, In, NoneOf

TYPES = (FieldType.STRING, FieldType.INT64, FieldType.BOOL)


@dataclass(frozen=True, slots=True)
class GroupBy:
    """The field whose values part the hits, and the largest number of hits of one value."""

    field: str
    size: int = 1

    def check(self, fields: Sequence[Field], top_k: int, limit: int) -> None:
        """Raises InvalidArgument, with the path of what is at fault; `limit` is on the hits in all."""
        field = {field.name: field for field in fields}.get(self.field)
        if field is None or field.type not in TYPES:
            suitable = [field.name for field in fields if field.type in TYPES]
            problem = "the collection has no field" if field is None else f"{field.type} is no type to group by: field"
            raise InvalidArgument(
                f"{problem} {shown(self.field)}; of type {', '.join(TYPES)} it declares {listed(suitable) or 'none'}",
                field="group_by.field",
            )
        if self.size * top_k > limit:
            raise InvalidArgument(
                f"top_k times group_size is at most {limit}, not {self.size * top_k}",
                field="group_by.group_size",
                limit=limit,
            )


def missing(
    group_by: GroupBy, values: Sequence[Value | None], groups: Sequence[Sequence[int]], count: int
) -> Filter | None:
    """Returns which further items could complete the first `count` groups; None if those are there and full."""
    named = [(value, len(group)) for group in groups if (value := values[group[0]]) is not None]
    if len(named) < count:
        full = tuple(value for value, size in named if size == group_by.size)
        return AllOf((Exists(group_by.field), NoneOf((In(group_by.field, full),))))
    partly = tuple(value for value, size in named[:count] if size < group_by.size)
    return In(group_by.field, partly) if partly else None
