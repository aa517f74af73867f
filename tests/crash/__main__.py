"""Kills a server over and over, at random times and at every failpoint, and compares what is left with what was acknowledged.

python -m tests.crash 200
"""

import asyncio
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import grpc

from lookwire.local import LocalServer
from lookwire_server.search.failpoints import NAMES, VARIABLE

from .life import TIMEOUT, Life
from .oracle import Group

REPOSITORY = Path(__file__).resolve().parents[2] / "model_repo"
GROUPS = 4
# As often by the clock as at a failpoint.
LONGEST_LIFE = 2.5
# These kill the process that builds, and the server goes on; or need a snapshot, which has tests of its own.
OWN_TESTS = ("snapshot.", "restore.")


def main(rounds: int) -> None:
    """Prints a line for each round, and a summary; ends with an AssertionError at the first wrong answer."""
    failpoints = [name for name in NAMES if not name.startswith(OWN_TESTS)]
    groups = [Group(f"g{number}") for number in range(GROUPS)]
    deaths: Counter[str] = Counter()
    acknowledged = answered = 0
    with tempfile.TemporaryDirectory(prefix="lookwire-crash-") as directory:
        for number in range(rounds):
            failpoint = failpoints[number // 2 % len(failpoints)] if number % 2 else ""
            life = asyncio.run(one_round(directory, groups, failpoint, first=number == 0))
            deaths[failpoint or "random time"] += 1
            acknowledged += life.acknowledged
            answered += life.answered
            items = sum(len(group.items) for group in groups)
            print(
                f"round {number}: {failpoint or 'random time'}, {life.acknowledged} writes, {items} items", flush=True
            )
    print(f"{rounds} deaths, {acknowledged} acknowledged writes, {answered} searches: nothing lost, risen or wrong")
    for failpoint, times in sorted(deaths.items()):
        print(f"  {times:4d} {failpoint}")


async def one_round(directory: str, groups: list[Group], failpoint: str, *, first: bool) -> Life:
    """Starts the server, compares, and works until it dies."""
    times = random.randint(1, 30 if failpoint.startswith("write.") else 2)
    server = LocalServer(REPOSITORY, directory, allow_http=False, show_log="CRASH_LOG" in os.environ)
    server._command[2] = "tests.crash.small_server"
    try:
        life = await begin(server, groups, f"{failpoint}:{times}", first=first)
    except (RuntimeError, grpc.aio.AioRpcError):
        # A build was wanted already, and it died while it started or was compared; of what else the round fails.
        if not failpoint or server.process.wait(TIMEOUT) != -signal.SIGKILL:
            raise
        life = await begin(server, groups, "", first=first)
    try:
        working = asyncio.create_task(life.live(LONGEST_LIFE if failpoint else random.uniform(0.1, LONGEST_LIFE)))
        died = asyncio.create_task(asyncio.to_thread(server.process.wait))
        await asyncio.wait([working, died], return_when=asyncio.FIRST_COMPLETED)
        server.kill()
        await working
        await died
    finally:
        server.kill()
        await life.close()
    return life


async def begin(server: LocalServer, groups: list[Group], failpoint: str, *, first: bool) -> Life:
    """Starts the server and compares what it has."""
    await asyncio.to_thread(start, server, failpoint)
    life = Life(server.address, groups)
    try:
        if first:
            await life.create()
        await life.check()
    except BaseException:
        await life.close()
        raise
    return life


def start(server: LocalServer, failpoint: str) -> None:
    """Starts the server with a failpoint, which servers that are started later do not have."""
    os.environ[VARIABLE] = failpoint
    try:
        server.start()
    finally:
        del os.environ[VARIABLE]


if __name__ == "__main__":
    started = time.monotonic()
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 200)
    print(f"{time.monotonic() - started:.0f} s")
