"""Writes the tables in the documents from the measurements in benchmarks/results.

    python benchmarks/tables.py            # rewrite
    python benchmarks/tables.py --check    # exit 1 if a document is out of date

A table stands between ``<!-- table: NAME -->`` and ``<!-- end -->``. One whose measurements are
not there yet says so.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import mean
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
RESULTS = REPOSITORY / "benchmarks" / "results"
DOCUMENTS = ("README.md", "docs/performance.md")
NOT_MEASURED = "Not measured yet."
_ABSENT = "-"
_BLOCK = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)

Records = list[dict[str, Any]]


def demo_table(records: Records) -> str:
    lines = [
        "| run | held-out accuracy before | after | steps | seconds |",
        "|---|---|---|---|---|",
    ]
    for r in records:
        lines.append(_demo_row(r["case"], r["accuracy_before"], r["accuracy_after"], r))
    before, after = (mean(r[f"accuracy_{k}"] for r in records) for k in ("before", "after"))
    average = {k: mean(r[k] for r in records) for k in ("steps", "seconds")}
    lines.append(_demo_row("mean", before, after, average))
    first = records[0]
    lines += ["", f"`{first['command']}` on {first['card']}, torch {first['versions']['torch']}."]
    return "\n".join(lines)


def _demo_row(name: str, before: float, after: float, r: dict[str, Any]) -> str:
    return f"| {name} | {before:.1%} | {after:.1%} | {r['steps']:.0f} | {r['seconds']:.0f} |"


def rollout_table(records: Records) -> str:
    lines = [
        "| model, prompts x completions | system | seconds | tokens/s | times the floor "
        "| GiB above the weights | log-probability difference, mean / max |",
        "|---|---|---|---|---|---|---|",
    ]
    for r in records:
        difference = r["logprob_difference"]
        cells = [
            r["case"],
            r["system"],
            f"{r['seconds']:.1f}",
            f"{r['tokens_per_second']:,.0f}",
            _number(r["ratio_to_floor"], ".2f"),
            _number(r["peak_gib"], ".1f"),
            f"{difference['mean']:.1e} / {difference['max']:.1e}" if difference else _ABSENT,
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, "", *_origins(records)])


def cpu_rollout_table(records: Records) -> str:
    lines = [
        "| model, prompts x completions | system | process seconds | seconds | tokens/s "
        "| times transformers |",
        "|---|---|---|---|---|---|",
    ]
    for r in records:
        cells = [
            r["case"],
            r["system"],
            f"{r['process_seconds']:.2f}",
            f"{r['seconds']:.2f}",
            f"{r['tokens_per_second']:,.0f}",
            f"{r['times_transformers']:.2f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, "", *_origins(records)])


def train_pass_table(records: Records) -> str:
    lines = [
        "| model, prompts x completions | pass, checkpointing | seconds | tokens/s | useful TFLOP "
        "| useful / matrix rate | done / matrix rate | GiB above the weights | pictures, seconds |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for r in records:
        cells = [
            r["case"],
            r["system"],
            f"{r['seconds']:.2f}",
            f"{r['tokens_per_second']:,.0f}",
            f"{r['useful_tflop']:,.0f}",
            _number(r["share_useful"], ".0%"),
            _number(r["share_done"], ".0%"),
            _number(r["peak_gib"], ".1f"),
            f"{r['breakdown']['pictures']:.2f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, "", *_origins(records)])


def step_table(records: Records) -> str:
    lines = [
        "| model, prompts x completions | system | seconds | rollout | all else | tokens/s "
        "| GiB in use | GiB allocated |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for r in records:
        rollout = r["breakdown"]["time/rollout"]
        cells = [
            r["case"],
            r["system"],
            f"{r['seconds']:.1f}",
            f"{rollout:.1f}",
            f"{r['seconds'] - rollout:.1f}",
            f"{r['tokens_per_second']:,.0f}",
            _number(r["peak_gib"], ".1f"),
            _number(r["allocated_gib"], ".1f"),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, "", *_origins(records)])


def agreement_table(records: Records) -> str:
    lines = [
        "| model | tokens | mean log-probability | rollout and trainer, mean / max "
        "| rollout and float32 | trainer and float32 |",
        "|---|---|---|---|---|---|",
    ]
    for r in records:
        found, exact = r["logprob_difference"], r["against_float32"]
        cells = [
            r["case"],
            f"{found['tokens']:,}",
            f"{found['mean_logprob']:.2f}",
            f"{found['mean']:.3f} / {found['max']:.2f}",
            f"{exact['rollout']['mean']:.3f}",
            f"{exact['trainer']['mean']:.3f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, "", *_origins(records)])


def gradients_table(records: Records) -> str:
    lines = ["| model | gradients | cosine, mean of layers | least, in |", "|---|---|---|---|"]
    lines += [
        f"| {r['case']} | {r['system']} | {r['cosine_mean']:.5f} | {r['cosine_least']:.5f}, "
        f"{r['least_in']} |"
        for r in records
    ]
    return "\n".join([*lines, "", *_origins(records)])


def gpu_tests_table(records: Records) -> str:
    lines = ["| file | passed | failed | skipped |", "|---|---|---|---|"]
    lines += [
        f"| tests/gpu/{r['case']} | {r['passed']} | {r['failures']} | {r['skipped']} |"
        for r in records
    ]
    return "\n".join([*lines, "", *_origins(records)])


def _number(value: float | None, form: str) -> str:
    return _ABSENT if value is None else format(value, form)


def _origins(records: Records) -> list[str]:
    """Where records come from, each origin once."""
    lines = [
        f"`{r['command']}` on {r['card']}, torch {r['versions']['torch']}, commit {r['commit']}."
        for r in records
    ]
    return list(dict.fromkeys(lines))


TABLES: dict[str, Callable[[Records], str]] = {
    "demo": demo_table,
    "rollout": rollout_table,
    "cpu_rollout": cpu_rollout_table,
    "train_pass": train_pass_table,
    "step": step_table,
    "agreement": agreement_table,
    "gradients": gradients_table,
    "gpu_tests": gpu_tests_table,
}


def render(document: str) -> str:
    """``document`` with every table made anew."""

    def table(match: re.Match[str]) -> str:
        name = match.group(2)
        path = RESULTS / f"{name}.json"
        shown = TABLES[name](json.loads(path.read_text())) if path.exists() else NOT_MEASURED
        return f"{match.group(1)}{shown}\n{match.group(3)}"

    return _BLOCK.sub(table, document)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing, fail on a difference")
    check = parser.parse_args().check
    stale = []
    for name in DOCUMENTS:
        path = REPOSITORY / name
        text = path.read_text()
        if render(text) != text:
            stale.append(name)
            if not check:
                path.write_text(render(text))
    if check and stale:
        sys.exit(f"out of date: {', '.join(stale)}; run python benchmarks/tables.py")


if __name__ == "__main__":
    main()
