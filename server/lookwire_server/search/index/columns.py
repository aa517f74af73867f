"""The values of the declared fields as numpy columns, one row for each slot of the index.

Columns only grow. A condition is evaluated on the first `count` rows, so a reader that knows how many rows it may see
needs no lock and no copy.
"""

import math
import sys
import threading
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any, cast

import numpy as np
from numpy.typing import DTypeLike, NDArray

from lookwire_server.search.fields import INT64_MAX, INT64_MIN, Field, FieldType, Value, Values, folded
from lookwire_server.search.index.growing import GrowingArray

# An entry of a dict that is two thirds full, with the int that it points to, and the pointer in the list of keys.
BYTES_OF_LOOKUP = 104 + 32 + 8
EARTH_RADIUS_METERS = 6_371_008.8

Mask = NDArray[np.bool_]
# A column as it is written to a file.
Arrays = Mapping[str, NDArray[Any]]


def texts(content: NDArray[np.uint8], ends: NDArray[np.int64]) -> list[str]:
    """Returns the texts that lie in UTF-8 one after the other, each up to its end."""
    data = content.tobytes()
    return [data[start:end].decode() for start, end in pairwise([0, *ends.tolist()])]


class StringColumn:
    """Strings as codes of a dictionary; -1 where there is no value."""

    def __init__(self) -> None:
        self._codes = GrowingArray(np.int32)
        self._words: list[str] = []
        self._code_of: dict[str, int] = {}
        self._word_bytes = 0
        # The codes by folded word, of the words that were folded yet; made by the first who asks.
        self._codes_of_folded: dict[str, list[int]] = {}
        self._folded_count = 0
        self._folding = threading.Lock()

    @property
    def nbytes(self) -> int:
        """Bytes in memory, those of Python's objects estimated."""
        return self._codes.nbytes + self._word_bytes + BYTES_OF_LOOKUP * len(self._words)

    def append(self, values: Sequence[Value | None]) -> None:
        self._codes.append(
            np.fromiter((-1 if value is None else self._code(cast(str, value)) for value in values), np.int32)
        )

    def compacted(self, slots: NDArray[np.int64], count: int) -> "StringColumn":
        """Returns a column of the given slots, without the words that none of them has."""
        column = StringColumn()
        codes = self._codes.first(count)[slots]
        used, positions = np.unique(codes, return_inverse=True)
        renamed = [-1 if code < 0 else column._code(self._words[code]) for code in used]
        column._codes.append(np.array(renamed, np.int32)[positions])
        return column

    def arrays(self, count: int) -> Arrays:
        words = [word.encode() for word in self._words]
        return {
            "codes": self._codes.first(count),
            "words": np.frombuffer(b"".join(words), np.uint8),
            "ends": np.cumsum([len(word) for word in words], dtype=np.int64),
        }

    def restore(self, arrays: Arrays) -> None:
        """Takes what `arrays` gave, into a column that is empty."""
        self._codes.append(arrays["codes"])
        for word in texts(arrays["words"], arrays["ends"]):
            self._code(word)

    def exists(self, count: int) -> Mask:
        return self._codes.first(count) >= 0

    def among(self, wanted: Iterable[Value], count: int) -> Mask:
        codes = [code for word in wanted if (code := self._code_of.get(cast(str, word))) is not None]
        if len(codes) == 1:
            return cast(Mask, self._codes.first(count) == codes[0])
        # The last entry answers for -1, which is no value.
        matching = np.zeros(len(self._words) + 1, np.bool_)
        matching[codes] = True
        return cast(Mask, matching[self._codes.first(count)])

    def prefixed(self, prefix: str, count: int) -> Mask:
        words = len(self._words)
        matching = np.zeros(words + 1, np.bool_)
        matching[:words] = [word.startswith(prefix) for word in self._words[:words]]
        return cast(Mask, matching[self._codes.first(count)])

    def equal(self, text: str, count: int) -> Mask:
        """Matches values that are equal to the text when both are `folded`.

        The first call folds every word of the dictionary, about a microsecond each, and keeps that; later calls fold the words
        that are new since.
        """
        with self._folding:
            words = len(self._words)
            for code in range(self._folded_count, words):
                self._codes_of_folded.setdefault(folded(self._words[code]), []).append(code)
            self._folded_count = words
            codes = self._codes_of_folded.get(folded(text), ())
        return self.among([self._words[code] for code in codes], count)

    def tally(self, among: Mask) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Returns the codes that the slots of a mask have, and how many slots have each."""
        # Code -1, of no value, comes first.
        counts = np.bincount(self._codes.first(len(among))[among] + 1, minlength=1)[1:]
        codes = np.flatnonzero(counts)
        return codes, counts[codes]

    def decoded(self, codes: NDArray[Any]) -> list[Value]:
        """Returns the values of codes as `tally` gives them."""
        return [self._words[code] for code in codes.tolist()]

    def _code(self, word: str) -> int:
        code = self._code_of.get(word)
        if code is None:
            code = len(self._words)
            # In this order: a reader that finds a code must find its word.
            self._words.append(word)
            self._word_bytes += sys.getsizeof(word)
            self._code_of[word] = code
        return code


class ScalarColumn:
    """Values of one numpy type, and which slots have one."""

    def __init__(self, dtype: DTypeLike) -> None:
        self._dtype = dtype
        self._values = GrowingArray(dtype)
        self._present = GrowingArray(np.bool_)

    @property
    def nbytes(self) -> int:
        return self._values.nbytes + self._present.nbytes

    def append(self, values: Sequence[Value | None]) -> None:
        self._values.append(np.array([0 if value is None else value for value in values], self._dtype))
        self._present.append(np.array([value is not None for value in values], np.bool_))

    def compacted(self, slots: NDArray[np.int64], count: int) -> "ScalarColumn":
        column = type(self)(self._dtype)
        column._values.append(self._values.first(count)[slots])
        column._present.append(self._present.first(count)[slots])
        return column

    def arrays(self, count: int) -> Arrays:
        return {"values": self._values.first(count), "present": self._present.first(count)}

    def restore(self, arrays: Arrays) -> None:
        """Takes what `arrays` gave, into a column that is empty."""
        self._values.append(arrays["values"])
        self._present.append(arrays["present"])

    def exists(self, count: int) -> Mask:
        return self._present.first(count).copy()

    def among(self, wanted: Iterable[Value], count: int) -> Mask:
        accepted = np.array(list(wanted), self._dtype)
        values = self._values.first(count)
        matching: Mask = values == accepted[0] if len(accepted) == 1 else np.isin(values, accepted)
        matching &= self._present.first(count)
        return matching

    def tally(self, among: Mask) -> tuple[NDArray[Any], NDArray[np.int64]]:
        """Returns the values that the slots of a mask have, rising, and how many slots have each."""
        count = len(among)
        return np.unique(self._values.first(count)[among & self._present.first(count)], return_counts=True)

    def decoded(self, codes: NDArray[Any]) -> list[Value]:
        """Returns values that `tally` gave as Python's."""
        values: list[Value] = codes.tolist()
        return values


