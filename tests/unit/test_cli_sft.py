"""``foveal sft``: from a recipe or from options alone to a trained checkpoint."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file

from foveal.recipe import check_sft_recipe, load_sft_recipe
from foveal.testing import save_tiny
from tests.conftest import REPOSITORY
from tests.samples import picture
from tests.unit.test_cli import run

RECIPE = """
model: {{model_name: {checkpoint}, device: cpu}}
lora: false
data:
  train:
    - {{task: shapes, n: 4, difficulty: [1, 2]}}
    - rows.jsonl
  eval: {{task: shapes, n: 2, seed: 1}}
train:
  output_dir: {run}
  use_cpu: true
  per_device_train_batch_size: 3
  max_steps: 2
  learning_rate: 1e-2
  save_steps: 2
  eval_strategy: steps
  eval_steps: 2
  eval_answers: 1
  eval_max_tokens: 2
  logging_steps: 1
  report_to: none
"""
QUICK = ["train.max_steps=1", "train.use_cpu=true", "train.report_to=none", "model.device=cpu"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("tiny"), "qwen2_5_vl")


@pytest.fixture
def recipe(tmp_path, checkpoint) -> Path:
    picture(0, 56, 56).save(tmp_path / "it.png")
    rows = [
        {"problem": "<image>Which?", "image": "it.png", "completion": "<answer>red</answer>"},
        {"messages": [{"role": "user", "content": "1+1?"}, {"role": "assistant", "content": "2"}]},
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    path = tmp_path / "warm.yaml"
    path.write_text(RECIPE.format(checkpoint=checkpoint, run=tmp_path / "run"))
    return path


def test_a_recipe_mixes_tasks_and_files_and_leaves_weights_that_load(recipe, checkpoint):
    shown = run("sft", recipe, "--dry-run")
    assert "6 from the task shapes + " in " ".join(shown.split()).replace("│ ", "")
    assert "3 rows" in shown and not (recipe.parent / "run").exists()
    run("sft", recipe, "train.seed=5")
    folder = recipe.parent / "run"
    before, after = (load_file(f / "model.safetensors") for f in (checkpoint, folder))
    assert any(not after[name].equal(before[name]) for name in after)
    entries = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert any("eval_loss" in entry and "eval_accuracy" in entry for entry in entries)
    # The resolved recipe does the same again, and the run can be gone on with from it.
    again = load_sft_recipe(folder / "recipe.yaml")
    assert again.train["seed"] == 5 and again.data.train[1] == str(recipe.parent / "rows.jsonl")
    run("sft", folder / "recipe.yaml", "train.max_steps=3", "--resume")
    state = json.loads((folder / "checkpoint-3/trainer_state.json").read_text())
    assert state["global_step"] == 3


def test_options_alone_train_an_adapter_on_a_mixture(tmp_path, checkpoint):
    options = ["--model", checkpoint, "--data", "task:shapes", "--data", "task:clocks"]
    options += ["--out", tmp_path / "run", "--lora", 4, "--rows", 3, "--difficulty", 2]
    run("sft", *options, *QUICK, "train.per_device_train_batch_size=2")
    adapter = json.loads((tmp_path / "run/adapter_config.json").read_text())
    assert adapter["r"] == 4 and adapter["lora_alpha"] == 8
    resolved = load_sft_recipe(tmp_path / "run/recipe.yaml")
    assert [part["task"] for part in resolved.data.train] == ["shapes", "clocks"]
    assert len(check_sft_recipe(resolved).train_rows) == 6


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ([], "give either a recipe or --model and --data"),
        (["{recipe}", "--model", "x"], "give either a recipe or --model and --data"),
        (["--model", "x"], "--data is missing"),
        (["{recipe}", "--data", "x"], "--data and --eval go with --model"),
        (["{recipe}", "train.num_generations=2"], "unknown key train.num_generations; the section "
         "takes the fields of foveal.SFTConfig"),
        (["{recipe}", "train.pass_token=9"], "did you mean train.pass_tokens?"),
        (["{recipe}", "data.train={task: shapes}"], "data.train.n is missing"),
        (["{recipe}", "data.train=[3]"], "data.train is 3, which has no keys"),
        (["{recipe}", "train.eval_strategy=steps", "data.eval=null"], "nothing to evaluate on"),
        (["{recipe}", "data.train={task: cubes, n: 3}"], "no task is called 'cubes'"),
        (["{recipe}", "data.train={task: shapes, n: 3, difficulty: 9}"], "difficulty is 9"),
    ],
)  # fmt: skip
def test_a_wrong_input_is_one_line_with_the_remedy(recipe, arguments, line):
    given = [argument.replace("{recipe}", str(recipe)) for argument in arguments]
    assert line in run("sft", *given, code=2)


@pytest.mark.parametrize(
    "path",
    sorted((REPOSITORY / "examples/recipes/sft").glob("*.yaml")),
    ids=lambda path: path.stem,
)
def test_the_recipes_that_come_along_can_run(path):
    check_sft_recipe(load_sft_recipe(path))
