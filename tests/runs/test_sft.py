"""Supervised runs on tiny models: what they learn, how they split a step, how they go on."""

from __future__ import annotations

import json
import shutil
from typing import Any

import pytest
import torch
from transformers import TrainerCallback

from foveal import FastVisionModel, SFTConfig, SFTTrainer
from foveal.generate import fast_generate
from foveal.models.checkpointing import set_checkpointing
from foveal.tasks import drawn_rows, tagged
from foveal.testing import tiny
from foveal.train.masters import MasterAdamW
from foveal.train.sft_data import Examples
from tests.parity.our_side import assert_same as assert_close
from tests.runs.tiny_run import (
    WORDS,
    KeepGradients,
    adapted,
    assert_same,
    lines,
    moved,
    parameters,
    steps_logged,
)
from tests.samples import picture, row

QUIET: dict[str, Any] = {
    "per_device_train_batch_size": 4,
    "learning_rate": 1e-2,
    "logging_steps": 1,
    "save_strategy": "no",
    "report_to": "none",
    "disable_tqdm": True,
    "use_cpu": True,
}


def pairs(count: int) -> list[dict[str, Any]]:
    """Rows whose completions differ in length; every other one has a picture."""
    return [
        row(
            f"How many {word} things?",
            *([picture(i, 56, 56)] if i % 2 else []),
            completion=f"{word} " * (1 + i % 3),
            answer=word,
        )
        for i, word in enumerate(WORDS[:count])
    ]


def trainer(folder, *, model=None, rows=None, eval_rows=None, callbacks=None, **config):
    model, processor = model or tiny("qwen2_5_vl")
    return SFTTrainer(
        model=model,
        processing_class=processor,
        train_dataset=pairs(6) if rows is None else rows,
        eval_dataset=eval_rows,
        callbacks=callbacks,
        args=SFTConfig(**{"output_dir": str(folder), **QUIET, **config}),
    )


def test_all_weights_learn_rows_by_heart_and_answer_so(tmp_path):
    rows = pairs(4)
    run = trainer(
        tmp_path, rows=rows, eval_rows=rows, max_steps=40, eval_answers=4, eval_max_tokens=24
    )
    before = parameters(run.model)
    run.train()
    entries = steps_logged(tmp_path)
    assert entries[-1]["loss"] < 0.1 < 2 < entries[0]["loss"]
    changed = moved(before, parameters(run.model))
    assert any("visual" in name for name in changed) and any("lm_head" in n for n in changed)
    measured = run.evaluate()
    assert measured["eval_loss"] < 0.1
    # Greedy answers end where the turn does, or they would be judged wrong.
    answers = greedy_answers(run, rows)
    assert answers == [one["completion"] for one in rows]
    assert 0 <= measured["eval_accuracy"] <= 1
    assert measured["eval_accuracy"] == measured["eval_rewards/exact_answer/mean"]


def greedy_answers(run, rows):
    plain = [{"problem": r["problem"], "images": r["images"]} for r in rows]
    found = fast_generate(
        run.model, run.processing_class, plain, {"max_tokens": 32, "temperature": 0}
    )
    return [one.outputs[0].text for one in found]


@pytest.mark.parametrize(
    "split",
    [
        {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 3},
        {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 6},
        {"per_device_train_batch_size": 6, "pass_tokens": 40},
        {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2},
        {"per_device_train_batch_size": 6, "dataloader_num_workers": 2},
    ],
    ids=["micro-steps", "single rows", "pieces", "unequal micro-steps", "workers"],
)
def test_a_step_is_the_same_however_its_rows_are_split(tmp_path, split):
    def gradients(folder, **config):
        kept = KeepGradients()
        run = trainer(tmp_path / folder, callbacks=[kept], max_steps=1, **config)
        run.train()
        return kept.steps[0], steps_logged(tmp_path / folder)[0]

    whole, entry = gradients("whole", per_device_train_batch_size=6)
    ours, our_entry = gradients("split", **split)
    assert_close(ours, whole, 1e-5)
    for name in ("loss", "entropy", "completion_tokens", "num_tokens", "grad_norm"):
        assert our_entry[name] == pytest.approx(entry[name], rel=1e-4), name


