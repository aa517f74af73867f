"""What was acknowledged survives the death of the process, whole."""

import json
import random
import subprocess
import sys
from pathlib import Path

import numpy as np

from .conftest import Open

# Groups of three items are written over and over by several tasks; every line that it prints is an acknowledged write.
CHILD = """
import asyncio, sys
from pathlib import Path
import numpy as np
from lookwire_server.metrics import Metrics
from lookwire_server.search.collections import Collections
from lookwire_server.search.items import NewItem
from lookwire_server.search.store.collections import NewCollection

async def write(collection, group, round):
    while True:
        round += 1
        items = [NewItem(f"{group}-{member}", b'{"round": %d}' % round) for member in range(3)]
        written = await collection.upsert(items, np.array([[1, round, group]] * 3, float))
        print(group, round, written.sequence, flush=True)

async def main(directory, first):
    collections = Collections.open(Path(directory), Metrics(), search_threads=1, on_failure=print)
    if not collections.list():
        await collections.create(NewCollection("c", "clip", "f", 3, ()))
    await asyncio.gather(*(write(collections.get("c"), group, int(first)) for group in range(4)))

asyncio.run(main(*sys.argv[1:]))
"""


async def test_kill_loses_nothing_and_halves_nothing(open_collections: Open, tmp_path: Path) -> None:
    """After SIGKILL at any moment every acknowledged write is there, and every write is there whole or not at all."""
    acknowledged: dict[int, tuple[int, int]] = {}
    first = 0
    for _ in range(4):
        acknowledged |= killed(tmp_path, first)

        collections = open_collections()
        collection = collections.get("c")
        ids = [f"{group}-{member}" for group in range(4) for member in range(3)]
        found = await collection.get_items(ids, include_vectors=True)
        assert found.missing == []
        assert found.vectors is not None
        for group in range(4):
            members = slice(group * 3, group * 3 + 3)
            versions = {(json.loads(item.payload)["round"], item.sequence) for item in found.items[members]}
            assert len(versions) == 1
            round, sequence = versions.pop()
            assert round >= acknowledged[group][0]
            assert sequence >= acknowledged[group][1]
            expected = np.array([1, round, group]) / np.linalg.norm([1, round, group])
            np.testing.assert_allclose(found.vectors[members], [expected] * 3, atol=1e-6)
            first = max(first, round)
        assert collection.item_count == 12
        assert collection.sequence == max(item.sequence for item in found.items)
        collections.close()


def killed(directory: Path, first: int) -> dict[int, tuple[int, int]]:
    """Lets the child write for a while, kills it, and returns the last acknowledged round and sequence of each group."""
    command = [sys.executable, "-c", CHILD, str(directory), str(first)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        lines = [child.stdout.readline() for _ in range(random.randint(20, 120))]
        child.kill()
        # What it printed before it died was acknowledged too; only the very last line may be cut.
        lines += [line for line in child.stdout if line.endswith("\n")]
    records = [[int(word) for word in line.split()] for line in lines]
    return {group: (round, sequence) for group, round, sequence in records}
