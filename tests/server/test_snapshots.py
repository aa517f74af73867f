"""Snapshots through the front door."""

import json
import signal
import threading
from collections.abc import Iterator
from contextlib import closing
from hashlib import sha256
from pathlib import Path

import apsw
import numpy as np
import pytest

from lookwire import Client, Item, errors, field
from lookwire.local import LocalServer
from tests.conftest import MODEL_REPOSITORY


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module")
def client(directory: Path) -> Iterator[Client]:
    """A client of a server with a data directory that the tests can reach."""
    with LocalServer(MODEL_REPOSITORY, directory) as server, Client(server.address) as client:
        yield client


def test_collection_goes_to_a_file_and_comes_back(client: Client, collection: str, directory: Path) -> None:
    """A copy has the items of its moment: it is listed, restored, searched and deleted by its name."""
    snapshot = client.create_snapshot(collection)
    client.upsert(collection, [Item("late", {"kind": "hat"}, text="a straw hat")])
    listed = client.list_snapshots(collection)

    again = client.restore_snapshot(snapshot.name, f"{collection}-again")

    original = client.get_collection(collection)
    path = directory / "snapshots" / f"{snapshot.name}.snapshot"
    assert listed == [snapshot]
    assert snapshot.name.startswith(f"{collection}-2")
    assert (snapshot.collection, snapshot.encoder, snapshot.fingerprint) == (
        collection,
        original.encoder,
        original.fingerprint,
    )
    assert (snapshot.item_count, snapshot.sequence, snapshot.bytes) == (3, 1, path.stat().st_size)
    assert (again.name, again.item_count, again.sequence) == (f"{collection}-again", 3, 1)
    assert (again.encoder, again.fingerprint, again.fields) == (
        original.encoder,
        original.fingerprint,
        original.fields,
    )
    hits = client.search(again.name, text="a plain red dress", filter=field("kind") == "dress").hits
    assert [hit.id for hit in hits] == ["red", "blue"]
    client.delete_snapshot(snapshot.name)
    assert client.list_snapshots(collection) == []
    assert not path.exists()
    client.delete_collection(again.name)


def test_wrong_requests_are_explained(client: Client, collection: str, directory: Path) -> None:
    """Each wrong request has its status, names its field, and changes nothing."""
    snapshot = client.create_snapshot(collection)
    path = directory / "snapshots" / f"{snapshot.name}.snapshot"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.with_name("damaged.snapshot").write_bytes(content)
    path.with_name("foreign.snapshot").write_bytes(b"SQLite format 3\0" + bytes(4_000))
    before = client.list_collections()

    for name, kind, said in (
        ("unknown", errors.NotFound, "no snapshot 'unknown'"),
        ("../lookwire", errors.InvalidArgument, "snapshot: a snapshot's name has 1 to 200"),
        ("damaged", errors.FailedPrecondition, "damaged.snapshot is damaged: .*copy the file again"),
        ("foreign", errors.FailedPrecondition, "foreign.snapshot is no snapshot; give one that CreateSnapshot made"),
    ):
        with pytest.raises(kind, match=said):
            client.restore_snapshot(name, "again")
    with pytest.raises(errors.AlreadyExists, match=f"there is a collection or an alias '{collection}' already"):
        client.restore_snapshot(snapshot.name, collection)
    with pytest.raises(errors.InvalidArgument, match="collection: a collection's name has 1 to 128"):
        client.restore_snapshot(snapshot.name, "")
    with pytest.raises(errors.NotFound, match="no collection 'unknown'"):
        client.create_snapshot("unknown")
    with pytest.raises(errors.NotFound, match="no snapshot 'unknown'"):
        client.delete_snapshot("unknown")

    assert client.list_collections() == before
    assert [each.name for each in client.list_snapshots()] == ["damaged", snapshot.name]
    for name in ("damaged", "foreign", snapshot.name):
        client.delete_snapshot(name)


