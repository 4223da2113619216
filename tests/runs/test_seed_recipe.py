"""The recipe that users bring along runs as it stands, on a checkpoint folder and a data file."""

from __future__ import annotations

import ast
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
from datasets import Dataset, Features, Image, Sequence, Value

from foveal import FastVisionModel
from foveal.testing import save_tiny
from tests.runs.tiny_run import lines, parameters
from tests.samples import picture

SCRIPT = Path(__file__).resolve().parents[2] / "examples" / "seed_recipe.py"
SEED_ARGUMENTS = {
    "from_pretrained": (
        "model_name max_seq_length load_in_4bit fast_inference gpu_memory_utilization"
    ),
    "get_peft_model": (
        "finetune_vision_layers finetune_language_layers finetune_attention_modules "
        "finetune_mlp_modules r lora_alpha use_gradient_checkpointing random_state"
    ),
    "GRPOConfig": (
        "importance_sampling_level loss_type epsilon epsilon_high num_generations "
        "max_prompt_length max_completion_length temperature beta optim"
    ),
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The script's own process, and the run folder that it left."""
    folder = tmp_path_factory.mktemp("seed")
    model = save_tiny(folder / "model", "qwen2_5_vl")
    data = folder / "questions.parquet"
    write_questions(data)
    options = ["--output-dir", str(folder / "run")]
    options += ["--max-steps", "1", "--max-completion-length", "6"]
    process = subprocess.run(
        [sys.executable, str(SCRIPT), str(model), str(data), *options],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        cwd=folder,
    )
    assert process.returncode == 0, process.stderr[-3000:]
    return process.stdout, folder / "run"


def write_questions(path):
    rows = [
        {
            "images": [picture(i, 120, 60)],
            "problem": f"<image>How many circles touch box {i}?" + " Look twice." * 90 * (i == 4),
            "answer": str(i),
        }
        for i in range(5)
    ]
    kinds = {"images": Sequence(Image()), "problem": Value("string"), "answer": Value("string")}
    Dataset.from_list(rows, features=Features(kinds)).to_parquet(str(path))


def test_the_script_says_what_it_could_not_do_as_asked(finished):
    said, _ = finished
    assert "no CUDA device: loading in float32 instead of 4-bit" in said
    assert "optim=adamw_8bit is replaced by adamw_torch" in said


def test_the_step_is_logged_with_both_rewards_and_its_pictures(finished):
    said, folder = finished
    entry = lines(folder / "metrics.jsonl")[0]
    assert math.isfinite(entry["loss"]) and math.isfinite(entry["grad_norm"])
    assert entry["rewards/exact_answer/mean"] == 0
    assert "rewards/close_and_brief/mean" in entry
    rollouts = lines(folder / "rollouts.jsonl")
    # Four prompts of eight completions; the fifth has more than 1,024 tokens.
    assert len(rollouts) == 32 and {line["row"] for line in rollouts} == {0, 1, 2, 3}
    assert "dropped 1 of 5 prompts longer than max_prompt_length=1024" in " ".join(said.split())
    assert len(list((folder / "images").iterdir())) == 4


def test_the_saved_adapter_loads_on_its_base(finished):
    _, folder = finished
    model, _ = FastVisionModel.from_pretrained(folder / "adapter", device="cpu")
    trained = parameters(model)
    assert trained and all("visual" not in name for name in trained)


def test_the_script_has_every_argument_of_the_recipe_and_fits_a_screen():
    source = SCRIPT.read_text()
    calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    given = {
        getattr(call.func, "attr", getattr(call.func, "id", None)): {
            keyword.arg for keyword in call.keywords
        }
        for call in calls
    }
    for function, names in SEED_ARGUMENTS.items():
        assert set(names.split()) <= given[function], function
    assert len(source.splitlines()) < 60
