"""Runs on streams, tasks and mixtures go on after a cut as if there had been none."""

from __future__ import annotations

import math
import shutil

import pytest

from foveal.data import load_rows, mixture, task_rows
from foveal.rewards.call import RewardError, RewardTable
from foveal.tasks import get_task
from foveal.train.window import pass_rates
from foveal.types import Completion, Group, Prompt
from tests.runs.test_resume import REUSED, DiesAfter, even_byte, optimizer_values
from tests.runs.tiny_run import assert_same, lines, parameters, questions, steps_logged, trainer


class Rows:
    """An iterable without length or state."""

    def __init__(self, made):
        self.made = made

    def __iter__(self):
        return iter(self.made)


def parts():
    return mixture(
        [questions(4), Rows(questions(6)), task_rows(get_task("clocks"), difficulty=3)],
        weights=[1, 1, 1],
        names=["fixed", "stream", "clocks"],
    )


CURRICULUM = {"curriculum": "pass_rate", "curriculum_groups": 1, "curriculum_smoothing": 0.0}
RUNS = {
    "stream": (lambda: Rows(questions(6)), {"max_steps": 4, "stream_buffer": 4}),
    "mixture": (parts, {**CURRICULUM, "max_steps": 4, "skip_unsolved_after": 2}),
    "reused": (parts, {**REUSED, **CURRICULUM}),
    "redrawn": (parts, {**CURRICULUM, "max_steps": 4, "dynamic_sampling": True}),
    "rows by pass rate": (lambda: questions(6), {**CURRICULUM, "max_steps": 4}),
}


def one_in_eight(completion_ids, **_):
    """Most groups of two have no spread, whatever the rows look like."""
    return [float(sum(ids) % 8 == 0) for ids in completion_ids]


def own_reward(name):
    return one_in_eight if name == "redrawn" else even_byte


def start(folder, name, reward=None, **more):
    make, config = RUNS[name]
    reward = own_reward(name) if reward is None else reward
    config = {"log_completions": True, **config}
    return trainer(folder, rows=make(), reward_funcs=reward, **config, **more)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    made = {}

    def run(name):
        if name not in made:
            folder = tmp_path_factory.mktemp("run")
            whole = start(folder / "whole", name)
            whole.train()
            with pytest.raises(RewardError, match="power is cut"):
                last = DiesAfter(own_reward(name), 4 if name == "reused" else 3)
                start(folder / "cut", name, last, save_strategy="steps", save_steps=1).train()
            made[name] = whole, folder
        return made[name]

    return run


@pytest.mark.parametrize(
    ("name", "step"),
    [
        *((name, step) for name in RUNS if name != "reused" for step in (1, 2)),
        ("reused", 1),
        ("reused", 3),
    ],
)
def test_a_resumed_run_draws_what_it_would_have_drawn(tmp_path, folders, name, step):
    whole, folder = folders(name)
    shutil.copytree(folder / "cut", tmp_path, dirs_exist_ok=True)
    resumed = start(tmp_path, name)
    resumed.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{step}"))
    assert_same(parameters(resumed.model), parameters(whole.model))
    assert_same(optimizer_values(resumed), optimizer_values(whole))
    assert steps_logged(tmp_path) == steps_logged(folder / "whole")
    assert lines(tmp_path / "rollouts.jsonl") == lines(folder / "whole/rollouts.jsonl")


def test_the_log_tells_sources_and_difficulty_and_these_change(folders):
    entries = steps_logged(folders("redrawn")[1] / "whole")
    drawn = {name for entry in entries for name in entry if name.startswith("source/")}
    assert {"source/fixed/reward", "source/stream/share", "source/clocks/reward"} <= drawn
    for entry in entries:
        shares = [v for name, v in entry.items() if name.endswith("/share")]
        assert sum(shares) == pytest.approx(1.0)
    levels = [entry["curriculum/clocks/difficulty"] for entry in entries]
    assert len(set(levels)) > 1
    assert any("dynamic_sampling/redrawn_groups" in entry for entry in entries)


def test_groups_that_were_redrawn_are_measured_as_well(folders):
    """Only groups with a spread remain; a curriculum that saw no others would rest for ever."""
    window = folders("redrawn")[0]._window
    assert window.redrawn_groups > 0
    assert len(window.pass_rates) == len(window.groups) + window.redrawn_groups


def test_the_pass_rate_counts_the_first_reward_that_says_anything():
    nan = math.nan
    table = RewardTable(
        [[1.0, 0.0], [0.4, 1.0], [nan, 0.5], [nan, nan]] + [[nan, nan]] * 2, {}, {}, {}
    )
    prompts = [Prompt(index, (1,), (), []) for index in (7, 8, 9)]
    groups = [Group(p, (Completion((1,), "", "stop"),) * 2) for p in prompts]
    assert pass_rates(groups, table, 1.0) == {7: 0.5, 8: 0.0}
    assert pass_rates(groups, table, 0.4) == {7: 1.0, 8: 1.0}


def test_a_second_run_of_one_trainer_begins_anew(tmp_path):
    made = start(tmp_path, "stream")
    made.train()
    first = [line["prompt"] for line in lines(tmp_path / "rollouts.jsonl")]
    made.train()
    assert [line["prompt"] for line in lines(tmp_path / "rollouts.jsonl")] == first


def test_prompts_that_are_too_long_are_dropped_as_they_come(tmp_path, capsys):
    rows = Rows(questions(6))
    longest = max(len(p.ids) for p in start(tmp_path, "stream").prompts._take(6))
    config = {"max_steps": 2, "max_prompt_length": longest - 1}
    made = trainer(tmp_path, rows=rows, **config)
    made.train()
    assert steps_logged(tmp_path)[-1]["data/dropped_rows"] >= 1
    assert "It is dropped; the log counts all" in " ".join(capsys.readouterr().out.split())


def test_a_checkpoint_of_another_kind_of_data_is_refused(tmp_path, folders):
    shutil.copytree(folders("stream")[1] / "cut", tmp_path, dirs_exist_ok=True)
    (tmp_path / "checkpoint-1" / "data.pt").unlink()
    made = start(tmp_path, "stream")
    with pytest.raises(ValueError, match=r"holds no data.pt: its run drew numbered rows"):
        made.prompts.load(tmp_path / "checkpoint-1", made.args.device)
    assert load_rows(questions(2)).is_streamed is False