class Int64Column(ScalarColumn):
    """Integers, and timestamps in microseconds since 1970."""

    def between(self, *, gt: float | None, gte: float | None, lt: float | None, lte: float | None, count: int) -> Mask:
        """Rounds the bounds to integers, never the values to doubles: an integer may have more digits than a double."""
        low = max(INT64_MIN if gt is None else math.floor(gt) + 1, INT64_MIN if gte is None else math.ceil(gte))
        high = min(INT64_MAX if lt is None else math.ceil(lt) - 1, INT64_MAX if lte is None else math.floor(lte))
        if low > high:
            return np.zeros(count, np.bool_)
        values = self._values.first(count)
        matching: Mask = self._present.first(count) & (values >= low)
        matching &= values <= high
        return matching


class DoubleColumn(ScalarColumn):
    """Floating-point numbers."""

    def among(self, wanted: Iterable[Value], count: int) -> Mask:
        """Matches numbers that are exactly equal: an integer that lies between two doubles matches neither."""
        return super().among([number for number in wanted if float(cast(float, number)) == number], count)

    def between(self, *, gt: float | None, gte: float | None, lt: float | None, lte: float | None, count: int) -> Mask:
        values = self._values.first(count)
        matching: Mask = self._present.first(count).copy()
        if gt is not None:
            matching &= values > gt
        if gte is not None:
            matching &= values >= gte
        if lt is not None:
            matching &= values < lt
        if lte is not None:
            matching &= values <= lte
        return matching


