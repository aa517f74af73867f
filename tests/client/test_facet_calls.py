"""Facet calls: what is sent, and how the reply is read."""

import pytest

from lookwire import Client, Facet, Facets, field
from lookwire.v1 import item_service_pb2 as pb
from lookwire.v1.filter_pb2 import ExistsCondition, FieldValue, Filter
from tests.client.fake_server import FakeServer


def test_facets_by_field(client: Client, server: FakeServer) -> None:
    """Values are keys, in the order of the reply and of the type that they have."""
    server.reply(
        pb.FacetItemsResponse(
            facets=[
                pb.Facet(
                    field="colour",
                    values=[FieldValue(string_value="red"), FieldValue(string_value="")],
                    counts=[5_000_000_000, 1],
                    value_count=7,
                    missing_count=2,
                ),
                pb.Facet(field="sale", values=[FieldValue(bool_value=False)], counts=[3], value_count=1),
                pb.Facet(field="stock", missing_count=4),
            ],
            match_count=9,
        )
    )

    facets = client.facet_items("shop", ["colour", "sale", "stock"], filter=field("price").exists(), limit=2)

    assert facets == Facets(
        9,
        {
            "colour": Facet({"red": 5_000_000_000, "": 1}, 7, 2),
            "sale": Facet({False: 3}, 1, 0),
            "stock": Facet({}, 0, 4),
        },
    )
    assert list(facets.fields["colour"].counts) == ["red", ""]
    assert server.requests == [
        pb.FacetItemsRequest(
            collection="shop",
            fields=["colour", "sale", "stock"],
            filter=Filter(exists=ExistsCondition(field="price")),
            limit=2,
        )
    ]


def test_fields_are_a_list(client: Client) -> None:
    """One string in the place of the fields is an error, not a list of its letters."""
    with pytest.raises(TypeError, match="not one string"):
        client.facet_items("shop", "colour")


def test_limit_is_at_least_1(client: Client) -> None:
    """A limit of 0 is an error, not the server's default."""
    with pytest.raises(ValueError, match="limit is at least 1, not 0"):
        client.facet_items("shop", ["colour"], limit=0)
