"""How much of the true nearest items searches find, measured on the index that is in use."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from lookwire_server.search.index.sealed import Effort
from lookwire_server.search.index.tuning import measure
from lookwire_server.search.index.view import View, effort_of
from lookwire_server.search.store.collections import IndexKind
from lookwire_server.search.store.store import Store
from lookwire_server.search.vectors import Matrix

# The newest of so many queries of each kind; the recall of 0.98 at 10 is then known to about 0.006, one standard error.
MEASURED_QUERIES = 64
# They are measured so many at a time, so that a server which stops need not wait for all.
BATCH_QUERIES = 16
# A recall so far below the target, or below what the build measured, is no chance of the sample.
TOLERANCE = 0.01


@dataclass(frozen=True, slots=True)
class Recall:
    """The mean recall at 10 of a generation, in [0, 1], with items and with queries of another kind; None if not measured."""

    generation: int
    near: float | None
    far: float | None

    @classmethod
    def built(cls, view: View) -> "Recall":
        """What the build of the index measured; 1 while there is none, because every item is compared."""
        if view.generation is None:
            return cls(0, 1.0, 1.0)
        manifest = view.generation.manifest
        return cls(manifest.generation, manifest.near_recall, manifest.far_recall)


def measured(store: Store, view: View, far: Matrix, stopped: Callable[[], bool]) -> Recall | None:
    """Measures among the living items of the index, with some of them and with queries `far` [n, d] of another kind.

    For a thread that reads. Returns None if every item is compared anyway, if all items are gone, and if it was stopped.
    """
    generation = view.generation
    if generation is None or generation.manifest.kind is IndexKind.EXACT:
        return None
    alive = view.alive[: view.rows.sealed_count]
    living = view.rows.keys(view.rows.sealed_count)[alive]
    sample = living[:: max(len(living) // MEASURED_QUERIES, 1)][:MEASURED_QUERIES]
    items = store.items.rows(sample.tolist())
    if not items:
        return None
    near = np.frombuffer(b"".join(item.vector for item in items), "<f4").reshape(len(items), far.shape[1])
    slots = view.rows.slots_of_keys(np.array([item.key for item in items]), view.count)
    far = far[-MEASURED_QUERIES:]
    index, manifest = generation.index, generation.manifest
    # As a search among all items has it now.
    effort = Effort(effort_of(manifest, len(living), far=False), effort_of(manifest, len(living), far=True))
    near_recalls, far_recalls = [], []
    for start in range(0, MEASURED_QUERIES, BATCH_QUERIES):
        if stopped():
            return None
        part = slice(start, start + BATCH_QUERIES)
        tuned = measure(index, effort, near[part], far[part], slots[part], alive)
        near_recalls += [tuned.near_recall] * len(near[part])
        far_recalls += [tuned.far_recall] * len(far[part])
    return Recall(manifest.generation, _mean(near_recalls), _mean(far_recalls))


def fell(recall: Recall, view: View) -> bool:
    """Whether searches find too little, and did not when the index was built."""
    if view.generation is None or view.generation.manifest.generation != recall.generation:
        return False
    manifest = view.generation.manifest
    target = manifest.target_recall
    return any(
        now is not None and now < min(target, target if built is None else built) - TOLERANCE
        for now, built in ((recall.near, manifest.near_recall), (recall.far, manifest.far_recall))
    )


def _mean(recalls: list[float | None]) -> float | None:
    """The mean over queries, each with the recall of its batch."""
    known = [recall for recall in recalls if recall is not None]
    return sum(known) / len(known) if known else None
