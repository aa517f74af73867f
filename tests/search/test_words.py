"""Words of TEXT fields are found by the store."""

import asyncio
import json
from collections.abc import Sequence
from dataclasses import replace
from hashlib import blake2b
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from lookwire_server.errors import FailedPrecondition
from lookwire_server.search.collection import Collection
from lookwire_server.search.collections import Collections
from lookwire_server.search.fields import Field, FieldType
from lookwire_server.search.items import NewItem
from lookwire_server.search.store.collections import NewCollection
from lookwire_server.search.store.store import Store
from lookwire_server.search.store.words import DIGEST_BYTES, FETCHED_ROWS, Keys

from .conftest import Open

# Two names that are one to SQL, and one that is none.
FIELDS = (
    Field("title", FieldType.TEXT),
    Field("Title", FieldType.TEXT),
    Field("brand", FieldType.STRING),
    Field('no "name"', FieldType.TEXT),
)
BOOKS = NewCollection("books", "clip", "f1", 2, FIELDS)
VECTOR = np.ones(2, np.float32)


@pytest.fixture
def books(collections: Collections) -> Collection:
    return asyncio.run(collections.create(BOOKS))


def store_of(collection: Collection) -> Store:
    return collection._engine.store


def write(collection: Collection, **items: str | dict[str, Any]) -> None:
    """Writes items with a payload, or with a title only."""
    new = [
        NewItem(id, json.dumps({"title": payload} if isinstance(payload, str) else payload).encode())
        for id, payload in items.items()
    ]
    asyncio.run(collection.upsert(new, np.tile(VECTOR, (len(new), 1))))


def ids(collection: Collection, keys: Sequence[int]) -> list[str]:
    stored = store_of(collection).items.by_key(keys)
    return [stored[key][0].id for key in keys]


def found(collection: Collection, words: str, *fields: str, limit: int = 10) -> list[str]:
    keys, scores = store_of(collection).words.search(collection.row, fields, words, limit)
    assert keys.dtype == np.int64
    assert scores.dtype == np.float32
    assert np.all(scores > 0)
    assert np.all(np.diff(scores) <= 0)
    return ids(collection, keys.tolist())


def equal(collection: Collection, words: str) -> list[str]:
    return sorted(ids(collection, store_of(collection).words.equal(collection.row, words).tolist()))


def word_tables(collection: Collection) -> list[str]:
    rows = store_of(collection).database.reader().execute("SELECT name FROM sqlite_master WHERE name LIKE 'words%'")
    return [name for (name,) in rows]


def test_any_word_finds_and_the_best_comes_first(books: Collection) -> None:
    """An item with more of the words, or with rarer ones, ranks higher; one with none is not found."""
    write(books, a="red dress", b="red shirt", c="red dress of wool", d="black hat", e="red", f="red scarf")

    assert found(books, "wool dress") == ["c", "a"]
    assert found(books, "dress hat", limit=1) == ["d"]
    assert found(books, "trousers") == []


def test_case_and_accents_make_no_difference(books: Collection) -> None:
    """Words are found however they are written."""
    write(books, a="Crème BRÛLÉE", b="Straße")

    assert found(books, "creme") == found(books, "brûlée") == ["a"]
    assert found(books, "STRAßE") == ["b"]


def test_only_the_given_fields_are_searched(books: Collection) -> None:
    """Fields whose names differ in case only, or hold quotes, are told apart; no field means all of them."""
    write(books, a={"title": "oak"}, b={"Title": "oak"}, c={'no "name"': "oak"}, d={"brand": "oak"})

    assert found(books, "oak", "title") == ["a"]
    assert found(books, "oak", "Title") == ["b"]
    assert found(books, "oak", 'no "name"') == ["c"]
    assert sorted(found(books, "oak")) == ["a", "b", "c"]


def test_no_syntax_is_interpreted(books: Collection) -> None:
    """Words that mean something to FTS5 are words; signs part them, and parted words stand together."""
    write(books, a="not a t-shirt", b="shirt t", c="near or and")

    assert found(books, "a NOT shirt", "title")[0] == "a"
    assert found(books, "T-SHIRT") == ["a"]
    assert found(books, "Title:near") == []
    assert found(books, "NEAR(x)") == []
    assert found(books, "nea*") == []
    assert found(books, '"') == found(books, "-- ()") == []


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(words=st.text(max_size=1_024) | st.text('ab "*^:(){}+-\0', max_size=60))
def test_no_words_are_an_error(words: str, books: Collection) -> None:
    """Whatever is typed is answered."""
    found(books, words)
    equal(books, words)


