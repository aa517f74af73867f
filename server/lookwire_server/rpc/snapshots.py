"""SnapshotService."""

from typing import Any

import grpc

from lookwire.v1 import snapshot_service_pb2 as pb
from lookwire.v1 import snapshot_service_pb2_grpc
from lookwire_server.rpc.collections import describe
from lookwire_server.search.snapshots import Snapshot, Snapshots

Context = grpc.aio.ServicerContext[Any, Any]


class SnapshotServicer(snapshot_service_pb2_grpc.SnapshotServiceServicer):
    """Copies collections to files and back."""

    def __init__(self, snapshots: Snapshots) -> None:
        self._snapshots = snapshots

    async def CreateSnapshot(self, request: pb.CreateSnapshotRequest, context: Context) -> pb.CreateSnapshotResponse:
        return pb.CreateSnapshotResponse(snapshot=_message(await self._snapshots.create(request.collection)))

    async def ListSnapshots(self, request: pb.ListSnapshotsRequest, context: Context) -> pb.ListSnapshotsResponse:
        return pb.ListSnapshotsResponse(snapshots=map(_message, await self._snapshots.list(request.collection)))

    async def RestoreSnapshot(self, request: pb.RestoreSnapshotRequest, context: Context) -> pb.RestoreSnapshotResponse:
        restored = await self._snapshots.restore(request.snapshot, request.collection)
        return pb.RestoreSnapshotResponse(collection=describe(restored))

    async def DeleteSnapshot(self, request: pb.DeleteSnapshotRequest, context: Context) -> pb.DeleteSnapshotResponse:
        await self._snapshots.delete(request.snapshot)
        return pb.DeleteSnapshotResponse()


def _message(snapshot: Snapshot) -> pb.Snapshot:
    manifest = snapshot.manifest
    message = pb.Snapshot(
        name=snapshot.name,
        collection=manifest.collection.name,
        encoder=manifest.collection.encoder,
        fingerprint=manifest.collection.fingerprint,
        item_count=manifest.item_count,
        sequence=manifest.sequence,
        bytes=manifest.size,
    )
    message.create_time.FromDatetime(manifest.created)
    return message
