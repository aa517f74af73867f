"""`python -m benchmarks NAME`: runs one benchmark, prints its figures, and writes build/bench/NAME.json."""

import importlib
import sys
from pathlib import Path

from benchmarks.report import Report

HERE = Path(__file__).parent
NAMES = sorted(path.stem for path in HERE.glob("*.py") if path.stem not in ("__main__", "report"))

if __name__ == "__main__":
    if len(sys.argv) != 2 or sys.argv[1] not in NAMES:
        sys.exit(f"usage: python -m benchmarks NAME (make bench NAME=...), NAME one of: {', '.join(NAMES)}")
    name = sys.argv[1]
    report = Report(name)
    importlib.import_module(f"benchmarks.{name}").run(report)
    report.write(Path("build/bench"))
    sys.exit(not report.holds)
