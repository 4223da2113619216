"""Results of ``foveal eval`` for people: tables of one result, and of two side by side."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.table import Table
from rich.text import Text

from foveal.eval_result import LABELS, Comparison

SHARES = ("pass@", "majority", "truncated")
"""What the names of metrics begin with that are shown in percent."""


def result_table(summary: Mapping[str, Any], title: str) -> Table:
    """A row for all prompts and one for each task and difficulty; a column for each metric.

    Args:
        summary: from ``EvalResult.summary``.
        title: shown as it is.
    """
    overall = summary["overall"]
    names = list(overall["metrics"])
    table = Table(title=Text(title), title_justify="left")
    table.add_column("")
    for name in ("prompts", *names):
        table.add_column(name, justify="right")
    table.add_row(*_cells("all", overall, names))
    for label in LABELS:
        groups = summary.get(f"by_{label}", {})
        if groups:
            table.add_section()
        for value, group in groups.items():
            table.add_row(*_cells(f"{label} {value}", group, names))
    unscored = overall["unscored"]
    caption = f"{overall['samples']} answers to {overall['prompts']} questions; 95 % intervals"
    table.caption = f"{caption}; {unscored} not scored" if unscored else caption
    return table


def _cells(head: str, group: Mapping[str, Any], names: list[str]) -> list[Text]:
    cells = [head, str(group["prompts"])]
    for name in names:
        found = group["metrics"].get(name)
        cells.append("-" if found is None else interval(name, **found))
    return [Text(cell) for cell in cells]


def interval(name: str, mean: float, low: float, high: float, **others: Any) -> str:
    """``61.3% [58.0, 64.4]`` for a share, ``0.613 [0.580, 0.644]`` for another metric."""
    if name == "tokens":
        return f"{mean:.1f}"
    if name.startswith(SHARES):
        return f"{mean:.1%} [{100 * low:.1f}, {100 * high:.1f}]"
    return f"{mean:.3f} [{low:.3f}, {high:.3f}]"


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