def test_what_is_counted_is_completions_with_the_ends_of_their_turns(tmp_path):
    run = trainer(tmp_path, max_steps=1, per_device_train_batch_size=6)
    run.train()
    (entry,) = steps_logged(tmp_path)
    tokenizer = run.processing_class.tokenizer
    wanted = sum(len(tokenizer(r["completion"])["input_ids"]) + 1 for r in pairs(6))
    assert entry["completion_tokens"] == wanted
    assert entry["num_tokens"] > 2 * wanted


class Stops(TrainerCallback):
    """The power is cut after so many steps."""

    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **_):
        if state.global_step == self.step:
            raise OSError("the power is cut")


RUN = {
    "max_steps": 6,
    "per_device_train_batch_size": 1,
    "gradient_accumulation_steps": 2,
    "vision_learning_rate": 2e-2,
    "lr_scheduler_type": "cosine",
}


def half(model_and_processor):
    model, processor = model_and_processor
    return model.to(torch.bfloat16), processor


@pytest.mark.parametrize(("step", "workers"), [(2, 0), (3, 0), (4, 0), (4, 1)])
def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path, step, workers):
    """Three steps an epoch: step 2 is within the first, 3 between, 4 within the second."""

    def start(folder, **more):
        model = half(tiny("qwen2_5_vl"))
        set_checkpointing(model[0], True)
        return trainer(
            tmp_path / folder, model=model, dataloader_num_workers=workers, **RUN, **more
        )

    whole = start("whole")
    whole.train()
    with pytest.raises(OSError, match="power is cut"):
        start("cut", save_strategy="steps", save_steps=1, callbacks=[Stops(5)]).train()
    shutil.rmtree(tmp_path / "cut/checkpoint-5", ignore_errors=True)
    resumed = start("cut")
    resumed.train(resume_from_checkpoint=str(tmp_path / f"cut/checkpoint-{step}"))
    assert_same(parameters(resumed.model), parameters(whole.model))
    assert steps_logged(tmp_path / "cut") == steps_logged(tmp_path / "whole")


def test_a_run_shuffles_anew_in_each_epoch(tmp_path, monkeypatch):
    seen = []
    read = Examples.__getitem__
    monkeypatch.setattr(Examples, "__getitem__", lambda s, i: seen.append(i) or read(s, i))
    trainer(tmp_path, num_train_epochs=2, per_device_train_batch_size=3).train()
    first, second = seen[:6], seen[6:]
    assert sorted(first) == sorted(second) == list(range(6)) and first != second


def test_masters_keep_updates_that_16_bits_would_lose(tmp_path):
    """At this rate an update is below half a unit of the last place of nearly every weight."""

    def share_moved(folder, masters):
        run = trainer(
            tmp_path / folder,
            model=half(tiny("qwen2_5_vl")),
            max_steps=12,
            learning_rate=1e-5,
            lr_scheduler_type="constant",
            float32_masters=masters,
        )
        before = parameters(run.model)
        run.train()
        after = parameters(run.model)
        assert all(value.dtype == torch.bfloat16 for value in after.values())
        changed = sum(int((before[n] != after[n]).sum()) for n in before)
        return changed / sum(value.numel() for value in before.values())

    assert share_moved("masters", True) > 2 * share_moved("plain", False)


def test_masters_follow_adamw_in_float32():
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(8, 8, generator=generator).to(torch.bfloat16).requires_grad_()
    other = torch.randn(8, generator=generator).requires_grad_()
    copy, same = (x.detach().float().requires_grad_() for x in (weight, other))
    given = {"lr": 1e-3, "weight_decay": 0.1}
    ours = MasterAdamW([{"params": [weight]}, {"params": [other], "lr": 1e-2}], **given)
    plain = torch.optim.AdamW([{"params": [copy]}, {"params": [same], "lr": 1e-2}], **given)
    for _ in range(5):
        gradient = torch.randn(8, 8, generator=generator).to(torch.bfloat16)
        weight.grad, copy.grad = gradient, gradient.float()
        other.grad = same.grad = torch.ones(8)
        ours.step(), plain.step()
        assert torch.equal(weight, copy.to(torch.bfloat16)) and torch.equal(other, same)
    ours.zero_grad()
    assert weight.grad is None and other.grad is None
    with pytest.raises(ValueError, match="holds none of the 1 float32 masters"):
        ours.load_state_dict(plain.state_dict())


