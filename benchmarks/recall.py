"""How many of the true nearest 10 items searches find, by filters of every width, random and correlated with the content.

    make bench NAME=recall

The vectors are shaped like those of CLIP, 512 dimensions; LOOKWIRE_BENCH_ITEMS=1000000 for another number than 100,000. Near
queries are items of the collection, far queries are like texts; the truth is the server's own exact search.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.load.embeddings import Embeddings
from benchmarks.load.load import Load
from benchmarks.report import Figure, Report
from benchmarks.search import wait_for_index, write_items
from lookwire import Client, Filter, IndexSettings, Query, field
from lookwire.local import LocalServer

REPOSITORY = Path("build/models/vit-b-32")
ENCODER = "fp32"
NAME = "recall"
DIMENSION = 512
ITEMS = int(os.environ.get("LOOKWIRE_BENCH_ITEMS", "100000"))
FIELDS = {"chance": "int64", "kind": "int64"}
SHARES = (0.5, 0.1, 0.01, 0.001)
QUERIES = 100
SEEN = 256
TOP_K = 10
# Rounding in float32 may order equally near items either way.
SAME_SCORE = 1e-5


def run(report: Report) -> None:
    """Adds the figures of one run to the report."""
    world = Embeddings(DIMENSION)
    chance = np.random.default_rng(1)
    server = LocalServer(REPOSITORY, model_control_mode="explicit", load_model=ENCODER)
    with Load() as load, server, Client(server.address, timeout=120) as client:
        client.create_collection(NAME, FIELDS)
        far = world.far_queries(SEEN + QUERIES)
        kinds = []
        for number, part in enumerate(world.chunks(ITEMS)):
            kinds.append(part.kinds)
            payloads = [
                {"chance": draw, "kind": kind}
                for draw, kind in zip(
                    chance.integers(0, 1_000, len(part.kinds)).tolist(), part.kinds.tolist(), strict=True
                )
            ]
            write_items(load, server.address, NAME, part.vectors, payloads, prefix=f"part-{number}")
        for query in far[:SEEN]:
            client.search(NAME, vector=query, ids_only=True)
        wait_for_index(client, NAME)
        # So that the index is tuned with queries that were seen, as it is after a day of use.
        client.update_collection(NAME, index=IndexSettings(target_recall=0.981))
        wait_for_index(client, NAME)
        parts = chance.integers(0, ITEMS // 10_000, QUERIES), chance.integers(0, 10_000, QUERIES)
        near = [Query.item(f"part-{part}-{number}") for part, number in zip(*parts, strict=True)]
        sides = (("near", near, 0.98), ("far", [Query.vector(vector) for vector in far[SEEN:]], 0.95))
        for name, condition in filters(np.concatenate(kinds)):
            for side, queries, least in sides:
                recall, plan = measured(client, queries, condition)
                report.add(Figure(f"recall@10, {side}, {name}", recall, "share", plan, at_least=least))
        figures = client.collection_statistics(NAME)
        how = f"{ITEMS} items, {QUERIES} queries, index {figures.kind}, generation {figures.generation}"
        report.add(Figure("near recall that the server measured", figures.near_recall or 0.0, "share", how))
        report.add(Figure("far recall that the server measured", figures.far_recall or 0.0, "share", how))


def filters(kinds: NDArray[np.int64]) -> Iterator[tuple[str, Filter | None]]:
    """Filters that match about each share of the items: by chance, and by kinds of content, the rarest first."""
    yield "all items", None
    names, counts = np.unique(kinds, return_counts=True)
    names = names[np.argsort(counts)]
    reached = np.cumsum(np.sort(counts)) / len(kinds)
    for share in SHARES:
        yield f"{share:.1%} random", field("chance") < share * 1_000
        chosen = names[: int(np.searchsorted(reached, share)) + 1]
        yield f"{share:.1%} correlated", field("kind").is_in(chosen.tolist())


def measured(client: Client, queries: list[Query], condition: Filter | None) -> tuple[float, str]:
    """Returns the mean recall at 10, and how the searches were carried out."""
    recalls = []
    for query in queries:
        true = client.search(NAME, query=query, filter=condition, top_k=TOP_K, ids_only=True, exact=True)
        found = client.search(NAME, query=query, filter=condition, top_k=TOP_K, ids_only=True, explain=True)
        if true.hits:
            worst = true.hits[-1].score - SAME_SCORE
            recalls.append(sum(hit.score >= worst for hit in found.hits) / len(true.hits))
    return float(np.mean(recalls)), f"{found.plan.method}; {found.plan.match_count} match; {found.plan.reason}"
