"""One reward for a mixture of tasks."""

from typing import Any

import pytest

from foveal.rewards import RewardCaller, RewardError, resolve
from foveal.tasks import TASKS, get_task, missing_package, tagged, task_reward

NAMES = [name for name, task in TASKS.items() if missing_package(task) is None]


@pytest.fixture(scope="module")
def rows():
    """Two rows of each task, the tasks in turn."""
    return [get_task(name).generate(seed, difficulty=1) for seed in (0, 1) for name in NAMES]


def columns(rows) -> dict[str, Any]:
    return {name: [row[name] for row in rows] for name in ("task", "answer", "metadata")}


def rewards(texts, rows):
    data = columns(rows)
    return task_reward(texts, data.pop("task"), **data)


def test_each_row_is_judged_by_its_own_task_in_its_own_place(rows):
    texts = [tagged(row, 0) for row in rows]
    wrong = [text if place % 3 else "<answer>?</answer>" for place, text in enumerate(texts)]
    assert rewards(texts, rows) == [1.0] * len(rows)
    expected = [float(place % 3 > 0) for place in range(len(rows))]
    assert rewards(wrong, rows) == expected


@pytest.mark.parametrize(
    "attack",
    [
        "",
        "<answer></answer>",
        "<answer>\u200b</answer>",
        "<think>{answer}</think>",
        "<think><answer>{answer}</answer></think>",
        "<answer>{answer}",
        "{problem}",
        "<answer>{answer}</answer><answer>?</answer>",
        "<answer>{answer} or 17.25 or yes</answer>",
        "<answer>" * 1000,
        "<answer>nan</answer>",
        "<answer>1e400</answer>",
    ],
)
def test_what_earns_nothing_in_one_task_earns_nothing_in_any(rows, attack):
    texts = [
        attack.replace("{answer}", row["answer"]).replace("{problem}", row["problem"])
        for row in rows
    ]
    assert rewards(texts, rows) == [0.0] * len(rows)


def test_the_name_works_in_a_run_with_other_functions_columns_and_metrics(rows):
    caller = RewardCaller([resolve("task_reward"), "exact_answer"], [1.0, 0.5])
    assert resolve("task_reward") is task_reward
    assert caller.names == ["task_reward", "exact_answer"]
    two = [rows[0], {**rows[1], "task": None}, rows[0]]
    texts = [tagged(two[0], 0), tagged(two[1], 0), "?"]
    table = caller.score([""] * 3, texts, [[1]] * 3, columns(two))
    assert str(table.rewards_BF) == "[[1.0, 1.0], [nan, 1.0], [0.0, 0.0]]"
    assert table.metrics == {f"task_reward/{NAMES[0]}": 0.5}


def test_rows_without_a_task_or_of_an_unknown_one_are_named():
    caller = RewardCaller("task_reward")
    with pytest.raises(ValueError, match=r"'task_reward' needs \['task'\]"):
        caller.check_columns(["answer"])
    with pytest.raises(RewardError, match=r"no task is called 'shape'; did you mean 'shapes'"):
        caller.score([""], ["3"], [[1]], {"task": ["shape"], "answer": ["3"]})
