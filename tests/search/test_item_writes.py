"""Writes that are conditional, partial or repeated, and deletions by filter: decided in the order of the writes."""

import asyncio
import json
import threading
from collections.abc import Sequence
from concurrent.futures import Future

import numpy as np
import pytest

from lookwire_server.errors import Conflict, InvalidArgument, NotFound
from lookwire_server.search import item_writes
from lookwire_server.search.collection import Collection
from lookwire_server.search.collections import Collections
from lookwire_server.search.fields import MAX_PAYLOAD_BYTES, Field, FieldType
from lookwire_server.search.filters import Equals, Range
from lookwire_server.search.index.live import Upsert
from lookwire_server.search.items import NewItem, PayloadUpdate, check_each
from lookwire_server.search.merge_patch import MergePatch
from lookwire_server.search.store import requests as requests_module
from lookwire_server.search.store.collections import NewCollection
from lookwire_server.search.store.requests import Request
from lookwire_server.search.store.store import Store
from lookwire_server.search.vectors import Matrix

from .conftest import DIMENSION, FIELDS, Open

RNG = np.random.default_rng(3)


class Gate:
    """A write that holds the writer until it is opened, so that what comes after it waits in the queue."""

    size = 0

    def __init__(self) -> None:
        self.reached = threading.Event()
        self.opened = threading.Event()

    def persist(self, store: Store) -> None:
        self.reached.set()
        assert self.opened.wait(30)

    def apply(self) -> None:
        pass

    def publish(self) -> None:
        pass


def hold(collections: Collections) -> tuple[Gate, "Future[None]"]:
    gate = Gate()
    future = collections._engine.writer.submit(gate)
    assert gate.reached.wait(30)
    return gate, future


def vectors(count: int) -> Matrix:
    return RNG.standard_normal((count, DIMENSION)).astype(np.float32)


async def upsert(collection: Collection, *items: NewItem, request: Request | None = None) -> tuple[int, int, int]:
    written = await collection.upsert(items, vectors(len(items)), request)
    return written.sequence, written.inserted, written.replaced


async def payloads(collection: Collection, *ids: str) -> list[bytes]:
    return [item.payload for item in (await collection.get_items(ids)).items]


def patch(id: str, members: object, if_sequence: int | None = None) -> PayloadUpdate:
    return PayloadUpdate(id, MergePatch(json.dumps(members).encode(), "patch"), if_sequence)


async def test_conditional_upsert(collection: Collection) -> None:
    """An item is written if it is at the sequence asked for, 0 for none; otherwise nothing of the request is."""
    assert await upsert(collection, NewItem("a", b"{}", if_sequence=0)) == (1, 1, 0)
    assert await upsert(collection, NewItem("a", b'{"stock": 1}', if_sequence=1)) == (2, 0, 1)

    for wanted in (0, 1, 3):
        with pytest.raises(Conflict, match=r"item 'a' is at sequence 2") as caught:
            await upsert(collection, NewItem("b", b"{}"), NewItem("a", b"{}", if_sequence=wanted))
        assert caught.value.field == "items[1].if_sequence"
        assert caught.value.metadata == {"item": "a", "sequence": "2", "if_sequence": str(wanted)}
    with pytest.raises(Conflict, match="item 'b' does not exist, and must be at 7 for this write"):
        await upsert(collection, NewItem("b", b"{}", if_sequence=7))

    assert collection.sequence == 2
    assert await payloads(collection, "a", "b") == [b'{"stock": 1}']


async def test_of_writes_with_one_condition_one_succeeds(collections: Collections, collection: Collection) -> None:
    """Conditional writes that are committed together see each other: exactly the first finds its condition met."""
    gate, _ = hold(collections)
    tasks = [asyncio.ensure_future(upsert(collection, NewItem("a", b"{}", if_sequence=0))) for _ in range(8)]
    await asyncio.sleep(0)

    gate.opened.set()
    results = await asyncio.gather(*tasks, return_exceptions=True)

    assert results[0] == (1, 1, 0)
    assert [type(result) for result in results[1:]] == [Conflict] * 7


