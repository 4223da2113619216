"""examples/small_vlm/learn: its recipes, the split of its rows, and a run of two steps."""

from __future__ import annotations

import importlib
import io
import json
import sys

import pytest
from PIL import Image
from transformers import TrainerControl

from foveal.data import load_rows
from foveal.recipe import load_recipe
from foveal.testing import save_tiny
from foveal.train import GRPOConfig
from tests.conftest import REPOSITORY

RECIPES = REPOSITORY / "examples" / "recipes" / "small_vlm"
PICTURES = 64
SMALL = (
    "train.max_steps=2",
    "train.num_generations=2",
    "train.per_device_train_batch_size=2",
    "train.generation_batch_size=4",
    "train.max_completion_length=6",
    "train.eval_strategy=no",
)


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(REPOSITORY / "benchmarks"))
    monkeypatch.syspath_prepend(str(REPOSITORY / "examples" / "small_vlm"))

    def load(name):
        for stale in ("learn", "learn_data", "learn_run", "learn_peer", "learn_report",
                      "cold_start_data"):  # fmt: skip
            monkeypatch.delitem(sys.modules, stale, raising=False)
        return importlib.import_module(name)

    return load


@pytest.fixture
def nlvr(tmp_path):
    """Pictures with three rows each, as the pack has them."""
    import pyarrow
    from pyarrow import parquet

    answers = {"count": "2", "true_false": "true",
               "boxes": '[{"bbox_2d": [3, 4, 9, 12], "label": "blue circle"}]'}  # fmt: skip
    rows = []
    for task, answer in answers.items():
        for number in range(PICTURES):
            held = io.BytesIO()
            Image.new("RGB", (60, 56), (number * 3, 90, 40)).save(held, format="PNG")
            images = [{"bytes": held.getvalue(), "path": f"{number}.png"}]
            problem = f"<image>A question of {task}?"
            rows.append({"images": images, "problem": problem, "answer": answer, "task": task})
    path = tmp_path / "nlvr.parquet"
    parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path


def pictures_of(path):
    rows = load_rows(path).rows
    return {rows[index]["images"][0]["bytes"] for index in range(len(rows))}


def test_no_picture_is_in_two_parts_of_the_split_and_none_is_lost(script, nlvr, tmp_path):
    data = script("learn_data")
    data.write_data(nlvr, tmp_path / "data", drawn_rows=1)
    cold = importlib.import_module("cold_start_data")
    start = {row["images"][0]["bytes"] for row in cold.nlvr_half(nlvr, 0)}
    names = ("boxes_train", "boxes_held_out")
    train, held_out = (pictures_of(tmp_path / "data" / f"{n}.parquet") for n in names)
    assert not (start & train or start & held_out or train & held_out)
    assert len(start | train | held_out) == PICTURES
    # Counting and boxes are split alike, so learning the ones cannot leak into the others.
    assert pictures_of(tmp_path / "data" / "count_held_out.parquet") == held_out
    assert pictures_of(tmp_path / "data" / "count_train.parquet") == train


def test_rows_of_a_cold_start_keep_one_instruction(script, nlvr, tmp_path):
    cold, data = script("cold_start_data"), importlib.import_module("learn_data")
    half = tmp_path / "half.parquet"
    cold.write_half(half, list(cold.nlvr_half(nlvr, 1)))
    files = data.write_data(half, tmp_path / "data", drawn_rows=1)
    names = {f"{task}_{part}" for task in data.TASKS for part in ("train", "held_out")}
    assert {path.stem for path in files} == {*names, "mixture_held_out"}
    for path in files[:-1]:
        row = load_rows(path).rows[0]
        assert row["problem"].count(cold.INSTRUCTIONS[row["task"]]) == 1


def test_every_recipe_has_known_keys_and_logs_the_kl():
    for path in sorted(RECIPES.glob("*.yaml")):
        recipe = load_recipe(path)
        config = GRPOConfig(**{**recipe.train, "use_cpu": True})
        assert 0 < config.beta < 1e-6 and config.logging_steps == 1, path.name
        assert config.generation_batch_size == 256, path.name


@pytest.mark.parametrize(
    "name, section, differing",
    [
        ("count_grpo", "train", {"importance_sampling_level", "epsilon", "epsilon_high"}),
        ("count_dapo", "train", {"importance_sampling_level", "epsilon", "epsilon_high",
                                 "loss_type", "dynamic_sampling", "mask_truncated_completions"}),
        ("count_vision", "lora", {"finetune_vision_layers"}),
        ("count_4bit", "model", {"load_in_4bit"}),
    ],
)  # fmt: skip
def test_compared_recipes_differ_in_what_is_compared_alone(name, section, differing):
    one, other = load_recipe(RECIPES / "count_gspo.yaml"), load_recipe(RECIPES / f"{name}.yaml")
    for part in ("model", "lora", "data", "rewards", "train"):
        first, second = getattr(one, part), getattr(other, part)
        if part not in ("data", "rewards"):
            keys = {*first, *second} - {"output_dir"}
            found = {k for k in keys if first.get(k) != second.get(k)}
            assert found == (differing if part == section else set())
        else:
            assert first == second


