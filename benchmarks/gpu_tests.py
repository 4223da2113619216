"""The tests that only a GPU can run: benchmarks/results/gpu_tests.json.

    python benchmarks/gpu_tests.py

Each file runs in a process of its own, side by side: a failed kernel takes its process with it.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from record import (
    REPOSITORY,
    RESULTS,
    Record,
    origin,
    write_records,
)


def main(argv: Sequence[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else list(argv)
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=RESULTS / "gpu_tests.json")
    parser.add_argument("--commit", default=None, help="what is tested, where there is no git")
    arguments = parser.parse_args(argv)
    measured = origin("gpu_tests.py", argv, arguments.commit)
    files = sorted((REPOSITORY / "tests" / "gpu").glob("test_*.py"))
    with ThreadPoolExecutor(len(files)) as threads:
        records = list(threads.map(run, files))
    write_records(arguments.out, [{**record, **measured} for record in records])
    if any(record["failures"] for record in records):
        sys.exit(1)


def run(file: Path) -> Record:
    """The outcome of one file; its output is printed if something failed."""
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = ["-m", "pytest", str(file), "-q", "--tb=short", "-p", "no:warnings"]
        done = subprocess.run(
            [sys.executable, *command, f"--junitxml={report}"],
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
        )
        counts = dict.fromkeys(("tests", "failures", "errors", "skipped"), 0)
        suites = ElementTree.parse(report).iter("testsuite") if report.exists() else ()
        for suite in suites:
            counts = {name: counts[name] + int(suite.get(name, 0)) for name in counts}
    # A process that died has written no report.
    failures = counts["failures"] + counts["errors"] or int(done.returncode != 0)
    result: Record = {
        "benchmark": "gpu_tests",
        "case": file.name,
        "system": "foveal",
        "seconds": time.perf_counter() - start,
        "passed": counts["tests"] - counts["skipped"] - counts["failures"] - counts["errors"],
        "failures": failures,
        "skipped": counts["skipped"],
    }
    print(f"{file.name}: {result['passed']} passed, {failures} failed", flush=True)
    if failures:
        print(done.stdout[-6000:], done.stderr[-2000:], flush=True)
    return result


if __name__ == "__main__":
    main()