async def test_payloads_change_and_vectors_stay(open_collections: Open) -> None:
    """A changed payload is found by filters, in its place in the index, with the same vector, also after a restart."""
    collections = open_collections()
    collection = await collections.create(NewCollection("hats", "clip", "f1", DIMENSION, FIELDS))
    rows = vectors(3)
    items = [NewItem(f"i{number}", json.dumps({"brand": "ayla", "stock": number}).encode()) for number in range(3)]
    await collection.upsert(items, rows)
    before = (await collection.get_items(["i0", "i1"], include_vectors=True)).vectors
    assert before is not None

    sequence = await collection.update_payloads(
        [PayloadUpdate("i0", b'{"stock": 70}'), patch("i1", {"stock": 71, "brand": None}, if_sequence=1)]
    )

    for current in (collection, None):
        if current is None:
            collections.close()
            current = open_collections().get("hats")
        found = await current.get_items(["i0", "i1", "i2"], include_vectors=True)
        assert [(item.payload, item.sequence) for item in found.items] == [
            (b'{"stock": 70}', sequence),
            (b'{"stock":71}', sequence),
            (items[2].payload, 1),
        ]
        assert found.vectors is not None
        np.testing.assert_array_equal(found.vectors[:2], before)
        assert await current.count(Range("stock", gte=70)) == 2
        assert await current.count(Equals("brand", "ayla")) == 1
        assert (await current.search(rows[1])).ids[0] == "i1"


async def test_payload_updates_are_all_or_nothing(collection: Collection) -> None:
    """One unknown id, unmet condition, undeclarable value or payload that has grown too large, and none is written."""
    large = json.dumps({"text": "x" * (MAX_PAYLOAD_BYTES - 100)}).encode()
    await upsert(collection, NewItem("a", b"{}"), NewItem("large", large))
    good = patch("a", {"stock": 1})
    refused: list[tuple[PayloadUpdate, type[Exception], str]] = [
        (patch("none", {}), NotFound, "updates[1].id"),
        (patch("large", {}, if_sequence=2), Conflict, "updates[1].if_sequence"),
        (patch("large", {}, if_sequence=0), Conflict, "updates[1].if_sequence"),
        (patch("large", {"stock": "many"}), InvalidArgument, "updates[1].merge_patch"),
        (patch("large", {"more": "x" * 100}), InvalidArgument, "updates[1].merge_patch"),
        (PayloadUpdate("large", b"[]"), InvalidArgument, "updates[1].replacement"),
        (PayloadUpdate("large", b'{"price": "free"}'), InvalidArgument, "updates[1].replacement"),
        (patch("a", {}), InvalidArgument, "updates[1].id"),
        (patch("", {}), InvalidArgument, "updates[1].id"),
    ]

    for update, kind, field in refused:
        with pytest.raises(kind) as caught:
            await collection.update_payloads([good, update])
        assert getattr(caught.value, "field", None) == field

    for updates in ([], [good] * 1025):
        with pytest.raises(InvalidArgument, match="a request has 1 to 1024"):
            await collection.update_payloads(updates)
    assert collection.sequence == 1
    assert await payloads(collection, "a") == [b"{}"]


async def test_payload_update_sees_the_writes_before_it(collections: Collections, collection: Collection) -> None:
    """Patches that are committed together build on each other, and on an upsert before them."""
    gate, _ = hold(collections)
    tasks: list[asyncio.Future[object]] = [
        asyncio.ensure_future(upsert(collection, NewItem("a", b'{"stock": 1}'))),
        asyncio.ensure_future(collection.update_payloads([patch("a", {"price": 2})])),
        asyncio.ensure_future(collection.update_payloads([patch("a", {"new": True}, if_sequence=2)])),
    ]
    await asyncio.sleep(0)

    gate.opened.set()
    await asyncio.gather(*tasks)

    assert await payloads(collection, "a") == [b'{"stock":1,"price":2,"new":true}']
    assert (collection.item_count, collection.sequence) == (1, 3)


