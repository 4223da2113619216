"""Runs of a few steps: the reward rises, and every setting does what its name says."""

from __future__ import annotations

import asyncio
import math

import pytest
import torch

from foveal.models.forward import completion_logprobs
from foveal.rewards.call import RewardError
from foveal.rollout import ScriptedBackend
from foveal.types import Completion, Group
from tests.runs.tiny_run import (
    KeepGradients,
    adapted,
    assert_same,
    lines,
    mean_byte,
    moved,
    parameters,
    questions,
    steps_logged,
    trainer,
)
from tests.samples import random_completions


def ended(prompt, n):
    """Completions of four different lengths, each ended by the policy."""
    return ["abcdefgh"[: 1 + (prompt.index + i) % 4] for i in range(n)]


def length(completion_ids, **_):
    return [float(len(ids)) for ids in completion_ids]


def one_step(folder, script=ended, reward_funcs=length, **config):
    """One step on written completions; its entry in metrics.jsonl and the trainer."""
    run = trainer(folder, script=script, reward_funcs=reward_funcs, max_steps=1, **config)
    run.train()
    (entry,) = steps_logged(folder)
    return entry, run


def test_the_reward_rises_to_nearly_its_maximum(tmp_path):
    def low_bytes(completion_ids, **_):
        return [sum(token < 64 for token in ids) / len(ids) for ids in completion_ids]

    model, processor = adapted()
    with torch.no_grad():
        # The random head is so flat that no hidden state could make one token likely.
        model.get_base_model().lm_head.weight.mul_(6)
    run = trainer(
        tmp_path,
        model=(model, processor),
        rows=questions(2),
        reward_funcs=low_bytes,
        num_generations=8,
        per_device_train_batch_size=16,
        max_completion_length=3,
        lr_scheduler_type="constant",
        max_steps=6,
    )
    run.train()
    rewards = [entry["reward"] for entry in steps_logged(tmp_path)]
    assert rewards[0] < 0.6
    assert sum(rewards[-2:]) / 2 > 0.9


def test_evaluation_reports_rewards_and_leaves_the_run_as_it_is(tmp_path):
    with_it = trainer(
        tmp_path / "with",
        max_steps=2,
        eval_rows=questions(3),
        eval_strategy="steps",
        eval_steps=1,
        eval_on_start=True,
    )
    with_it.train()
    without = trainer(tmp_path / "without", max_steps=2)
    without.train()
    assert_same(parameters(with_it.model), parameters(without.model))
    assert steps_logged(tmp_path / "with") == steps_logged(tmp_path / "without")

    entries = [e for e in lines(tmp_path / "with" / "metrics.jsonl") if "eval_reward" in e]
    assert [entry["step"] for entry in entries] == [0, 1, 2]
    for entry in entries:
        assert entry["eval_rewards/mean_byte/mean"] == entry["eval_reward"]
        assert 0 < entry["eval_reward"] < 1 and entry["eval_completions/mean_length"] <= 5
    assert entries[0]["eval_reward"] != entries[2]["eval_reward"], "the policy has changed"
    # The same weights give the same figures: evaluation draws from its own seed.
    again = with_it.evaluate()
    assert again["eval_reward"] == entries[2]["eval_reward"]


def test_evaluation_averages_over_the_batches_that_know_a_number(tmp_path):
    """A reward that skips a whole batch, and a metric logged in one only, are no NaN."""

    def picky(completions, problem, log_metric, **_):
        wanted = ["blue" in text for text in problem]
        if any(wanted):
            log_metric("blue_seen", sum(wanted))
        return [1.0 if is_wanted else None for is_wanted in wanted]

    run = trainer(
        tmp_path,
        script=ended,
        reward_funcs=[length, picky],
        eval_rows=questions(3),
        per_device_eval_batch_size=2,
    )
    metrics = run.evaluate()
    assert metrics["eval_rewards/picky/mean"] == 1.0
    assert metrics["eval_blue_seen"] == 2.0
    # Completions of 1 + (row + i) % 4 bytes and the stop token.
    assert metrics["eval_rewards/length/mean"] == pytest.approx((2.5 + 3.5 + 4.5) / 3)


@pytest.mark.parametrize("redraw", [False, True])
def test_dynamic_sampling_takes_other_prompts_for_groups_without_spread(tmp_path, redraw):
    def script(prompt, n):
        return ["abc"[: 1 + i % 2] if prompt.index == 5 else "same" for i in range(n)]

    entry, _ = one_step(
        tmp_path,
        script,
        dynamic_sampling=redraw,
        max_resample_times=30,
        shuffle_dataset=False,
        log_completions=True,
    )
    rows = {line["row"] for line in lines(tmp_path / "rollouts.jsonl")}
    assert rows == ({5} if redraw else {0, 1})
    assert entry["frac_reward_zero_std"] == (0.0 if redraw else 1.0)
    assert (entry["grad_norm"] > 0) == redraw
    assert (entry.get("dynamic_sampling/redrawn_groups", 0) >= 2) == redraw


