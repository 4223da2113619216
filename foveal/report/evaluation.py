"""Results of ``foveal eval`` for people: tables of one result, and of two side by side."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from foveal.eval_result import LABELS, Comparison

SHARES = ("pass@", "majority", "truncated")
"""What the names of metrics begin with that are shown in percent."""
HEADS = {"prompts": "n", "majority": "vote", "truncated": "cut"}
"""Of columns, so that a table fits 80 letters."""


def result_table(summary: Mapping[str, Any], title: str) -> Table:
    """A row for all prompts and one for each task and difficulty; a column for each metric.

    Args:
        summary: from ``EvalResult.summary``.
        title: shown as it is.
    """
    overall = summary["overall"]
    names = list(overall["metrics"])
    table = Table(
        title=Text(title),
        title_justify="left",
        box=SIMPLE_HEAD,
        collapse_padding=True,
        pad_edge=False,
    )
    table.add_column("", no_wrap=True)
    for name in ("prompts", *names):
        table.add_column(_head(name, names), justify="right", no_wrap=True)
    table.add_row(*_cells("all", overall, names))
    for label in LABELS:
        groups = summary.get(f"by_{label}", {})
        if len(groups) < 2:
            # One group is all there is: the row above says it.
            continue
        table.add_section()
        for value, group in groups.items():
            table.add_row(*_cells(f"{label} {value}", group, names))
    unscored = overall["unscored"]
    counted = f"{overall['samples']} answers to {overall['prompts']} questions (n)"
    caption = f"{counted}; vote: the most frequent answer; below: 95 % intervals"
    table.caption = f"{caption}; {unscored} not scored" if unscored else caption
    return table


def _head(name: str, names: list[str]) -> str:
    if name.startswith("reward/") and sum(other.startswith("reward/") for other in names) == 1:
        return "reward"
    return HEADS.get(name, name)


def _cells(head: str, group: Mapping[str, Any], names: list[str]) -> list[Text]:
    cells = [head, str(group["prompts"])]
    for name in names:
        found = group["metrics"].get(name)
        cells.append("-" if found is None else interval(name, **found))
    return [Text(cell) for cell in cells]


def interval(name: str, mean: float, low: float, high: float, **others: Any) -> str:
    """``61.3%`` over ``58-64`` for a share, ``0.613`` over ``0.58-0.64`` for another metric."""
    if name == "tokens":
        return f"{mean:.1f}"
    if name.startswith(SHARES):
        return f"{mean:.1%}\n{100 * low:.0f}-{100 * high:.0f}"
    return (
        f"{mean:.3f}\n{low:.2f} to {high:.2f}" if low < 0 else f"{mean:.3f}\n{low:.2f}-{high:.2f}"
    )


def comparison_table(comparison: Comparison, first: str, second: str) -> Table:
    """A row for each metric: both means, their difference with its interval, and p.

    Args:
        comparison: from ``foveal.eval_result.compare``.
        first, second: what the results are called.
    """
    table = Table(title="Two results on the same prompts", title_justify="left")
    table.add_column("")
    for name in ("prompts", first, second, "difference", "p"):
        table.add_column(Text(name), justify="right")
    for name, compared in comparison.metrics.items():
        test = compared.test
        scale, unit = (100, " pp") if name.startswith(SHARES) else (1, "")
        digits = 1 if scale == 100 or name == "tokens" else 3
        low, high = (f"{scale * end:+.{digits}f}" for end in (test.low, test.high))
        table.add_row(
            name,
            str(test.prompts),
            *(
                f"{side.mean:.1%}" if scale == 100 else f"{side.mean:.{digits}f}"
                for side in (compared.first, compared.second)
            ),
            Text(f"{scale * test.difference:+.{digits}f}{unit} [{low}, {high}]"),
            f"{test.p_value:.4f}",
        )
    left_out = f"{comparison.only_first} only in the first, {comparison.only_second} in the second"
    table.caption = f"{comparison.common} common prompts ({left_out}); second minus first"
    return table