def test_a_run_leaves_its_files_and_is_not_done_twice(script, nlvr, tmp_path, monkeypatch, capsys):
    learn = script("learn")
    model, out = save_tiny(tmp_path / "tiny", "qwen2_5_vl"), tmp_path / "out"
    command = f"--model {model} --nlvr {nlvr} --out {out} --recipes count_gspo --held-out 2"
    argv = [*command.split(), "--answers", "2", "--drawn-rows", "1", "--commit", "none", "--set"]
    assert learn.main([*argv, *SMALL]) == 0
    folder = out / "runs" / "count_gspo-0"
    record = json.loads((folder / "run.json").read_text())
    assert record["steps"] == 2 and record["questions"] == 2 and record["train_seconds"] > 0
    assert record["by_task"] == {"count": {k: record[k] for k in ("before", "after")}}
    log = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert {"reward", "kl", "entropy", "completions/mean_length"} <= log[0].keys()
    # Two optimizer steps share the rollout of the first.
    assert "reward" not in log[1] and log[1]["seconds"] > log[0]["seconds"]
    sample = json.loads((folder / "samples.json").read_text())[0]
    assert (folder / sample["images"][0]).is_file() and not list((out / "work").iterdir())
    groups = json.loads((out / "summary.json").read_text())["over_seeds"]
    assert [(g["recipe"], g["system"], g["seeds"]) for g in groups] == [
        ("count_gspo", "foveal", [0])
    ]

    monkeypatch.setattr(learn, "run_foveal", lambda *_: pytest.fail("the run was done again"))
    assert learn.main([*argv, *SMALL]) == 0
    assert "count_gspo-0 is there already" in capsys.readouterr().out
    with pytest.raises(ValueError, match="was made with set"):
        learn.main([*argv, *SMALL, "train.learning_rate=1e-5"])


def test_a_failed_run_does_not_stop_the_others_and_a_spent_budget_does(
    script, nlvr, tmp_path, monkeypatch, capsys
):
    learn = script("learn")
    tried = []

    def fail(name, seed, *_):
        tried.append(seed)
        raise RuntimeError("out of memory")

    monkeypatch.setattr(learn, "one_run", fail)
    model = save_tiny(tmp_path / "tiny", "qwen2_5_vl")
    command = f"--model {model} --nlvr {nlvr} --out {tmp_path / 'out'} --recipes count_gspo"
    argv = [*command.split(), "--drawn-rows", "1", "--commit", "none", "--seeds", "0", "1"]
    assert learn.main([*argv, "--set", *SMALL]) == 1 and tried == [0, 1]
    assert learn.main([*argv, "--budget-seconds", "0", "--set", *SMALL]) == 0 and tried == [0, 1]
    assert "2 runs are left" in capsys.readouterr().out


def test_a_reward_counts_as_reached_by_a_mean_of_rollouts_and_evaluation_costs_no_time(
    script, monkeypatch
):
    run = script("learn_run")
    curve = [(i, 10.0 * i, reward) for i, reward in enumerate([0.0, 1.0, 0.4, 0.6, 0.8], 1)]
    assert run.seconds_to(curve, 0.5, window=2) == 20.0
    assert run.seconds_to(curve, 0.75, window=2) is None
    assert run.seconds_to(curve, 0.1, window=6) is None
    times = iter([0.0, 2.0, 50.0, 53.0])
    monkeypatch.setattr(run, "_now", lambda: next(times))
    clock, state = run.Clock(limit=4.0), type("State", (), {"global_step": 1})()
    control = TrainerControl()
    clock.on_train_begin()
    clock.on_step_end(None, state, control)
    assert not control.should_training_stop
    clock.on_evaluate()
    state.global_step = 2
    clock.on_step_end(None, state, control)
    assert clock.seconds == {1: 2.0, 2: 5.0} and control.should_training_stop


def test_intervals_over_seeds_are_students_and_need_two(script):
    report = script("learn_report")
    assert report.mean_interval([0.5]) == {"mean": 0.5, "interval": None}
    found = report.mean_interval([0.4, 0.5, 0.6])
    # t(0.975, 2) = 4.3027, standard error 0.1 / sqrt(3).
    assert found["mean"] == pytest.approx(0.5)
    assert found["interval"] == pytest.approx([0.5 - 0.24841, 0.5 + 0.24841], abs=1e-4)
