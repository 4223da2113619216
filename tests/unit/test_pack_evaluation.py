"""Every pack of real data is inspected without a false alarm, and a tiny model can be asked it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from foveal.cli import app
from foveal.data import PromptBuilder, load_rows, write_rows
from foveal.eval_result import read_result
from foveal.inspection import inspect_rows
from foveal.models.load import load_processor
from foveal.report.inspection import facts
from foveal.testing import save_tiny

REPEATED = {"nlvr/train": 1, "puzzlevqa/train": 16, "puzzlevqa/validation": 8}
"""Rows that are the same as an earlier one: text, pixels and answer."""
PACKS = {
    "bccd/train": {"boxes": "boxes_iou", "count": "number_answer"},
    "dynamath/train": {"choice": "choice_letter", "numeric": "number_within(rel_tol=0.01)"},
    "mathvision/train": {"numeric": "number_answer"},
    "mmk12/train": {
        "numeric": "number_answer",
        "expression": "math_answer",
        "multi": "math_answer",
        "text": "exact_answer",
    },
    "nlvr/train": {"boxes": "boxes_iou", "count": "number_answer", "true_false": "exact_answer"},
    "puzzlevqa/train": {"choice": "choice_letter"},
    "puzzlevqa/validation": {"choice": "choice_letter"},
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("tiny"), "qwen2_5_vl")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    from datasets import config

    monkeypatch.setattr(config, "HF_DATASETS_CACHE", tmp_path / "cache")


def run(*arguments: object, code: int = 0) -> str:
    result = CliRunner().invoke(app, list(map(str, arguments)))
    assert result.exit_code == code, (result.output, result.exception)
    return " ".join(result.output.split())


@pytest.mark.parametrize("pack", PACKS)
def test_a_pack_is_inspected_without_a_false_alarm(data_folder, checkpoint, pack):
    processor, image_token_id = load_processor(checkpoint)
    builder = PromptBuilder(processor, image_token_id=image_token_id)
    source = load_rows(data_folder / f"{pack}.parquet")
    # The tokens of thousands of rows take minutes; pixels and text of all rows seconds.
    seen = inspect_rows(source)
    assert {finding.kind for finding in seen.findings} <= {"duplicate"} and not seen.would_fail
    assert len(seen.findings) == REPEATED.get(pack, 0)
    assert seen.formats == {"EasyR1": len(source)} and set(seen.answers) == set(PACKS[pack])
    assert seen.stored == {"WEBP RGB": len(source)} and seen.pictures_per_row == {1: len(source)}
    some = inspect_rows(load_rows([source.rows[row] for row in range(8)]), builder)
    assert some.findings == [] and len(some.tokens) == len(some.picture_tokens) == 8
    prompts = [builder.build(source[row], row) for row in range(8)]
    assert some.picture_tokens == [prompt.images[0].num_tokens for prompt in prompts]
    assert some.tokens == [len(prompt.ids) for prompt in prompts]
    assert dict(facts(some)).keys() >= {"formats", "pictures a row", "picture, tokens"}


@pytest.mark.parametrize("pack", PACKS)
def test_a_pack_can_be_put_to_a_model_and_judged_by_task(data_folder, checkpoint, tmp_path, pack):
    # Two rows of each task in one small file with their pictures; the whole pack takes seconds.
    source, chosen = load_rows(data_folder / f"{pack}.parquet"), []
    for task in PACKS[pack]:
        rows = (n for n in range(len(source)) if source.rows[n]["task"] == task)
        chosen += [next(rows), next(rows)]
    part = tmp_path / "part.parquet"
    write_rows((source.rows[number] for number in chosen), part)
    rewards = [o for t, name in PACKS[pack].items() for o in ("--reward", f":{t}={name}")]
    out = tmp_path / "result.json"
    page = tmp_path / "page.html"
    said = run("data", "inspect", part, "--model", checkpoint, "--page", page, *rewards)
    assert "Findings" not in said
    text = page.read_text()
    assert len(re.findall(r"<img src=\"data:image/jpeg;base64,", text)) == len(chosen)
    said = run(
        "eval", checkpoint, "--data", part, *rewards, "--max-tokens", 3, "--batch-size", 8,
        "--out", out,
    )  # fmt: skip
    assert f"{len(chosen)} answers to {len(chosen)} questions" in said
    result = read_result(out)
    tasks = json.loads(out.read_text())["summary"]["by_task"]
    assert {task: group["prompts"] for task, group in tasks.items()} == dict.fromkeys(
        PACKS[pack], 2
    )
    assert all(prompt.samples[0].rewards[prompt.judge] is not None for prompt in result.prompts)


def test_every_pack_is_one_source_of_a_single_run(data_folder, checkpoint, tmp_path):
    data = [option for pack in PACKS for option in ("--data", data_folder / f"{pack}.parquet")]
    out = tmp_path / "result.json"
    judge = ("--reward", "exact_answer", "--reward", "mathvision/train=number_answer")
    run("eval", checkpoint, *data, *judge, "--rows", 2, "--max-tokens", 2, "--out", out)
    groups = json.loads(out.read_text())["summary"]["by_source"]
    assert {name: group["prompts"] for name, group in groups.items()} == dict.fromkeys(PACKS, 2)