def test_an_entropy_bonus_is_taken_from_the_loss(tmp_path):
    entry, _ = one_step(tmp_path, entropy_coef=0.25)
    assert entry["entropy"] > 1
    assert entry["loss"] == pytest.approx(entry["policy_loss"] - 0.25 * entry["entropy"], abs=1e-5)


def test_only_the_tokens_of_highest_entropy_take_part(tmp_path):
    entry, _ = one_step(tmp_path, top_entropy_quantile=0.3)
    assert entry["entropy_kept"] > entry["entropy"]
    assert entry["grad_norm"] > 0


def test_masked_truncated_completions_have_no_gradient(tmp_path):
    def cut(prompt, n):
        return ["much too long" if i else "a" for i in range(n)]

    def only_cut_ones(completion_ids, **_):
        return [float(len(ids) == 5) for ids in completion_ids]

    watch = KeepGradients()
    entry, _ = one_step(
        tmp_path, cut, only_cut_ones, mask_truncated_completions=True, callbacks=[watch]
    )
    # Of each group one is cut at 5 tokens and one ended after 2.
    assert entry["completions/masked_tokens"] == 10
    assert entry["completions/clipped_ratio"] == 0.5
    assert entry["completions/mean_terminated_length"] == 2
    assert entry["grad_norm"] > 0, "the others of the group still learn"

    watch_none = KeepGradients()
    one_step(
        tmp_path / "all cut",
        lambda prompt, n: ["much too long", "also too long"],
        mean_byte,
        mask_truncated_completions=True,
        callbacks=[watch_none],
    )
    assert all(not gradient.any() for gradient in watch_none.steps[0].values())


def test_scaling_of_rewards_changes_the_gradient_by_the_deviation(tmp_path):
    def group_of_its_own_spread(completion_ids, problem, **_):
        wide = ["red" in text for text in problem]
        return [
            float(len(ids)) * (10 if w else 1) for ids, w in zip(completion_ids, wide, strict=True)
        ]

    norms = {}
    for scale in ("group", "batch", "none"):
        entry, _ = one_step(
            tmp_path / scale,
            reward_funcs=group_of_its_own_spread,
            scale_rewards=scale,
            shuffle_dataset=False,
        )
        norms[scale] = entry["grad_norm"]
        assert math.isfinite(entry["loss"])
    # Lengths 2, 3 and 3, 4; rewards 20, 30 and 3, 4: deviations 7.07 and 0.71, of all 13.2.
    assert norms["none"] / norms["batch"] == pytest.approx(13.2, rel=0.01)
    assert norms["none"] / norms["group"] > 3


def test_several_passes_over_a_rollout_move_the_ratio(tmp_path):
    run = trainer(
        tmp_path, script=ended, reward_funcs=length, num_iterations=2, max_steps=2, epsilon=1e-4
    )
    run.train()
    first, second = steps_logged(tmp_path)
    assert first["clip_ratio/region_mean"] == 0 and second["clip_ratio/region_mean"] > 0
    assert "reward" in first and "reward" not in second, "one rollout serves both steps"


def test_weights_and_missing_rewards_add_up_as_stated(tmp_path):
    def for_red_only(problem, **_):
        return [4.0 if "red" in text else None for text in problem]

    async def slow_bonus(completion_ids, **_):
        await asyncio.sleep(0)
        return [float(len(ids) > 3) for ids in completion_ids]

    entry, _ = one_step(
        tmp_path,
        reward_funcs=[length, for_red_only, slow_bonus],
        reward_weights=[1.0, 0.5, 2.0],
        shuffle_dataset=False,
        log_completions=True,
    )
    # Rows 0 (red) and 1: lengths 2, 3 and 3, 4 with the stop token.
    assert entry["rewards/length/mean"] == 3.0
    assert entry["rewards/for_red_only/mean"] == 4.0
    assert entry["rewards/slow_bonus/mean"] == 0.25
    assert entry["reward"] == pytest.approx(((2 + 2) + (3 + 2) + 3 + (4 + 2)) / 4)
    written = [line["rewards"]["for_red_only"] for line in lines(tmp_path / "rollouts.jsonl")]
    assert written == [4.0, 4.0, None, None]


def raises(completions, **_):
    if any("ab" in c[0]["content"] for c in completions):
        raise OSError("judge is down")
    return [1.0] * len(completions)


def too_few(completions, **_):
    return [1.0] * (len(completions) - 1)


def not_a_number(completions, **_):
    return [1.0, 2.0, math.nan, 3.0]


