"""What became of programs and tests of others, as a table."""

import os
import re
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from rich.console import Console
from rich.table import Table

# The last line of a traceback, or what the examples print before they give up.
FAULT = re.compile(r"^[\w.]*(Error|Exception): |FAILED :|^Failed")


class Verdict(StrEnum):
    PASS = "pass"
    FAIL = "FAIL"
    NOT_RUN = "not run"


@dataclass(frozen=True, slots=True)
class Outcome:
    """One program or test. `note` is the end of a failure's output, or why it was not run."""

    name: str
    verdict: Verdict
    seconds: float = 0.0
    note: str = ""


def run(
    name: str,
    command: Sequence[str | Path],
    *,
    folder: Path,
    timeout: float,
    word: str = "",
    environment: Mapping[str, str] | None = None,
    log: Path | None = None,
) -> Outcome:
    """Runs a Python program in `folder`; it passes with status 0 and, where `word` is given, that word in its output.

    What it wrote goes to `log`; `environment` is added to this process's.
    """
    started = time.monotonic()
    try:
        done = subprocess.run(
            [sys.executable, *command],
            cwd=folder,
            env=os.environ | (environment or {}),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=timeout,
        )
        output, fault = done.stdout.decode(errors="replace"), f"status {done.returncode}" if done.returncode else ""
    except subprocess.TimeoutExpired as expired:
        output, fault = (expired.output or b"").decode(errors="replace"), f"not done in {timeout:g} s"
    seconds = time.monotonic() - started
    if log:
        log.write_text(output)
    if not fault and word not in output:
        fault = f"status 0, but no {word!r} in its output"
    if not fault:
        return Outcome(name, Verdict.PASS, seconds)
    lines = [line for line in output.splitlines() if line.strip(" -")]
    errors = [line for line in lines if FAULT.search(line)]
    return Outcome(name, Verdict.FAIL, seconds, f"{fault}: {(errors or lines or ['no output'])[-1].strip()}")


def report(title: str, outcomes: Sequence[Outcome]) -> int:
    """Prints the table; returns the exit status: 1 if anything failed or nothing passed."""
    table = Table("name", "verdict", "seconds", "note", title=title)
    for outcome in outcomes:
        seconds = f"{outcome.seconds:.1f}" if outcome.verdict is not Verdict.NOT_RUN else ""
        table.add_row(outcome.name, outcome.verdict, seconds, outcome.note)
    # In a file or a pipe there is no width to fit into: each outcome stays on one line.
    console = Console(width=None if sys.stdout.isatty() else 260)
    console.print(table)
    counts = {verdict: sum(outcome.verdict is verdict for outcome in outcomes) for verdict in Verdict}
    console.print(", ".join(f"{count} {verdict.lower()}" for verdict, count in counts.items()))
    return int(counts[Verdict.FAIL] > 0 or counts[Verdict.PASS] == 0)