async def test_sources_stay_with_their_items(collections: Collections) -> None:
    """A source that is kept is that of the item after its payload changed, and goes with the item."""
    collection = await collections.create(NewCollection("kept", "clip", "f1", DIMENSION, FIELDS, keeps_sources=True))
    sources = collections._engine.store.sources
    await upsert(collection, NewItem("a", b"{}", "a text"), NewItem("b", b"{}", b"an image"), NewItem("c", b"{}"))

    await collection.update_payloads([patch("b", {"stock": 1}), patch("c", {"stock": 1}), patch("a", {"stock": 2})])

    view = collection.index.view
    kept = {id: int(view.rows.keys(view.count)[view.slot_of(id) or 0]) for id in ("a", "b", "c")}
    assert sources.by_key(list(range(20))) == {kept["a"]: "a text", kept["b"]: b"an image"}
    await collection.delete_matching(Equals("stock", 1))
    assert sources.by_key(list(range(20))) == {kept["a"]: "a text"}


async def test_repeated_request_writes_once(open_collections: Open) -> None:
    """A repetition, also beside the first and after a restart, has the first reply; other content is refused."""
    collections = open_collections()
    collection = await collections.create(NewCollection("hats", "clip", "f1", DIMENSION, FIELDS))
    request, other = Request("import-1", b"1" * 32), Request("import-1", b"2" * 32)
    assert await collection.written_before(request) is None
    gate, _ = hold(collections)
    item = NewItem("a", b"{}", if_sequence=0)
    tasks = [asyncio.ensure_future(upsert(collection, item, request=request)) for _ in range(4)]
    await asyncio.sleep(0)

    gate.opened.set()

    assert await asyncio.gather(*tasks) == [(1, 1, 0)] * 4
    collections.close()
    collection = open_collections().get("hats")
    assert await upsert(collection, item, request=request) == (1, 1, 0)
    assert collection.sequence == 1
    written = await collection.written_before(request)
    assert written is not None
    assert (written.sequence, written.inserted, written.replaced) == (1, 1, 0)
    for refused in (collection.written_before(other), upsert(collection, NewItem("b", b"{}"), request=other)):
        with pytest.raises(InvalidArgument, match="'import-1'") as caught:
            await refused
        assert caught.value.field == "idempotency_key"


async def test_failed_request_is_not_remembered(collection: Collection) -> None:
    """A request that was refused writes when it is sent again and can be."""
    request = Request("again", b"1" * 32)
    with pytest.raises(Conflict):
        await upsert(collection, NewItem("a", b"{}", if_sequence=1), request=request)
    await upsert(collection, NewItem("a", b"{}"))

    assert await upsert(collection, NewItem("a", b"{}", if_sequence=1), request=request) == (2, 0, 1)


