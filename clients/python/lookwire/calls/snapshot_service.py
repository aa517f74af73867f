"""The calls of SnapshotService."""

from datetime import UTC

from lookwire.calls.call import Call
from lookwire.calls.collection_service import read_collection
from lookwire.types import Collection, Snapshot
from lookwire.v1 import snapshot_service_pb2 as pb


def create_snapshot(collection: str) -> Call[Snapshot]:
    """Asks for a copy of a collection."""

    def parse(response: pb.CreateSnapshotResponse) -> Snapshot:
        return _snapshot(response.snapshot)

    return Call("CreateSnapshot", pb.CreateSnapshotRequest(collection=collection), parse)


def list_snapshots(collection: str) -> Call[list[Snapshot]]:
    """Asks for the snapshots of a collection, or of all."""

    def parse(response: pb.ListSnapshotsResponse) -> list[Snapshot]:
        return [_snapshot(message) for message in response.snapshots]

    return Call("ListSnapshots", pb.ListSnapshotsRequest(collection=collection), parse)


def restore_snapshot(snapshot: str, collection: str) -> Call[Collection]:
    """Asks for a new collection made of a snapshot."""

    def parse(response: pb.RestoreSnapshotResponse) -> Collection:
        return read_collection(response.collection)

    return Call("RestoreSnapshot", pb.RestoreSnapshotRequest(snapshot=snapshot, collection=collection), parse)


def delete_snapshot(snapshot: str) -> Call[None]:
    """Asks for a snapshot's removal."""

    def parse(response: pb.DeleteSnapshotResponse) -> None:
        return None

    return Call("DeleteSnapshot", pb.DeleteSnapshotRequest(snapshot=snapshot), parse)


def _snapshot(message: pb.Snapshot) -> Snapshot:
    return Snapshot(
        name=message.name,
        collection=message.collection,
        encoder=message.encoder,
        fingerprint=message.fingerprint,
        item_count=message.item_count,
        sequence=message.sequence,
        create_time=message.create_time.ToDatetime(UTC),
        bytes=message.bytes,
    )