def test_snapshot_of_another_encoder_is_read_by_vector(client: Client, collection: str, directory: Path) -> None:
    """A collection keeps the fingerprint of its snapshot: vectors find its items, texts name the encoder."""
    snapshot = client.create_snapshot(collection)
    path = directory / "snapshots" / f"{snapshot.name}.snapshot"
    path.with_name("foreign.snapshot").write_bytes(with_encoder(path, "of-elsewhere", "0" * 32))

    again = client.restore_snapshot("foreign", f"{collection}-again")

    assert (again.encoder, again.fingerprint) == ("of-elsewhere", "0" * 32)
    vector = client.get_items(again.name, ["red"], include_vectors=True)[0].vector
    assert vector is not None
    assert client.search(again.name, vector=vector).hits[0].id == "red"
    with pytest.raises(errors.FailedPrecondition, match="encoder 'of-elsewhere', which is not served now"):
        client.search(again.name, text="a red dress")
    client.delete_collection(again.name)
    client.delete_snapshot("foreign")
    client.delete_snapshot(snapshot.name)


def with_encoder(path: Path, encoder: str, fingerprint: str) -> bytes:
    """The content of a snapshot as a server with another encoder would have written it."""
    mark = b"lookwire digest\n"
    changed = path.with_name("changed")
    changed.write_bytes(path.read_bytes()[: -len(mark) - 32])
    with closing(apsw.Connection(str(changed))) as connection:
        connection.execute("UPDATE manifest SET encoder = ?, fingerprint = ?", (encoder, fingerprint))
        row = connection.execute("SELECT * FROM manifest").fetchall()[0][:-1]
        connection.execute("UPDATE manifest SET digest = ?", (sha256(json.dumps(row).encode()).digest(),))
    content = changed.read_bytes()
    changed.unlink()
    return content + mark + sha256(content).digest()


def test_copies_under_load_are_each_one_moment(client: Client) -> None:
    """While two writers go on, every restored copy has the writes up to its sequence and no others."""
    client.create_collection("busy")
    acknowledged: dict[int, str] = {}
    stop = threading.Event()

    def write(writer: int) -> None:
        number = 0
        while not stop.is_set():
            ids = [f"{writer}-{number}-{member}" for member in range(3)]
            items = [Item(id, vector=vector) for id, vector in zip(ids, vectors, strict=True)]
            acknowledged[client.upsert("busy", items).sequence] = f"{writer}-{number}"
            number += 1

    vectors = np.eye(3, client.get_collection("busy").dimension)
    writers = [threading.Thread(target=write, args=(number,)) for number in range(2)]
    for writer in writers:
        writer.start()
    snapshots = [client.create_snapshot("busy") for _ in range(10)]
    stop.set()
    for writer in writers:
        writer.join()

    assert len({snapshot.sequence for snapshot in snapshots}) > 2
    for snapshot in snapshots[::3]:
        client.restore_snapshot(snapshot.name, "moment")
        expected = {acknowledged[sequence] for sequence in range(1, snapshot.sequence + 1)}
        items = list(client.list_items("moment"))
        assert len(items) == snapshot.item_count == 3 * snapshot.sequence
        assert {item.id.rpartition("-")[0] for item in items} == expected
        client.delete_collection("moment")


def test_kill_during_a_restore_leaves_no_collection(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that is killed while it restores serves what it had before, and restores the same file afterwards."""
    with LocalServer(MODEL_REPOSITORY, tmp_path) as server, Client(server.address) as client:
        client.create_collection("shop")
        client.upsert("shop", [Item(f"{number}", text=f"dress {number}") for number in range(20)])
        snapshot = client.create_snapshot("shop")
    monkeypatch.setenv("LOOKWIRE_FAILPOINT", "restore.before_publish")
    server = LocalServer(MODEL_REPOSITORY, tmp_path)
    server.start()
    with Client(server.address) as client, pytest.raises(errors.LookwireError):
        client.restore_snapshot(snapshot.name, "again", timeout=3)
    status = server.process.wait(10)
    monkeypatch.delenv("LOOKWIRE_FAILPOINT")

    with LocalServer(MODEL_REPOSITORY, tmp_path) as server, Client(server.address) as client:
        assert [each.name for each in client.list_collections()] == ["shop"]
        assert client.list_snapshots() == [snapshot]
        assert client.restore_snapshot(snapshot.name, "again").item_count == 20
        assert client.search("again", text="dress 7").hits[0].id == "7"
    assert status == -signal.SIGKILL
