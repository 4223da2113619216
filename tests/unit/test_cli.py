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
from foveal.data import detect_format, load_rows
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
    assert all(name in shown for name in ("demo", "train", "eval", "data", "tasks", "doctor"))


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


def test_eval_shows_and_writes_a_result_that_another_is_compared_with(
    recipe, checkpoint, questions, tmp_path
):
    # Four answers to each of three questions: rewards 0, 1, 0, 1, ... have the mean 0.5.
    reward = f"{recipe.parent / 'rewards.py'}:by_turns"
    files = tmp_path / "results" / "one.json", tmp_path / "results" / "other.json"
    asked = ("--data", questions, "--max-tokens", 3, "--samples", 4, "--temperature", 1)
    judge = ("--reward", reward, "--reward", "exact_answer")
    shown = run("eval", checkpoint, *asked, *judge, "--out", files[0])
    assert "12 answers to 3 questions" in shown
    written = json.loads(files[0].read_text())
    means = {name: m["mean"] for name, m in written["summary"]["overall"]["metrics"].items()}
    assert (means["pass@1"], means["pass@2"], means["pass@4"]) == (0.5, pytest.approx(5 / 6), 1.0)
    assert (means["reward/by_turns"], means["reward/exact_answer"]) == (0.5, 0.0)
    settings = written["settings"]
    assert (settings["samples"], settings["temperature"], settings["rows"]) == (4, 1.0, 3)

    other = ("--backend", "transformers", "--rows", 2, "--seed", 5, "--k", 3)
    run("eval", checkpoint, *asked, *judge, *other, "--out", files[1])
    assert "pass@3" in json.loads(files[1].read_text())["summary"]["overall"]["metrics"]
    both = tmp_path / "both.json"
    shown = run("eval", "--compare", *files, "--out", both)
    assert "2 common prompts (1 only in the first, 0 in the second)" in " ".join(shown.split())
    assert json.loads(both.read_text())["metrics"]["pass@1"]["test"]["p_value"] == 1.0


def test_eval_makes_the_rows_of_a_task_and_groups_by_difficulty(checkpoint, tmp_path):
    file = tmp_path / "task.json"
    levels = ("--difficulty", 1, "--difficulty", 3, "--rows", 2)
    run("eval", checkpoint, "--data", "task:shapes", *levels, "--max-tokens", 2, "--out", file)
    summary = json.loads(file.read_text())["summary"]
    assert {name: group["prompts"] for name, group in summary["by_difficulty"].items()} == {
        "1": 2,
        "3": 2,
    }
    assert summary["overall"]["metrics"]["pass@1"]["method"] == "wilson"
    named = ("--reward", "task_reward", "--rows", 1, "--max-tokens", 2, "--out", file)
    run("eval", checkpoint, "--data", "task:shapes", *named)
    metrics = json.loads(file.read_text())["summary"]["overall"]["metrics"]
    assert "reward/task_reward" in metrics


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--reward", "exact_anwser"], "did you mean 'exact_answer'"),
        (["--reward", "exact_answer", "--samples", 2], "--samples is 2 at --temperature 0"),
        (["--reward", "exact_answer", "--k", 2], "--k is 2; it must lie in 1 to --samples"),
        (["--reward", "exact_answer", "--backend", "vlm"], "--backend is 'vlm'"),
        (["--reward", "exact_answer", "--difficulty", 1], "--difficulty is for task:NAME"),
        ([], "--reward is missing"),
        (["--compare", "a.json", "b.json"], "--compare runs no model"),
    ],
)
def test_eval_refuses_before_it_loads_weights(questions, arguments, words):
    assert words in run("eval", "no-such-model", "--data", questions, *arguments, code=2)


def test_eval_names_data_and_model_that_are_not_there(checkpoint, questions):
    asked = ("--reward", "exact_answer")
    assert "none.parquet" in run("eval", checkpoint, "--data", "none.parquet", *asked, code=2)
    assert "there is no folder './none'" in run(
        "eval", "./none", "--data", questions, *asked, code=2
    )
    assert "no task is called 'shape'" in run("eval", checkpoint, "--data", "task:shape", code=2)
    assert "give MODEL and --data" in run("eval", checkpoint, code=2)
    assert "a.json cannot be read" in run("eval", "--compare", "a.json", "b.json", code=2)


def test_eval_names_bad_rows_before_it_loads_weights(questions):
    (questions / "1.png").write_bytes(b"no picture")
    metadata = questions / "metadata.jsonl"
    metadata.write_text(metadata.read_text().replace('"answer": "3"', '"answer": ""', 1))
    shown = run("eval", "./none", "--data", questions, "--reward", "exact_answer", code=2)
    assert "2 of 3 rows cannot be used: row 0: it has no answer" in shown and "row 1:" in shown


# -- data


def test_data_inspect_fails_for_errors_and_for_warnings_if_strict(questions, checkpoint, tmp_path):
    page = tmp_path / "page.html"
    shown = run("data", "inspect", questions, "--model", checkpoint, "--page", page)
    assert "prompt, tokens" in shown and "Findings" not in shown and page.stat().st_size > 3000
    bound = ("--max-prompt-length", 10)
    shown = run("data", "inspect", questions, "--model", checkpoint, *bound, code=1)
    assert "3 of 3" in shown and "all prompts are longer" in " ".join(shown.split())
    metadata = questions / "metadata.jsonl"
    metadata.write_text(metadata.read_text() + metadata.read_text().splitlines()[0] + "\n")
    run("data", "inspect", questions)
    shown = run("data", "inspect", questions, "--strict", code=1)
    assert re.search(r"warning\W+3\W+it is the same as row 0", shown)
    (questions / "2.png").unlink()
    assert re.search(r"error\W+2\W", run("data", "inspect", questions, code=1))
    assert "--model" in run("data", "inspect", questions, *bound, code=2)


# -- demo, doctor


def test_data_filter_writes_rows_that_training_can_read(recipe, checkpoint, questions, tmp_path):
    reward = ("--reward", f"{recipe.parent / 'rewards.py'}:by_turns")
    out = tmp_path / "kept" / "rows.jsonl"
    asked = ("--model", checkpoint, "--max-tokens", 2, "--n", 4)
    shown = run("data", "filter", questions, *asked, *reward, "--rows", 2, "--out", out)
    assert "2 rows: kept 2, never 0, always 0" in shown
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["pass_rate"] for row in rows] == [0.5, 0.5]
    assert (out.parent / rows[0]["image"]).is_file()
    for wrong, words in (
        (("--out", "rows.csv"), "name a .parquet or a .jsonl file"),
        (("--out", out, "--above", 1), "0 <= above < below"),
        (("--out", out, "--temperature", 0), "greedy answers are all the same"),
    ):
        assert words in run("data", "filter", questions, *asked, *reward, *wrong, code=2)


def test_data_convert_writes_the_format_that_is_named(questions, tmp_path):
    out = tmp_path / "verl.parquet"
    assert "3 rows in" in run("data", "convert", questions, "--to", "verl", "--out", out)
    source = load_rows(out)
    assert detect_format(source.rows[0]) == "verl" and len(source[2].images) == 1
    said = run("data", "convert", questions, "--to", "trl", "--out", out, code=2)
    assert "there is no format 'trl'; known are" in said


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
