"""Probes for collections that have seen few queries."""

import asyncio

import structlog

from lookwire_server.encoding.encoders import Encoders
from lookwire_server.encoding.probes import PROBES
from lookwire_server.errors import FailedPrecondition
from lookwire_server.lanes import Lane
from lookwire_server.search.engine import Probe, Probed

log = structlog.get_logger()

# So long an index waits for probes; without them it is tuned by its items alone.
WAIT_SECONDS = 60.0


async def give_probes(collection: Probed, encoders: Encoders, deadline: float | None = None) -> None:
    """Embeds the probes for a collection that wants some, in the bulk lane.

    A collection whose encoder is not served, has changed or takes no texts gets none, and is measured with the queries that
    come.
    """
    if not collection.wants_probes:
        return
    try:
        encoder = encoders.of_fingerprint(collection.row.encoder, collection.row.fingerprint)
    except FailedPrecondition:
        return
    if encoder.manifest.text is None:
        return
    embedded = await encoder.embed(PROBES, lane=Lane.BULK, deadline=deadline)
    for error in embedded.errors.values():
        raise error
    collection.set_probes(embedded.vectors)


def probe_by(encoders: Encoders) -> Probe:
    """Returns what gives probes to a collection from another thread; to be called in the event loop."""
    loop = asyncio.get_running_loop()

    def probe(collection: Probed) -> None:
        giving = asyncio.run_coroutine_threadsafe(give_probes(collection, encoders), loop)
        try:
            giving.result(WAIT_SECONDS)
        except Exception as error:  # noqa: BLE001 - it is logged
            # The index can do without; whatever it was must not end the thread that builds it.
            giving.cancel()
            log.warning("no probes for an index", collection=collection.row.name, error=repr(error))

    return probe
