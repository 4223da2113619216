"""The demo over three seeds: benchmarks/results/demo.json.

    python benchmarks/demo.py                # seeds 0, 1, 2
    python benchmarks/demo.py --seeds 3 4

Then `python benchmarks/tables.py` brings README.md up to date.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
from pathlib import Path

RESULTS = Path(__file__).parent / "results"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--output-dir", type=Path, default=Path("runs"))
    arguments = parser.parse_args()

    from foveal.demo import run_demo

    records = []
    for seed in arguments.seeds:
        summary = run_demo(arguments.output_dir / f"demo-{seed}", seed=seed)
        records.append(
            {
                "benchmark": "demo",
                "case": f"seed {seed}",
                "system": "foveal",
                **summary,
                "card": f"{os.cpu_count()} CPU cores, {platform.machine()}",
                "commit": commit(),
                "command": "python benchmarks/demo.py",
            }
        )
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / "demo.json"
    path.write_text(json.dumps(records, indent=2) + "\n")
    print(path)


def commit() -> str:
    """The commit that was measured, marked if the tree differs from it."""
    return subprocess.run(
        ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=True
    ).stdout.strip()


if __name__ == "__main__":
    main()