class GeoColumn:
    """Latitudes and longitudes in degrees; NaN where there is no value, which no comparison matches."""

    def __init__(self) -> None:
        self._points = GrowingArray(np.float64, (2,))

    @property
    def nbytes(self) -> int:
        return self._points.nbytes

    def append(self, values: Sequence[Value | None]) -> None:
        nowhere = (math.nan, math.nan)
        points: list[Any] = [nowhere if value is None else value for value in values]
        self._points.append(np.array(points, np.float64).reshape(-1, 2))

    def compacted(self, slots: NDArray[np.int64], count: int) -> "GeoColumn":
        column = GeoColumn()
        column._points.append(self._points.first(count)[slots])
        return column

    def arrays(self, count: int) -> Arrays:
        return {"points": self._points.first(count)}

    def restore(self, arrays: Arrays) -> None:
        """Takes what `arrays` gave, into a column that is empty."""
        self._points.append(arrays["points"])

    def exists(self, count: int) -> Mask:
        return cast(Mask, ~np.isnan(self._points.first(count)[:, 0]))

    def within_radius(self, latitude: float, longitude: float, meters: float, count: int) -> Mask:
        """Matches by the haversine distance on a sphere of the mean Earth radius."""
        latitudes, longitudes = np.radians(self._points.first(count)).T
        center = math.radians(latitude)
        chord = (
            np.sin((latitudes - center) / 2) ** 2
            + math.cos(center) * np.cos(latitudes) * np.sin((longitudes - math.radians(longitude)) / 2) ** 2
        )
        distances = 2 * EARTH_RADIUS_METERS * np.arcsin(np.sqrt(np.minimum(chord, 1.0)))
        return cast(Mask, distances <= meters)

    def within_box(self, south: float, west: float, north: float, east: float, count: int) -> Mask:
        """Matches between the edges; a box whose west exceeds its east crosses the antimeridian."""
        latitudes, longitudes = self._points.first(count).T
        matching: Mask = (latitudes >= south) & (latitudes <= north)
        if west <= east:
            matching &= (longitudes >= west) & (longitudes <= east)
        else:
            matching &= (longitudes >= west) | (longitudes <= east)
        return matching


class TextColumn:
    """Which slots have a text; the texts themselves are in the store."""

    def __init__(self) -> None:
        self._present = GrowingArray(np.bool_)

    @property
    def nbytes(self) -> int:
        return self._present.nbytes

    def append(self, values: Sequence[Value | None]) -> None:
        self._present.append(np.array([value is not None for value in values], np.bool_))

    def compacted(self, slots: NDArray[np.int64], count: int) -> "TextColumn":
        column = TextColumn()
        column._present.append(self._present.first(count)[slots])
        return column

    def arrays(self, count: int) -> Arrays:
        return {"present": self._present.first(count)}

    def restore(self, arrays: Arrays) -> None:
        """Takes what `arrays` gave, into a column that is empty."""
        self._present.append(arrays["present"])

    def exists(self, count: int) -> Mask:
        return self._present.first(count).copy()


Column = StringColumn | ScalarColumn | GeoColumn | TextColumn


class Columns:
    """One column for each declared field."""

    def __init__(self, fields: Sequence[Field]) -> None:
        self.fields = tuple(fields)
        self._columns = {field.name: _new_column(field.type) for field in fields}

    def append(self, rows: Sequence[Values]) -> None:
        for name, column in self._columns.items():
            column.append([row.get(name) for row in rows])

    def compacted(self, slots: NDArray[np.int64], count: int) -> "Columns":
        columns = Columns(())
        columns.fields = self.fields
        columns._columns = {name: column.compacted(slots, count) for name, column in self._columns.items()}
        return columns

    def arrays(self, count: int) -> dict[str, NDArray[Any]]:
        """Returns the first `count` rows for a file, named by the position of the field."""
        return {
            f"field{position}.{name}": array
            for position, column in enumerate(self._columns.values())
            for name, array in column.arrays(count).items()
        }

    def restore(self, arrays: Arrays) -> None:
        """Takes what `arrays` gave of the same fields, into columns that are empty."""
        for position, column in enumerate(self._columns.values()):
            prefix = f"field{position}."
            column.restore({name[len(prefix) :]: arrays[name] for name in arrays if name.startswith(prefix)})

    @property
    def nbytes(self) -> int:
        """Bytes in memory, those of Python's objects estimated."""
        return sum(column.nbytes for column in self._columns.values())

    def __getitem__(self, name: str) -> Column:
        return self._columns[name]


def _new_column(type: FieldType) -> Column:
    match type:
        case FieldType.STRING:
            return StringColumn()
        case FieldType.INT64 | FieldType.TIMESTAMP:
            return Int64Column(np.int64)
        case FieldType.DOUBLE:
            return DoubleColumn(np.float64)
        case FieldType.BOOL:
            return ScalarColumn(np.bool_)
        case FieldType.GEO_POINT:
            return GeoColumn()
        case FieldType.TEXT:
            return TextColumn()
