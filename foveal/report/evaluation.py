"""Results of ``foveal eval`` for people: tables of one result, and of two side by side."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from foveal.eval_result import LABELS, SCORE, Compared, Comparison

SHARES = ("pass@", "majority", "truncated")
"""What the names of metrics begin with that are shown in percent."""
HEADS = {"prompts": "n", "majority": "vote", "truncated": "cut"}
"""Of columns, so that a table fits 80 letters."""


def result_table(summary: Mapping[str, Any], title: str) -> Table:
    """A row for all prompts and one for each source, task and difficulty; a column for each metric.

    Args:
        summary: from ``EvalResult.summary``.
        title: shown as it is.
    """
    overall = summary["overall"]
    names = _columns(overall["metrics"])
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
    for source, group in summary.get("by_source", {}).items():
        table.add_section()
        table.add_row(*_cells(source, group, names))
        _add_groups(table, summary["by_source_task"][source], "  ", names)
    for label in LABELS:
        # With several sources the tasks stand under their source.
        if label == "task" and "by_source" in summary:
            continue
        table.add_section()
        _add_groups(table, summary.get(f"by_{label}", {}), f"{label} ", names)
    unscored = overall["unscored"]
    counted = f"{overall['samples']} answers to {overall['prompts']} questions (n)"
    caption = f"{counted}; vote: the most frequent answer; below: 95 % intervals"
    table.caption = f"{caption}; {unscored} not scored" if unscored else caption
    return table


def _columns(metrics: Mapping[str, Any]) -> list[str]:
    """Metrics that are shown: where rows differ in their rewards, only those that all have."""
    if SCORE not in metrics:
        return list(metrics)
    return [name for name in metrics if not name.startswith("reward/")]


def _add_groups(
    table: Table, groups: Mapping[str, Mapping[str, Any]], head: str, names: list[str]
) -> None:
    """A row for each group; none for a single one, which the row above says already."""
    if len(groups) > 1:
        for value, group in groups.items():
            table.add_row(*_cells(f"{head}{value}", group, names))


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
    for name in _columns(comparison.metrics):
        compared = comparison.metrics[name]
        table.add_row(name, *_compared_cells(name, compared))
    for source, metrics in comparison.by_source.items():
        table.add_section()
        # The first metric is the one that counts most: pass@1.
        for name, compared in list(metrics.items())[:1]:
            table.add_row(Text(f"{source}: {name}"), *_compared_cells(name, compared))
    left_out = f"{comparison.only_first} only in the first, {comparison.only_second} in the second"
    table.caption = f"{comparison.common} common prompts ({left_out}); second minus first"
    return table


def _compared_cells(name: str, compared: Compared) -> list[Text]:
    test = compared.test
    scale, unit = (100, " pp") if name.startswith(SHARES) else (1, "")
    digits = 1 if scale == 100 or name == "tokens" else 3
    low, high = (f"{scale * end:+.{digits}f}" for end in (test.low, test.high))
    sides = [
        f"{side.mean:.1%}" if scale == 100 else f"{side.mean:.{digits}f}"
        for side in (compared.first, compared.second)
    ]
    difference = f"{scale * test.difference:+.{digits}f}{unit} [{low}, {high}]"
    return [Text(text) for text in (str(test.prompts), *sides, difference, f"{test.p_value:.4f}")]
