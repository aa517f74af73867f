"""What the tests of collections share: a data directory that is open, and a collection in it."""

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lookwire_server.metrics import Metrics
from lookwire_server.search.collection import Collection
from lookwire_server.search.collections import Collections
from lookwire_server.search.fields import Field, FieldType
from lookwire_server.search.store.collections import NewCollection

FIELDS = (
    Field("brand", FieldType.STRING),
    Field("stock", FieldType.INT64),
    Field("price", FieldType.DOUBLE),
    Field("new", FieldType.BOOL),
    Field("place", FieldType.GEO_POINT),
    Field("made", FieldType.TIMESTAMP),
    Field("title", FieldType.TEXT),
)
DIMENSION = 4
SHOES = NewCollection("shoes", "clip", "f1", DIMENSION, FIELDS)

Open = Callable[[], Collections]


@pytest.fixture
def failures() -> list[BaseException]:
    """What the collections have reported as the end of writing."""
    return []


@pytest.fixture
def open_collections(tmp_path: Path, failures: list[BaseException]) -> Iterator[Open]:
    """Opens one and the same data directory; what a test leaves open is closed after it."""
    opened: list[Collections] = []

    def open() -> Collections:
        opened.append(Collections.open(tmp_path, Metrics(), search_threads=2, on_failure=failures.append))
        return opened[-1]

    yield open
    for collections in opened:
        collections.close()


@pytest.fixture
def collections(open_collections: Open) -> Collections:
    return open_collections()


@pytest.fixture
def collection(collections: Collections) -> Collection:
    return asyncio.run(collections.create(SHOES))
