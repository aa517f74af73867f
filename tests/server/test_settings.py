"""Settings that are worked out."""

import os
from pathlib import Path

import pytest

from lookwire_server.settings import available_cores

CORES = len(os.sched_getaffinity(0))


@pytest.mark.parametrize(
    ("cpu_max", "expected"),
    [("max 100000", CORES), ("50000 100000", 1), ("100001 100000", min(2, CORES)), ("99900000 100000", CORES)],
)
def test_cores_respect_a_containers_quota(tmp_path: Path, cpu_max: str, expected: int) -> None:
    """A container that may use one core of many gets threads for one."""
    path = tmp_path / "cpu.max"
    path.write_text(f"{cpu_max}\n")

    assert available_cores(path) == expected


def test_cores_without_control_groups(tmp_path: Path) -> None:
    """Where there is no quota file, every core of the affinity counts."""
    assert available_cores(tmp_path / "missing") == CORES
