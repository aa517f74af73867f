"""Collections through the front door."""

import grpc
import pytest

from lookwire import Client, errors
from lookwire.v1 import collection_service_pb2, collection_service_pb2_grpc


def test_collections_are_listed_page_by_page(client: Client) -> None:
    """Pages of two give every collection once, in the order of names; a token of another list is refused."""
    names = [f"paged-{letter}" for letter in "caebd"]
    for name in names:
        client.create_collection(name)
    stub = collection_service_pb2_grpc.CollectionServiceStub(client._channel)
    listed: list[str] = []
    token = ""

    while True:
        page = stub.ListCollections(collection_service_pb2.ListCollectionsRequest(page_size=2, page_token=token))
        listed += [collection.name for collection in page.collections]
        token = page.next_page_token
        assert len(page.collections) <= 2
        if not token:
            break

    assert listed == sorted(listed)
    assert [name for name in listed if name.startswith("paged-")] == sorted(names)
    for name in names:
        client.delete_collection(name)
    assert not {collection.name for collection in client.list_collections()} & set(names)


@pytest.mark.parametrize("wrong", [{"page_size": -1}, {"page_token": "nonsense"}])
def test_wrong_page_of_collections_is_explained(client: Client, wrong: dict[str, object]) -> None:
    """A negative page size and a token of no page are INVALID_ARGUMENT, and name the field."""
    stub = collection_service_pb2_grpc.CollectionServiceStub(client._channel)

    with pytest.raises(grpc.RpcError) as failure:
        stub.ListCollections(collection_service_pb2.ListCollectionsRequest(**wrong))  # type: ignore[arg-type]

    error = errors.from_rpc(failure.value)
    assert isinstance(error, errors.InvalidArgument)
    assert [violation.field for violation in error.violations] == list(wrong)
