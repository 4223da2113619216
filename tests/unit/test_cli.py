"""The command line: quick to start, whole runs of a tiny model, one line for a wrong input."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

import foveal
from foveal import doctor
from foveal.cli import _is_about_input, app
from foveal.testing import save_tiny
from tests.conftest import REPOSITORY
from tests.samples import picture

RECIPE = """
model: {{model_name: {checkpoint}, device: cpu}}
lora: {{r: 2, finetune_vision_layers: false}}
data: {{train: {{task: shapes, n: 4, difficulty: 1}}}}
rewards: [rewards.py:by_turns]
train:
  output_dir: {run}
  use_cpu: true
  num_generations: 2
  per_device_train_batch_size: 4
  max_completion_length: 3
  learning_rate: 1e-2
  lr_scheduler_type: constant
  max_steps: 1
  save_steps: 1
  logging_steps: 1
  report_to: none
"""
REWARDS = """
def by_turns(completions, **columns):
    return [float(row % 2) for row in range(len(completions))]

def too_few(completions, **columns):
    return [1.0]
"""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("tiny"), "qwen2_5_vl")


@pytest.fixture
def recipe(tmp_path, checkpoint) -> Path:
    (tmp_path / "rewards.py").write_text(REWARDS)
    path = tmp_path / "tiny.yaml"
    path.write_text(RECIPE.format(checkpoint=checkpoint, run=tmp_path / "run"))
    return path


@pytest.fixture
def questions(tmp_path) -> Path:
    folder = tmp_path / "questions"
    folder.mkdir()
    rows = []
    for number in range(3):
        picture(number, 56, 56).save(folder / f"{number}.png")
        rows.append({"file_name": f"{number}.png", "problem": "How many?", "answer": "3"})
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def run(*arguments: object, code: int = 0) -> str:
    result = CliRunner().invoke(app, list(map(str, arguments)))
    assert result.exit_code == code, (result.output, result.exception)
    return result.output


def logged_steps(folder: Path) -> list[int]:
    entries = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [entry["step"] for entry in entries if "loss" in entry]


def trained_tensors(folder: Path) -> list[torch.Tensor]:
    """The halves of an adapter that start at zero."""
    tensors = load_file(folder / "adapter_model.safetensors")
    return [tensor for name, tensor in tensors.items() if "lora_B" in name]


# -- start


def test_help_and_messages_wait_for_no_torch():
    script = """
import sys, time
start = time.process_time()
import foveal.cli
print(time.process_time() - start, "torch" in sys.modules, "transformers" in sys.modules)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=REPOSITORY
    )
    seconds, *loaded = done.stdout.split()
    assert loaded == ["False", "False"]
    assert float(seconds) < 1


def test_help_lists_the_commands():
    shown = run("--help")
    assert all(name in shown for name in ("demo", "train", "eval", "doctor", "version"))


def test_version_is_the_packages():
    assert run("version").strip() == foveal.__version__


# -- train


def test_train_leaves_a_trained_adapter_and_the_resolved_recipe(recipe, tmp_path):
    shown = run("train", recipe, "train.seed=7")
    folder = tmp_path / "run"
    assert str(folder) in shown.replace("\n", "")
    assert any(tensor.any() for tensor in trained_tensors(folder))
    written = (folder / "recipe.yaml").read_text()
    assert "seed: 7" in written and f"{tmp_path / 'rewards.py'}:by_turns: 1.0" in written


def test_resume_goes_on_where_the_run_stopped(recipe, tmp_path):
    folder = tmp_path / "run"
    run("train", recipe)
    first = trained_tensors(folder)
    assert logged_steps(folder) == [1]
    # The copy in the run folder is enough to go on.
    run("train", folder / "recipe.yaml", "train.max_steps=2", "--resume")
    assert logged_steps(folder) == [1, 2]
    assert (folder / "checkpoint-1").is_dir() and (folder / "checkpoint-2").is_dir()
    kept = load_file(folder / "checkpoint-1" / "adapter_model.safetensors")
    assert all(torch.equal(kept[name], t) for name, t in _by_name(folder, first).items())
    assert "max_steps: 2" in (folder / "recipe.yaml").read_text()


def _by_name(folder: Path, tensors: list[torch.Tensor]) -> dict[str, torch.Tensor]:
    names = [n for n in load_file(folder / "adapter_model.safetensors") if "lora_B" in n]
    return dict(zip(names, tensors, strict=True))


def test_resume_without_a_checkpoint_says_so(recipe):
    assert "there is no checkpoint in" in run("train", recipe, "--resume", code=2)


def test_a_dry_run_shows_the_recipe_and_trains_nothing(recipe, tmp_path):
    shown = run("train", recipe, "lora.r=3", "--dry-run")
    assert "r: 3" in shown and "output_dir" in shown
    assert "4 from the task shapes" in shown and "2 prompts x 2 completions" in shown
    assert not (tmp_path / "run").exists()


def test_a_dry_run_finds_a_missing_reward(recipe):
    shown = run("train", recipe, "rewards=[exact_anwser]", "--dry-run", code=2)
    assert "did you mean 'exact_answer'" in shown


