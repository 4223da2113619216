"""One reward for rows of several tasks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

_OF_THE_CALL = frozenset({"trainer_state", "log_extra", "log_metric"})
"""Arguments that do not hold a value a row."""


def task_reward(
    completions: Sequence[Any],
    task: Sequence[str | None],
    log_metric: Callable[[str, float], None] | None = None,
    **columns: Any,
) -> list[float | None]:
    """Each row's reward by its own task, ``get_task(row["task"]).reward``.

    So that a mixture of tasks is trained and evaluated under one name, ``"task_reward"``. None
    where ``task`` is None or empty: rows of other data in the mixture, for other functions to
    judge. Logs the mean of each task, ``task_reward/NAME``.

    Args:
        completions: B texts or conversations.
        task: the column of that name, B values; the rows of every task have it.
        columns: what the tasks' rewards need: ``answer`` and, of drawn tasks, ``metadata``.

    Raises:
        ValueError: for an unknown task, naming the nearest, and for a missing column.
    """
    from foveal.tasks import get_task  # which imports this module

    data = {name: of for name, of in columns.items() if name not in _OF_THE_CALL}
    data["completions"] = completions
    data.setdefault("prompts", [None] * len(completions))
    rows_of: dict[str, list[int]] = {}
    for row, name in enumerate(task):
        if name:
            rows_of.setdefault(name, []).append(row)
    rewards: list[float | None] = [None] * len(completions)
    for name, rows in rows_of.items():
        own = {column: [values[row] for row in rows] for column, values in data.items()}
        judged = get_task(name).reward(**own)
        for row, reward in zip(rows, judged, strict=True):
            rewards[row] = reward
        if log_metric is not None:
            log_metric(f"task_reward/{name}", sum(judged) / len(judged))
    return rewards