async def test_last_requests_are_remembered(
    collections: Collections, collection: Collection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The newest keys of each collection are kept, the oldest beyond them are forgotten; a collection takes its own along."""
    monkeypatch.setattr(requests_module, "REMEMBERED", 5)
    monkeypatch.setattr(requests_module, "SURPLUS", 2)
    other = await collections.create(NewCollection("hats", "clip", "f1", DIMENSION, FIELDS))
    await upsert(other, NewItem("a", b"{}"), request=Request("0", b""))

    for number in range(9):
        await upsert(collection, NewItem("a", b"{}"), request=Request(f"{number}", b""))

    remembered = [await collection.written_before(Request(f"{number}", b"")) is not None for number in range(9)]
    assert remembered == [False] * 3 + [True] * 6
    assert await other.written_before(Request("0", b"")) is not None
    await collections.delete("shoes")
    rows = collections._engine.store.database.reader().execute("SELECT count(*) FROM requests").fetchall()
    assert rows == [(1,)]


@pytest.mark.parametrize("key", ["", "x" * 129, "é" * 65, "\ud800"])
def test_bad_idempotency_key(key: str) -> None:
    """A key has 1 to 128 bytes of UTF-8."""
    with pytest.raises(InvalidArgument, match="1 to 128 bytes") as caught:
        Request(key, b"")

    assert caught.value.field == "idempotency_key"


def test_longest_idempotency_key() -> None:
    """128 bytes are taken."""
    assert Request("é" * 64, b"").key == "é" * 64


async def test_delete_by_filter(
    collections: Collections, collection: Collection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What matches goes, in memory and on disk, however much it is; the rest stays."""
    monkeypatch.setattr(item_writes, "DELETED_AT_ONCE", 7)
    for start in range(0, 100, 50):
        items = [NewItem(f"i{number}", json.dumps({"stock": number}).encode()) for number in range(start, start + 50)]
        await upsert(collection, *items)

    deleted = await collection.delete_matching(Range("stock", gte=40))
    nothing = await collection.delete_matching(Range("stock", gte=40))

    assert (deleted.sequence, deleted.count) == (3, 60)
    assert (nothing.sequence, nothing.count) == (4, 0)
    assert (collection.item_count, collection.sequence) == (40, 4)
    assert await collection.count(Range("stock", gte=40)) == 0
    rows = collections._engine.store.database.reader().execute("SELECT count(*) FROM items").fetchall()
    assert rows == [(40,)]
    with pytest.raises(InvalidArgument, match="no field 'size'"):
        await collection.delete_matching(Equals("size", 1))


async def test_delete_by_filter_keeps_the_order_of_writes(collections: Collections, collection: Collection) -> None:
    """Of writes that wait together, those before the deletion are subject to it, and those after it are not."""
    await upsert(collection, NewItem("was", b'{"stock": 1}'), NewItem("becomes", b'{"stock": 0}'))
    gate, _ = hold(collections)
    tasks: list[asyncio.Future[object]] = [
        asyncio.ensure_future(upsert(collection, NewItem("new", b'{"stock": 1}'))),
        asyncio.ensure_future(collection.update_payloads([patch("was", {"stock": 0}), patch("becomes", {"stock": 1})])),
        asyncio.ensure_future(collection.delete_matching(Equals("stock", 1))),
        asyncio.ensure_future(upsert(collection, NewItem("later", b'{"stock": 1}'))),
    ]
    await asyncio.sleep(0)

    gate.opened.set()
    await asyncio.gather(*tasks)

    assert [item.id for item in (await collection.list_items()).items] == ["later", "was"]


async def test_delete_by_filter_while_an_index_is_built(
    collection: Collection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An index that takes over after a deletion in several steps lacks all that was deleted."""
    monkeypatch.setattr(item_writes, "DELETED_AT_ONCE", 3)
    await upsert(collection, *(NewItem(f"i{number}", json.dumps({"stock": number}).encode()) for number in range(20)))
    index = collection.index
    index.record()
    other = type(index)(DIMENSION, FIELDS, 0)
    view = index.view
    slots = np.arange(view.count)
    other.upsert(
        Upsert(
            1, view.rows.ids(slots), view.rows.keys(view.count).tolist(), vectors(20), [{"stock": n} for n in range(20)]
        )
    )

    await collection.delete_matching(Range("stock", gte=5))
    index.succeed(other)
    index.publish()

    assert collection.item_count == 5


async def imported(collection: Collection, items: Sequence[NewItem]) -> dict[int, str]:
    """Imports items as a chunk; the codes of the errors by position."""
    positions, checked, errors = check_each(enumerate(items), FIELDS)
    result = await collection.import_items(positions, checked, vectors(len(positions)))
    errors.update(result.errors)
    return {position: error.code for position, error in errors.items()}


async def test_import_writes_what_it_can(collection: Collection) -> None:
    """Of a chunk the items whose conditions are met are written; each of the others has its error."""
    await upsert(collection, NewItem("a", b"{}"), NewItem("b", b"{}"))

    errors = await imported(
        collection,
        [
            NewItem("a", b'{"stock": 1}', if_sequence=1),
            NewItem("b", b'{"stock": 1}', if_sequence=2),
            NewItem("", b"{}"),
            NewItem("c", b'{"stock": "x"}'),
            NewItem("d", b'{"stock": 1}', if_sequence=0),
        ],
    )

    assert errors == {1: "ABORTED", 2: "INVALID_ARGUMENT", 3: "INVALID_ARGUMENT"}
    assert await collection.count(Equals("stock", 1)) == 2
    assert await payloads(collection, "b", "c") == [b"{}"]
    assert await imported(collection, [NewItem("a", b"{}", if_sequence=0)]) == {0: "ABORTED"}
    assert collection.sequence == 2


async def test_import_beside_a_change_of_fields(collections: Collections, collection: Collection) -> None:
    """Items that were checked by the old fields are checked again: those that no longer fit have errors, the others values."""
    items = [NewItem("a", b'{"size": 1}'), NewItem("b", b'{"size": "L"}'), NewItem("c", b'{"size": 3}')]
    gate, _ = hold(collections)
    fields = (*FIELDS, Field("size", FieldType.INT64))
    update = asyncio.ensure_future(collections.update("shoes", fields=fields))
    await asyncio.sleep(0)
    writing = asyncio.ensure_future(imported(collection, items))
    await asyncio.sleep(0)

    gate.opened.set()
    await update

    assert await writing == {1: "INVALID_ARGUMENT"}
    assert await collection.count(Range("size", gte=1)) == 2


RFC_7396_APPENDIX_A = [
    ('{"a":"b"}', '{"a":"c"}', '{"a":"c"}'),
    ('{"a":"b"}', '{"b":"c"}', '{"a":"b","b":"c"}'),
    ('{"a":"b"}', '{"a":null}', "{}"),
    ('{"a":"b","b":"c"}', '{"a":null}', '{"b":"c"}'),
    ('{"a":["b"]}', '{"a":"c"}', '{"a":"c"}'),
    ('{"a":"c"}', '{"a":["b"]}', '{"a":["b"]}'),
    ('{"a":{"b":"c"}}', '{"a":{"b":"d","c":null}}', '{"a":{"b":"d"}}'),
    ('{"a":[{"b":"c"}]}', '{"a":[1]}', '{"a":[1]}'),
    ('{"e":null}', '{"a":1}', '{"e":null,"a":1}'),
    ("{}", '{"a":{"bb":{"ccc":null}}}', '{"a":{"bb":{}}}'),
]


@pytest.mark.parametrize(("target", "change", "expected"), RFC_7396_APPENDIX_A)
def test_merge_patch(target: str, change: str, expected: str) -> None:
    """The examples of RFC 7396 with objects give what it says."""
    assert MergePatch(change.encode(), "").applied(target.encode()) == expected.encode()


def test_merge_patch_keeps_what_it_does_not_name() -> None:
    """Long integers, non-ASCII text and halves of surrogate pairs come out as they went in."""
    target = '{"n":123456789012345678901234567890,"é":"日本","half":"\\ud800","x":-0.5}'

    assert MergePatch(b'{"y":[null]}', "").applied(target.encode()).decode() == target[:-1] + ',"y":[null]}'


@pytest.mark.parametrize(
    ("target", "change", "message"),
    [
        (b"{}", b"[]", "the merge patch is not a JSON object"),
        (b"{}", b"{", "the merge patch is not JSON"),
        (b"{}", b"\xff", "the merge patch is not UTF-8"),
        (b"{}", b'{"a":NaN}', "NaN is not a JSON number"),
        (b'{"a":1e999}', b"{}", "beyond the range of a double"),
        (
            b"{}",
            b'{"a":' * 65 + b"1" + b"}" * 65,
            "the merge patch has objects and arrays within each other in more than 64",
        ),
        (b'{"a":' * 65 + b"1" + b"}" * 65, b"{}", "the stored payload has objects and arrays"),
        (b"{}", b" " * (MAX_PAYLOAD_BYTES + 1), "the merge patch has 65537 bytes"),
    ],
)
def test_bad_merge_patch(target: bytes, change: bytes, message: str) -> None:
    """A patch that is none, or whose result could not be written, is refused with its path."""
    with pytest.raises(InvalidArgument, match=message) as caught:
        MergePatch(change, "updates[0].merge_patch").applied(target)

    assert caught.value.field == "updates[0].merge_patch"
