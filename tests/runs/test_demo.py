"""The demo, made small: what it leaves behind, and that its model is the one it says."""

from __future__ import annotations

import json

import pytest
from PIL import Image
from transformers import AutoConfig

from foveal.demo import DemoSettings, demo_model_folder, run_demo

SMALL = DemoSettings(
    train_rows=16, held_out_rows=8, held_out_answers=2, steps=2, prompts_per_step=2
)
SUMMARY_KEYS = {
    "accuracy_before",
    "accuracy_after",
    "reward_before",
    "reward_after",
    "seconds",
    "steps",
    "peak_bytes",
    "seed",
    "versions",
}


def test_the_run_folder_holds_all_that_the_readme_promises(tmp_path, capsys):
    summary = run_demo(tmp_path, seed=3, settings=SMALL)
    assert json.loads((tmp_path / "summary.json").read_text()) == summary
    assert summary.keys() == SUMMARY_KEYS
    assert (summary["steps"], summary["seed"]) == (2, 3)
    assert 0 <= summary["accuracy_before"] <= 1 and summary["peak_bytes"] > 0
    steps = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in steps if "reward" in entry] == [1, 2]
    rollouts = [json.loads(line) for line in (tmp_path / "rollouts.jsonl").read_text().splitlines()]
    assert len(rollouts) == 2 * 2 * SMALL.num_generations
    for name in {name for rollout in rollouts for name in rollout["images"]}:
        assert Image.open(tmp_path / name).size == (112, 112)
    assert "held-out accuracy" in capsys.readouterr().out


def test_the_model_is_a_qwen2_5_vl_and_small_enough_for_the_package():
    folder = demo_model_folder()
    assert AutoConfig.from_pretrained(folder).model_type == "qwen2_5_vl"
    assert sum(path.stat().st_size for path in folder.iterdir()) < 12e6


def test_the_same_seed_gives_the_same_run(tmp_path):
    completions = []
    for name in ("first", "second"):
        run_demo(tmp_path / name, seed=1, settings=SMALL)
        lines = (tmp_path / name / "rollouts.jsonl").read_text().splitlines()
        completions.append([json.loads(line)["completion"] for line in lines])
    assert completions[0] == completions[1]


def test_a_package_without_its_model_says_how_to_make_it(monkeypatch, tmp_path):
    monkeypatch.setattr("foveal.demo.resources.files", lambda package: tmp_path)
    with pytest.raises(FileNotFoundError, match="make tiny-model"):
        demo_model_folder()