@pytest.mark.parametrize(
    ("reward", "message"),
    [
        (raises, r"'raises' raised OSError: judge is down \(first failing row 1 of 4"),
        (too_few, r"'too_few' returned 3 rewards for 4 completions"),
        (not_a_number, r"'not_a_number' returned nan for row 2 of 4"),
    ],
)
def test_a_bad_reward_is_named_with_its_row_before_anything_is_learnt(tmp_path, reward, message):
    run = trainer(
        tmp_path, script=ended, reward_funcs=[length, reward], shuffle_dataset=False, max_steps=1
    )
    before = parameters(run.model)
    with pytest.raises(RewardError, match=message):
        run.train()
    assert not moved(before, parameters(run.model))
    assert all(p.grad is None for p in run.model.parameters())


@pytest.mark.parametrize("level", ["token", "sequence"])
def test_a_placeholder_in_a_completion_is_masked_and_nothing_else(tmp_path, family, level):
    model, processor = adapted(family)
    texts = random_completions([6, 5])
    texts[0][2] = model.config.image_token_id
    rewards = {6: 1.0, 5: 0.0}
    watch = KeepGradients()
    entry, run = one_step(
        tmp_path,
        lambda prompt, n: texts,
        lambda completion_ids, **_: [rewards[len(ids)] for ids in completion_ids],
        model=(model, processor),
        rows=questions(2)[1:],
        per_device_train_batch_size=2,
        max_completion_length=6,
        loss_type="grpo",
        importance_sampling_level=level,
        scale_rewards="none",
        learning_rate=0.0,
        max_grad_norm=0.0,
        callbacks=[watch],
    )
    assert entry["completions/masked_tokens"] == 1
    assert math.isfinite(entry["loss"])

    # On policy both levels have one gradient: advantage times the mean over the counted tokens.
    (prompt,) = run.prompts.prompts([0])
    logprob_BT = completion_logprobs(model, [prompt] * 2, texts, temperature=1.0).logprob_BT
    counted = [t for t in range(6) if t != 2]
    model.zero_grad()
    (-(0.5 * logprob_BT[0, counted].mean() - 0.5 * logprob_BT[1, :5].mean()) / 2).backward()
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(
                watch.steps[0][name], parameter.grad, atol=1e-6, rtol=1e-4, msg=name
            )


@pytest.mark.parametrize("loss_type", ["bnpo", "grpo"])
def test_rows_one_by_one_give_the_update_of_all_at_once(tmp_path, loss_type):
    shapes = {
        "all at once": {"per_device_train_batch_size": 8},
        "by rows": {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 8},
    }
    found = {}
    for name, shape in shapes.items():
        watch = KeepGradients()
        one_step(tmp_path / name, loss_type=loss_type, callbacks=[watch], entropy_coef=0.1, **shape)
        (found[name],) = watch.steps
    for parameter, gradient in found["all at once"].items():
        torch.testing.assert_close(found["by rows"][parameter], gradient, atol=1e-7, rtol=1e-4)


class OtherPolicy(ScriptedBackend):
    """Claims log-probabilities of a policy that is not the trainer's."""

    def standby(self):
        pass

    def generate(self, prompts, n, sampling):
        return [
            Group(
                group.prompt,
                tuple(
                    Completion(c.ids, c.text, c.stop_reason, (-50.0,) * len(c.ids))
                    for c in group.completions
                ),
            )
            for group in super().generate(prompts, n, sampling)
        ]


def test_a_sampler_of_another_policy_stops_the_run_before_the_weights_change(tmp_path):
    run = trainer(tmp_path, reward_funcs=length, max_steps=1)
    run.backend = OtherPolicy(ended, run.processing_class.tokenizer)
    before = parameters(run.model)
    with pytest.raises(RuntimeError, match=r"differ by \d+\.\d+ nats a token"):
        run.train()
    assert not moved(before, parameters(run.model))


def test_brackets_in_a_completion_are_shown_as_they_are(tmp_path, capsys):
    """To the table that prints them they would be markup, and a closing one an error."""
    entry, _ = one_step(
        tmp_path,
        lambda prompt, n: ["[/b]", "[i]x"],
        mean_byte,
        log_completions=True,
        num_completions_to_print=2,
    )
    shown = capsys.readouterr().out
    assert "[/b]" in shown and "[i]x" in shown and math.isfinite(entry["loss"])


def test_stop_tokens_of_the_model_survive_training(tmp_path):
    """transformers aligns the model's configs with the tokenizer's one stop token."""
    model, processor = adapted()
    before = sorted(model.generation_config.eos_token_id)
    assert len(before) == 2
    one_step(tmp_path, model=(model, processor))
    assert sorted(model.get_base_model().generation_config.eos_token_id) == before
