"""One life of a server: writers and readers through gRPC until it dies."""

import asyncio
import json
import random

import grpc
import numpy as np

from lookwire.v1 import collection_service_pb2 as collection_pb
from lookwire.v1 import (
    collection_service_pb2_grpc,
    filter_pb2,
    item_service_pb2_grpc,
    search_service_pb2_grpc,
    vector_pb2,
)
from lookwire.v1 import item_service_pb2 as item_pb
from lookwire.v1 import search_service_pb2 as search_pb

from .oracle import Group, State, vector_of

NAME = "crash"
FIELDS = [
    collection_pb.Field(name="group", type=collection_pb.FIELD_TYPE_STRING),
    collection_pb.Field(name="member", type=collection_pb.FIELD_TYPE_INT64),
    collection_pb.Field(name="title", type=collection_pb.FIELD_TYPE_TEXT),
]
KINDS = [collection_pb.INDEX_KIND_EXACT, collection_pb.INDEX_KIND_IVF, collection_pb.INDEX_KIND_HNSW]
TIMEOUT = 20.0


class Life:
    """Calls one server; `groups` are what its collection must hold."""

    def __init__(self, address: str, groups: list[Group]) -> None:
        self._channel = grpc.aio.insecure_channel(address)
        self._items = item_service_pb2_grpc.ItemServiceStub(self._channel)
        self._searches = search_service_pb2_grpc.SearchServiceStub(self._channel)
        self._collections = collection_service_pb2_grpc.CollectionServiceStub(self._channel)
        self._groups = groups
        self.acknowledged = self.answered = 0

    async def close(self) -> None:
        await self._channel.close()

    async def create(self) -> None:
        """Makes the collection."""
        request = collection_pb.CreateCollectionRequest(name=NAME, fields=FIELDS)
        await self._collections.CreateCollection(request, timeout=TIMEOUT)

    async def live(self, seconds: float) -> None:
        """Writes and reads until the server dies, or the time is over."""
        tasks = [asyncio.create_task(self._write(group)) for group in self._groups]
        tasks += [asyncio.create_task(self._read()) for _ in range(2)]
        tasks.append(asyncio.create_task(self._change_index()))
        _, running = await asyncio.wait(tasks, timeout=seconds, return_when=asyncio.FIRST_EXCEPTION)
        for task in running:
            task.cancel()
        for outcome in await asyncio.gather(*tasks, return_exceptions=True):
            if isinstance(outcome, grpc.aio.AioRpcError) and outcome.code() is grpc.StatusCode.UNAVAILABLE:
                continue
            if isinstance(outcome, Exception):
                raise outcome

    async def check(self) -> None:
        """Compares all that the server has with what was acknowledged."""
        found: dict[str, dict[str, State]] = {group.name: {} for group in self._groups}
        token = ""
        while True:
            request = item_pb.ListItemsRequest(collection=NAME, page_size=1_000, page_token=token)
            page = await self._items.ListItems(request, timeout=TIMEOUT)
            for item in page.items:
                payload = json.loads(item.payload)
                found[payload["group"]][item.id] = State(payload["version"], payload["mark"])
            token = page.next_page_token
            if not token:
                break
        for group in self._groups:
            group.settle(found[group.name])
            count = await self._items.CountItems(
                item_pb.CountItemsRequest(collection=NAME, filter=in_group(group)), timeout=TIMEOUT
            )
            assert count.count == len(group.items)
            for id in random.sample(sorted(group.items), min(12, len(group.items))):
                await self._check_found(group, id)
            for id in random.sample(group.ids, 12):
                if id not in group.items:
                    gone = await self._items.GetItems(
                        item_pb.GetItemsRequest(collection=NAME, ids=[id]), timeout=TIMEOUT
                    )
                    assert list(gone.missing_ids) == [id]

    async def _write(self, group: Group) -> None:
        while True:
            changed = await random.choices(
                [self._upsert, self._delete, self._mark, self._delete_matching], [6, 1, 2, 0.3]
            )[0](group)
            group.acknowledged()
            self.acknowledged += 1
            if changed and random.random() < 0.2 and changed[0] in group.items:
                await self._check_found(group, changed[0])

    async def _upsert(self, group: Group) -> list[str]:
        ids = group.some_ids(8)
        group.version += 1
        group.pending = {id: State(group.version, 0) for id in ids}
        items = [
            item_pb.Item(
                id=id,
                payload=payload(group, id, group.version),
                vector=vector_pb2.Vector(f32=vector_of(id, group.version).tobytes()),
            )
            for id in ids
        ]
        await self._items.UpsertItems(item_pb.UpsertItemsRequest(collection=NAME, items=items), timeout=TIMEOUT)
        return ids

    async def _delete(self, group: Group) -> list[str]:
        ids = group.some_ids(4)
        group.pending = dict.fromkeys(ids)
        reply = await self._items.DeleteItems(item_pb.DeleteItemsRequest(collection=NAME, ids=ids), timeout=TIMEOUT)
        assert reply.deleted_count == len(group.items.keys() & set(ids))
        return []

    async def _mark(self, group: Group) -> list[str]:
        if not group.items:
            return []
        ids = random.sample(sorted(group.items), min(3, len(group.items)))
        group.version += 1
        group.pending = {id: State(group.items[id].version, group.version) for id in ids}
        patch = json.dumps({"mark": group.version}).encode()
        updates = [item_pb.PayloadUpdate(id=id, merge_patch=patch) for id in ids]
        request = item_pb.UpdatePayloadsRequest(collection=NAME, updates=updates)
        await self._items.UpdatePayloads(request, timeout=TIMEOUT)
        return ids

    async def _delete_matching(self, group: Group) -> list[str]:
        below = random.randint(1, 20)
        group.pending = {id: None for id in group.items if int(id[-2:]) < below}
        selected = filter_pb2.Filter(
            all_of=filter_pb2.FilterList(
                filters=[
                    in_group(group),
                    filter_pb2.Filter(range=filter_pb2.RangeCondition(field="member", lt=below)),
                ]
            )
        )
        request = item_pb.DeleteItemsRequest(collection=NAME, filter=selected)
        reply = await self._items.DeleteItems(request, timeout=TIMEOUT)
        assert reply.deleted_count == len(group.pending)
        return []

    async def _read(self) -> None:
        while True:
            group = random.choice(self._groups)
            query = vector_of(random.choice(group.ids), random.randint(1, group.version + 1))
            request = search_pb.SearchRequest(
                collection=NAME,
                query=search_pb.Query(vector=vector_pb2.Vector(f32=query.tobytes())),
                top_k=random.choice([1, 10]),
                filter=in_group(group) if random.random() < 0.5 else None,
                exact=random.random() < 0.3,
            )
            reply = await self._searches.Search(request, timeout=TIMEOUT)
            check_hits(query, reply, group.name if request.HasField("filter") else None)
            self.answered += 1
            await asyncio.sleep(0.002)

    async def _change_index(self) -> None:
        while True:
            settings = collection_pb.IndexSettings(kind=random.choice(KINDS))
            request = collection_pb.UpdateCollectionRequest(name=NAME, index=settings)
            await self._collections.UpdateCollection(request, timeout=TIMEOUT)
            await asyncio.sleep(random.uniform(0.2, 1.5))

    async def _check_found(self, group: Group, id: str) -> None:
        """Finds an item that its writer is not changing by its own vector."""
        state = group.items[id]
        query = vector_of(id, state.version)
        request = search_pb.SearchRequest(
            collection=NAME,
            query=search_pb.Query(vector=vector_pb2.Vector(f32=query.tobytes())),
            top_k=1,
            exact=True,
        )
        reply = await self._searches.Search(request, timeout=TIMEOUT)
        assert list(reply.ids) == [id], f"{id} {state} is not found: {list(reply.ids)} {list(reply.scores)}"
        assert json.loads(reply.payloads[0])["mark"] == state.mark
        check_hits(query, reply, group.name)


def check_hits(query: np.ndarray, reply: search_pb.SearchResponse, group: str | None) -> None:
    """Every hit is whole: score and payload belong to one version of it, and it matches the filter."""
    assert len(set(reply.ids)) == len(reply.ids)
    for id, score, content in zip(reply.ids, reply.scores, reply.payloads, strict=True):
        values = json.loads(content)
        assert id.startswith(values["group"])
        assert group is None or values["group"] == group
        assert abs(score - float(vector_of(id, values["version"]) @ query)) < 1e-5, (id, score, values)
    assert list(reply.scores) == sorted(reply.scores, reverse=True)


def in_group(group: Group) -> filter_pb2.Filter:
    value = filter_pb2.FieldValue(string_value=group.name)
    return filter_pb2.Filter(equals=filter_pb2.EqualsCondition(field="group", value=value))


def payload(group: Group, id: str, version: int) -> bytes:
    values = {"group": group.name, "member": int(id[-2:]), "title": f"item {id}", "version": version, "mark": 0}
    return json.dumps(values).encode()
