"""Training on real questions that people asked about real data sets' pictures."""

from __future__ import annotations

import math

import pytest
from datasets import Dataset
from PIL import Image

from foveal.data import PromptBuilder, load_rows
from foveal.models.forward import completion_logprobs
from foveal.testing import TINY_FAMILIES
from tests.runs.tiny_run import adapted, lines, mean_byte, moved, parameters, trainer

REWARDS = ["exact_answer", "think_answer_format", mean_byte]
STEPS = {"qwen2_5_vl": 3}


@pytest.fixture(scope="module")
def questions(data_folder):
    return Dataset.from_parquet(str(data_folder / "nlvr" / "train.parquet")).select(range(12))


@pytest.mark.parametrize("family", list(TINY_FAMILIES))
def test_steps_on_nlvr_train_tower_and_decoder_and_leave_their_pictures(
    tmp_path, questions, family
):
    model, processor = adapted(family, finetune_vision_layers=True)
    before = parameters(model)
    steps = STEPS.get(family, 1)
    run = trainer(
        tmp_path,
        model=(model, processor),
        rows=questions,
        reward_funcs=REWARDS,
        max_steps=steps,
        max_completion_length=8,
        log_completions=True,
    )
    run.train()

    entries = [entry for entry in lines(tmp_path / "metrics.jsonl") if "loss" in entry]
    assert [entry["step"] for entry in entries] == list(range(1, steps + 1))
    for entry in entries:
        assert math.isfinite(entry["loss"]) and entry["grad_norm"] > 0
        assert 0 <= entry["rewards/exact_answer/mean"] <= 1
        assert entry["sampling/sampling_logp_difference/max"] < 1e-4
    # The first step moves no A matrix: the B matrix behind it is still zero.
    changed = {name for name in moved(before, parameters(model)) if "lora_B" in name}
    tower = {name for name in changed if "visual" in name or "vision" in name}
    assert tower and changed - tower

    rollouts = lines(tmp_path / "rollouts.jsonl")
    assert len(rollouts) == 4 * steps
    for line in rollouts:
        source = questions[line["row"]]
        assert line["prompt"] == source["problem"] and line["answer"] == source["answer"]
        assert set(line["rewards"]) == {"exact_answer", "think_answer_format", "mean_byte"}
        (name,) = line["images"]
        with Image.open(tmp_path / name) as picture:
            assert picture.convert("RGB").tobytes() == source["images"][0].tobytes()
    named = {name for line in rollouts for name in line["images"]}
    assert {f"images/{path.name}" for path in (tmp_path / "images").iterdir()} == named


def test_another_picture_changes_what_the_model_thinks_of_an_answer(questions, tiny_model):
    model, processor = tiny_model
    builder = PromptBuilder(processor, image_token_id=model.config.image_token_id)
    rows = load_rows(questions)
    other = next(i for i in range(1, 12) if rows[i].images[0].size == rows[0].images[0].size)
    first = builder.build(rows[0], 0)
    swapped = questions[0] | {"images": questions[other]["images"]}
    second = builder.build(load_rows([swapped])[0], 0)
    assert first.ids == second.ids
    answer = processor.tokenizer.encode("true")
    logprob_BT = completion_logprobs(
        model, [first, second], [answer, answer], temperature=1.0
    ).logprob_BT
    assert (logprob_BT[0] - logprob_BT[1]).abs().max() > 1e-3
