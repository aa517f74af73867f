"""Probes for collections that have seen few queries."""

from lookwire_server.encoding.encoders import Encoders
from lookwire_server.encoding.probes import PROBES
from lookwire_server.errors import FailedPrecondition, NotFound
from lookwire_server.models.model import Lane
from lookwire_server.search.collection import Collection


async def give_probes(collection: Collection, encoders: Encoders, deadline: float | None = None) -> None:
    """Embeds the probes for a collection that wants some, in the bulk lane.

    A collection whose encoder is not served, has changed or takes no texts gets none, and is measured with the queries that
    come.
    """
    if not collection.wants_probes:
        return
    try:
        encoder = encoders.of_fingerprint(collection.row.encoder, collection.row.fingerprint)
    except (NotFound, FailedPrecondition):
        return
    if encoder.manifest.text is None:
        return
    embedded = await encoder.embed(PROBES, lane=Lane.BULK, deadline=deadline)
    for error in embedded.errors.values():
        raise error
    collection.set_probes(embedded.vectors)
