"""Everything that Lookwire counts and times, in one object.

`app` builds it and passes it to the RPCs' guard, the batcher, the encoders, the cache of labels and the collections, which alone
record; a test passes a fresh one.
"""

from collections.abc import Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, ProcessCollector

from lookwire_server.histogram import HistogramFamily


def geometric(first: float, last: float, ratio: float = 1.5) -> tuple[float, ...]:
    """Bucket bounds from `first` to at least `last`, each `ratio` times the one before."""
    bounds = [first]
    while bounds[-1] < last:
        bounds.append(float(f"{bounds[-1] * ratio:.3g}"))
    return tuple(bounds)


# From 15 microseconds to more than a minute: a cached query and a stalled disk are both told apart.
SECONDS = geometric(15e-6, 60.0)
ROWS = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 512, 1024)
RATIO = tuple(tenth / 10 for tenth in range(11))
STAGES = ("decode", "tokenise", "queue", "infer", "search", "fetch", "write")


class Metrics:
    """The collectors, on a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)

        def histogram(name: str, help: str, bounds: Sequence[float], labels: Sequence[str] = ()) -> HistogramFamily:
            return HistogramFamily(name, help, bounds, labels, self.registry)

        def counter(name: str, help: str, labels: Sequence[str] = ()) -> Counter:
            return Counter(name, help, labels, registry=self.registry)

        def gauge(name: str, help: str, labels: Sequence[str] = ()) -> Gauge:
            return Gauge(name, help, labels, registry=self.registry)

        self.rpc_seconds = histogram(
            "lookwire_rpc_duration_seconds",
            "Time of an RPC in the server, by method and gRPC status code.",
            SECONDS,
            ("method", "code"),
        )
        self.rpcs_in_flight = gauge("lookwire_rpcs_in_flight", "RPCs that are being answered now.")
        self.stage_seconds = histogram(
            "lookwire_stage_duration_seconds",
            f"Time of one stage of a request: {', '.join(STAGES)}.",
            SECONDS,
            ("stage",),
        )
        self.batch_rows = histogram("lookwire_batch_rows", "Rows of a model execution.", ROWS, ("model", "version"))
        self.batch_padding = histogram(
            "lookwire_batch_padding_ratio",
            "Share of a padded batch that is padding.",
            RATIO,
            ("model", "version"),
        )
        self.queue_rows = gauge("lookwire_queue_rows", "Rows that wait in a batcher now.", ("model", "version", "lane"))
        self.rejected = counter(
            "lookwire_rejected_requests",
            "Requests to a model that were not executed: queue_full, queue_timeout, deadline, cancelled, shutdown.",
            ("model", "version", "reason"),
        )
        self.embedding_cache_hits = counter(
            "lookwire_embedding_cache_hits", "Texts whose vectors were kept or being made."
        )
        self.embedding_cache_misses = counter("lookwire_embedding_cache_misses", "Texts whose vectors had to be made.")
        self.embedding_cache_bytes = gauge(
            "lookwire_embedding_cache_bytes", "Bytes of the vectors of texts that are kept, and of the texts."
        )
        self.collection_items = gauge("lookwire_collection_items", "Items of a collection.", ("collection",))
        self.collection_generation = gauge(
            "lookwire_collection_generation",
            "Generation of a collection's index; 0 before the first was built.",
            ("collection",),
        )
        self.collection_recall = gauge(
            "lookwire_collection_recall",
            "Recall at 10 last measured on the index in use, by items as queries (near) and by queries of another kind (far); "
            "NaN if not measured.",
            ("collection", "direction"),
        )
        self.collection_bytes = gauge(
            "lookwire_collection_bytes",
            "Bytes of a collection: vectors and rows in memory, disk for the files of the index.",
            ("collection", "part"),
        )
        self.commit_writes = histogram(
            "lookwire_commit_writes", "Write requests that one commit put on disk.", ROWS
        ).labels()
        self.build = gauge("lookwire_build_info", "Always 1; the versions are in the labels.", ("version", "python"))