# -- errors


def test_a_wrong_input_is_one_line_and_exit_code_2(recipe):
    shown = run("train", recipe, "train.max_stesp=1", code=2)
    assert shown == f"{recipe}: unknown key train.max_stesp; did you mean train.max_steps?\n"


def test_the_traceback_flag_lets_the_error_through(recipe):
    result = CliRunner().invoke(app, ["--traceback", "train", str(recipe), "train.max_stesp=1"])
    assert isinstance(result.exception, ValueError)


def test_a_reward_that_fails_in_training_is_named(recipe):
    override = f"rewards=[{recipe.parent / 'rewards.py'}:too_few]"
    shown = run("train", recipe, override, code=2)
    assert "the reward function 'too_few' returned 1 rewards for 4 completions" in shown


def test_a_defect_is_no_wrong_input():
    with pytest.raises(ValueError) as elsewhere:
        int("x")
    with pytest.raises(ValueError) as ours:
        foveal.testing.tiny("no such family")
    assert (_is_about_input(elsewhere.value), _is_about_input(ours.value)) == (False, True)


# -- eval


def test_eval_shows_the_means_and_writes_them(recipe, checkpoint, questions, tmp_path):
    # Four answers to each of three questions: rewards 0, 1, 0, 1, ... have the mean 0.5.
    reward = f"{recipe.parent / 'rewards.py'}:by_turns"
    file = tmp_path / "results" / "eval.json"
    shown = run(
        *("eval", checkpoint, questions, "--reward", "exact_answer", "--reward", reward),
        *("--n", 4, "--temperature", 1, "--max-tokens", 3, "--json", file),
    )
    assert re.search(r"exact_answer\W+0\.0000", shown) and re.search(r"by_turns\W+0\.5000", shown)
    written = json.loads(file.read_text())
    assert written["rewards"] == {"exact_answer": 0.0, "by_turns": 0.5}
    assert (written["prompts"], written["completions"]) == (3, 12)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--reward", "exact_anwser"], "did you mean 'exact_answer'"),
        (["--reward", "exact_answer", "--n", 2], "--n is 2 at --temperature 0"),
    ],
)
def test_eval_refuses_before_it_loads_weights(questions, arguments, words):
    assert words in run("eval", "no-such-model", questions, *arguments, code=2)


def test_eval_names_data_and_model_that_are_not_there(checkpoint, questions):
    asked = ("--reward", "exact_answer")
    assert "none.parquet" in run("eval", checkpoint, "none.parquet", *asked, code=2)
    assert "there is no folder './none'" in run("eval", "./none", questions, *asked, code=2)


# -- demo, doctor


def test_demo_passes_its_options_on(monkeypatch, tmp_path):
    called = {}
    fake = types.ModuleType("foveal.demo")
    fake.run_demo = lambda **settings: called.update(settings)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "foveal.demo", fake)
    run("demo", "--output-dir", tmp_path, "--seed", 3)
    assert called == {"output_dir": tmp_path, "seed": 3}


def test_doctor_shows_versions_and_the_number_format():
    shown = run("doctor")
    assert torch.__version__.partition("+")[0] in shown
    assert ("float32" in shown) == (not torch.cuda.is_available())
    assert "free disk, here" in shown


def test_doctor_names_the_command_for_what_is_missing(monkeypatch):
    monkeypatch.setitem(doctor.EXTRAS, "quant", (["no-such-package"], "4-bit weights"))
    monkeypatch.setitem(doctor.REQUIRED, "peft", "999.0")
    found = {finding.topic: finding for finding in doctor.examine()}
    assert found["extra quant"].remedy == 'pip install "foveal[quant]": 4-bit weights'
    assert found["peft"].is_fatal and "older than 999.0" in found["peft"].state
    assert found["peft"].remedy == 'pip install --upgrade "peft>=999.0"'
    assert run("doctor", code=1)


@pytest.mark.parametrize(
    ("version", "fatal"),
    [((3, 9, 19), True), ((3, 10, 0), False), ((3, 13, 9), False), ((3, 14, 0), True)],
)
def test_doctor_knows_the_pythons_that_are_supported(version, fatal):
    assert doctor._python(version).is_fatal == fatal


def test_versions_compare_as_numbers():
    assert doctor._numbers("2.14.1+cu130") == (2, 14, 1)
    assert doctor._numbers("2.9") < doctor._numbers("2.11.0rc1")


def test_doctor_asks_for_what_the_package_declares():
    tomllib = pytest.importorskip("tomllib")
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    oldest = dict(re.match(r"([\w-]+)>=([\d.]+)", d).groups() for d in project["dependencies"])
    assert {name: oldest[name] for name in doctor.REQUIRED} == doctor.REQUIRED
    extras = {k: v for k, v in project["optional-dependencies"].items() if k != "dev"}
    declared = {name: [re.split("[>=]", p)[0] for p in given] for name, given in extras.items()}
    assert {name: packages for name, (packages, _) in doctor.EXTRAS.items()} == declared
