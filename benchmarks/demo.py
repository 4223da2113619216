"""The demo over three seeds: benchmarks/results/demo.json.

    python benchmarks/demo.py                # seeds 0, 1, 2
    python benchmarks/demo.py --seeds 3 4    # beside those measured before

Then `python benchmarks/tables.py` brings README.md up to date.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from record import RESULTS, card, command_line, commit, write_records


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--output-dir", type=Path, default=Path("runs"))
    parser.add_argument("--commit", default=None, help="what is measured, where there is no git")
    arguments = parser.parse_args()
    measured = commit(arguments.commit)

    from foveal.demo import run_demo

    path = RESULTS / "demo.json"
    for seed in arguments.seeds:
        summary = run_demo(arguments.output_dir / f"demo-{seed}", seed=seed)
        record = {
            "benchmark": "demo",
            "case": f"seed {seed}",
            "system": "foveal",
            **summary,
            "card": card(),
            "commit": measured,
            "command": command_line("demo.py", sys.argv[1:]),
        }
        write_records(path, [record])
    print(path)


if __name__ == "__main__":
    main()