@pytest.mark.parametrize(
    "words", [" ".join(map(str, range(512))), "a-" * 512, "é" * 1_024], ids=["many", "parts", "long"]
)
def test_longest_words_are_taken(books: Collection, words: str) -> None:
    """1,024 characters and more, in many words or in one, are searched for."""
    write(books, a=words, b="other")

    assert found(books, words) == equal(books, words) == ["a"]


def test_replaced_and_deleted_items_are_not_found(books: Collection, open_collections: Open) -> None:
    """The index has the items that there are, also after a restart."""
    write(books, a="red dress", b="red hat", c="red shirt")
    write(books, a="blue dress")
    asyncio.run(books.delete_items(["b"]))

    assert found(books, "red") == ["c"]
    assert found(books, "dress") == ["a"]
    assert equal(books, "red dress") == equal(books, "red hat") == []

    books._engine.close()
    again = open_collections().get("books")

    assert found(again, "red hat dress blue") == ["a", "c"]
    assert equal(again, "blue dress") == ["a"]


def test_equal_but_for_case_and_spaces(books: Collection) -> None:
    """A text is equal as a whole, in any TEXT field, and by its signs too; empty words equal nothing."""
    write(
        books,
        a="Red  Dress",
        b={"Title": " red\tDRESS\n", "title": "other"},
        c="red dress long",
        d="dress red",
        e="C++",
        f="c",
        g="",
        h={"brand": "red dress"},
        i="Cre\u0300me",
    )

    assert equal(books, "rEd dress ") == ["a", "b"]
    assert equal(books, "CR\u00c8ME") == ["i"]
    assert equal(books, "c++") == ["e"]
    assert equal(books, "  ") == []


def test_digests_are_no_words(books: Collection) -> None:
    """What finds equal texts is found by no search for words."""
    write(books, a="red")

    assert equal(books, "red") == ["a"]
    assert found(books, blake2b(b"red", digest_size=DIGEST_BYTES).hexdigest()) == []


def test_items_that_are_refused_do_not_count(books: Collection) -> None:
    """Behind any number of better items that a filter leaves out, those that it accepts are found."""
    for start in range(0, FETCHED_ROWS + 100, 500):
        write(books, **{f"short{number}": "red" for number in range(start, start + 500)})
    write(books, x="red dress and more", y="red dress and even more words")
    stored = store_of(books).items
    wanted = [
        key for key, (item, _) in stored.by_key(stored.keys(books.row.number).tolist()).items() if item.id in "xy"
    ]

    def accepts(keys: Keys) -> NDArray[np.bool_]:
        return np.isin(keys, wanted)

    keys, scores = store_of(books).words.search(books.row, (), "red", 5, accepts)

    assert ids(books, keys.tolist()) == ["x", "y"]
    assert len(scores) == 2
    assert len(store_of(books).words.search(books.row, (), "red", 1_200)[0]) == 1_200


def test_fields_may_come_later(books: Collection) -> None:
    """An index that is made again has the items of before, for the fields that are declared now."""
    write(books, a={"brand": "oak", "title": "red dress"}, b={"brand": "elm"})
    row = replace(books.row, fields=(Field("brand", FieldType.TEXT),))
    store = store_of(books)

    store.database.begin()
    store.words.rebuild(row)
    store.database.commit()

    assert ids(books, store.words.search(row, ["brand"], "oak", 10)[0].tolist()) == ["a"]
    assert ids(books, store.words.equal(row, "ELM").tolist()) == ["b"]
    assert store.words.search(row, (), "red", 10)[0].tolist() == []
    with pytest.raises(FailedPrecondition, match="the fields of collection 'books' were changed"):
        found(books, "red", "title")


def test_tables_come_and_go_with_their_collection(collections: Collections) -> None:
    """Only a collection with TEXT fields has a table of words; it goes with the collection."""
    plain = asyncio.run(collections.create(replace(BOOKS, name="plain", fields=FIELDS[2:3])))
    write(plain, a={"brand": "oak"})

    assert word_tables(plain) == []
    assert found(plain, "oak") == equal(plain, "oak") == []

    books = asyncio.run(collections.create(BOOKS))
    assert word_tables(plain) != []
    asyncio.run(collections.delete("books"))
    assert word_tables(plain) == []
    with pytest.raises(FailedPrecondition):
        found(books, "red")
