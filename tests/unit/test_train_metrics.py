"""Metrics under TRL's names, worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from foveal.rewards.call import RewardTable
from foveal.rl import advantages_from_rewards
from foveal.rl.stats import Mean
from foveal.train.metrics import MetricLog, window_metrics
from foveal.train.plain_pass import Row, counted_tokens
from foveal.train.window import Window
from foveal.types import Completion, Group, Prompt

NAN = math.nan
NAMES = ["right", "brief"]
# Two groups of two; "brief" has nothing to say about the last completion.
REWARDS = [[1.0, 0.5], [0.0, 0.5], [1.0, 0.0], [1.0, NAN]]
LENGTHS = [(3, "stop"), (5, "length"), (2, "stop"), (5, "length")]


def window(lengths=LENGTHS, rewards=REWARDS, mask_truncated=False):
    prompts = [Prompt(index=i, ids=(1,), images=(), messages=[]) for i in range(2)]
    completions = [Completion(tuple(range(10, 10 + n)), "", stop) for n, stop in lengths]
    groups = [
        Group(prompt, tuple(completions[2 * p : 2 * p + 2])) for p, prompt in enumerate(prompts)
    ]
    advantages = advantages_from_rewards(torch.tensor(rewards).view(2, 2, -1))
    rows = [
        Row(group.prompt, c, 0.0, counted_tokens(c, frozenset({11}), mask_truncated))
        for group in groups
        for c in group.completions
    ]
    table = RewardTable(rewards, {}, {"judge_calls": 3.0}, {})
    return Window((0, 0), groups, table, advantages, rows)


def test_lengths_of_all_and_of_those_that_the_policy_ended():
    metrics = window_metrics(window(), NAMES)
    assert metrics["completions/mean_length"] == 15 / 4
    assert (metrics["completions/min_length"], metrics["completions/max_length"]) == (2, 5)
    assert metrics["completions/clipped_ratio"] == 0.5
    assert metrics["completions/mean_terminated_length"] == 2.5
    assert metrics["completions/min_terminated_length"] == 2
    assert metrics["completions/max_terminated_length"] == 3


def test_nothing_ended_is_zero_and_not_an_error():
    metrics = window_metrics(window(lengths=[(5, "length")] * 4), NAMES)
    assert metrics["completions/clipped_ratio"] == 1
    for name in ("mean", "min", "max"):
        assert metrics[f"completions/{name}_terminated_length"] == 0


def test_masked_tokens_are_placeholders_and_truncated_completions():
    # Token 11 is the second of every completion.
    assert window_metrics(window(), NAMES)["completions/masked_tokens"] == 4
    metrics = window_metrics(window(mask_truncated=True), NAMES)
    assert metrics["completions/masked_tokens"] == 2 + 5 + 5


def test_rewards_by_function_leave_out_what_a_function_skipped():
    metrics = window_metrics(window(), NAMES)
    assert metrics["rewards/right/mean"] == 0.75
    assert metrics["rewards/right/std"] == pytest.approx(0.5)
    assert metrics["rewards/brief/mean"] == pytest.approx(1 / 3)
    # Deviation of 0.5, 0.5, 0 with n - 1: sqrt((2 * (1/6)^2 + (1/3)^2) / 2).
    assert metrics["rewards/brief/std"] == pytest.approx(math.sqrt(1 / 12))


def test_the_reward_is_the_sum_and_a_group_without_spread_is_counted():
    metrics = window_metrics(window(), NAMES)
    # Sums 1.5, 0.5 and 1, 1: the second group has nothing to learn from.
    assert metrics["reward"] == 1.0
    assert metrics["reward_std"] == pytest.approx(math.sqrt(1 / 6))
    assert metrics["frac_reward_zero_std"] == 0.5
    assert metrics["judge_calls"] == 3.0
    assert "dynamic_sampling/redrawn_groups" not in metrics


def test_a_log_gives_means_since_the_last_time_and_forgets_them():
    log = MetricLog()
    log.add({"a": 1.0, "b": NAN})
    log.add({"a": 2.0, "b": 4.0, "c": NAN})
    assert log.latest("a") == 2.0 and log.latest("never") is None
    drained = log.drain()
    assert drained["a"] == 1.5 and drained["b"] == 4.0 and math.isnan(drained["c"])
    assert log.drain() == {} and log.latest("a") == 2.0


def test_micro_steps_are_weighted_by_their_tokens_and_not_averaged_twice():
    log = MetricLog()
    log.add_stats({"kl": Mean(torch.tensor(6.0), torch.tensor(2))})
    log.add_stats({"kl": Mean(torch.tensor(0.0), torch.tensor(4))})
    assert log.close_step() == {"kl": 1.0}
    assert log.close_step() == {}, "the next step starts anew"
    assert log.drain() == {"kl": 1.0}