def test_the_tower_has_its_own_learning_rate(tmp_path):
    run = trainer(tmp_path, max_steps=2, vision_learning_rate=0.0, learning_rate=1e-2)
    before = parameters(run.model)
    run.train()
    changed = moved(before, parameters(run.model))
    assert changed and not any("visual" in name for name in changed)


def test_an_adapter_alone_is_trained_and_saved(tmp_path):
    run = trainer(tmp_path, model=adapted(), max_steps=2, save_strategy="steps", save_steps=2)
    before = {n: p.detach().clone() for n, p in run.model.named_parameters()}
    run.train()
    changed = [n for n, p in run.model.named_parameters() if not torch.equal(p, before[n])]
    assert changed and all("lora_" in name for name in changed)
    assert (tmp_path / "checkpoint-2/adapter_model.safetensors").is_file()


def test_drawn_rows_are_made_as_they_are_asked_for(tmp_path):
    rows = drawn_rows("shapes", 50_000, 7, (1, 2), tagged)
    seeds = []
    draw, rows.generate = rows.generate, lambda seed, level: seeds.append(seed) or draw(seed, level)
    run = trainer(
        tmp_path, rows=rows, max_steps=2, shuffle_dataset=False, per_device_train_batch_size=2
    )
    run.train()
    # The first row is also looked at when the run begins.
    first = 7 * 2**32
    assert seeds == [first, first, first + 1, first + 2, first + 3]


def test_pictures_that_are_drawn_once_do_not_crowd_others_out_of_the_cache(tmp_path):
    config = {"max_steps": 1, "per_device_train_batch_size": 2, "shuffle_dataset": False}
    run = trainer(tmp_path / "drawn", rows=drawn_rows("shapes", 50, 7, (1, 2), tagged), **config)
    run.train()
    assert run.reader.builder.pictures.bytes == 0
    run = trainer(tmp_path / "stored", rows=pairs(4), **config)
    run.train()
    assert run.reader.builder.pictures.bytes > 0


def test_every_step_is_logged_with_its_own_numbers(tmp_path):
    """They are read one step late; logged each step or in the mean, none may be lost."""
    config = {"max_steps": 5, "per_device_train_batch_size": 2, "learning_rate": 0.0}
    trainer(tmp_path / "each", **config).train()
    trainer(tmp_path / "mean", logging_steps=2, **config).train()
    each, mean = (
        [entry for entry in lines(tmp_path / folder / "metrics.jsonl") if "loss" in entry]
        for folder in ("each", "mean")
    )
    assert len(each) == 5
    assert all(one["time/train"] > 0 and one["tokens_per_second/train"] > 0 for one in each)
    for number, entry in enumerate(mean):
        pair = each[2 * number : 2 * number + 2]
        for name in ("loss", "completion_tokens"):
            assert entry[name] == pytest.approx(sum(one[name] for one in pair) / len(pair)), name


def test_a_saved_model_is_an_ordinary_checkpoint(tmp_path):
    run = trainer(tmp_path / "run", max_steps=1)
    run.train()
    run.save_model(str(tmp_path / "saved"))
    again, processor = FastVisionModel.from_pretrained(tmp_path / "saved", device="cpu")
    assert_same(parameters(again), parameters(run.model))
    assert processor.chat_template == run.processing_class.chat_template
    assert json.loads((tmp_path / "saved/config.json").read_text())["model_type"] == "qwen2_5_vl"
    assert lines(tmp_path / "run/metrics.jsonl")
