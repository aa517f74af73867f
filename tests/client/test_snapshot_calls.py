from datetime import UTC, datetime

from google.protobuf.timestamp_pb2 import Timestamp

from lookwire import Client, Snapshot
from lookwire.v1 import collection_service_pb2
from lookwire.v1 import snapshot_service_pb2 as pb
from tests.client.fake_server import FakeServer

NAME = "shop-20231114T221320.500000Z"
MESSAGE = pb.Snapshot(
    name=NAME,
    collection="shop",
    encoder="small",
    fingerprint="ab" * 16,
    item_count=5,
    sequence=7,
    create_time=Timestamp(seconds=1_700_000_000, nanos=500_000_000),
    bytes=32_816,
)
SNAPSHOT = Snapshot(
    name=NAME,
    collection="shop",
    encoder="small",
    fingerprint="ab" * 16,
    item_count=5,
    sequence=7,
    create_time=datetime(2023, 11, 14, 22, 13, 20, 500_000, tzinfo=UTC),
    bytes=32_816,
)


def test_create_snapshot(client: Client, server: FakeServer) -> None:
    """A collection is copied by its name, and the copy is described."""
    server.reply(pb.CreateSnapshotResponse(snapshot=MESSAGE))

    snapshot = client.create_snapshot("shop")

    assert server.requests == [pb.CreateSnapshotRequest(collection="shop")]
    assert snapshot == SNAPSHOT


def test_list_snapshots(client: Client, server: FakeServer) -> None:
    """Snapshots of all collections are asked for, or those of one."""
    server.reply(pb.ListSnapshotsResponse(snapshots=[MESSAGE]), pb.ListSnapshotsResponse())

    listed = [client.list_snapshots(), client.list_snapshots("hats")]

    assert server.requests == [pb.ListSnapshotsRequest(), pb.ListSnapshotsRequest(collection="hats")]
    assert listed == [[SNAPSHOT], []]


def test_restore_snapshot(client: Client, server: FakeServer) -> None:
    """A snapshot is restored under a new name, and the new collection comes back."""
    collection = collection_service_pb2.Collection(name="again", encoder="small", item_count=5, sequence=7)
    server.reply(pb.RestoreSnapshotResponse(collection=collection))

    again = client.restore_snapshot(NAME, "again")

    assert server.requests == [pb.RestoreSnapshotRequest(snapshot=NAME, collection="again")]
    assert (again.name, again.encoder, again.item_count, again.sequence) == ("again", "small", 5, 7)


def test_delete_snapshot(client: Client, server: FakeServer) -> None:
    """A snapshot is deleted by its name."""
    server.reply(pb.DeleteSnapshotResponse())

    client.delete_snapshot(NAME)

    assert server.requests == [pb.DeleteSnapshotRequest(snapshot=NAME)]
