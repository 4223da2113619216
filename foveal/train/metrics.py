"""Metrics of a step under TRL's names, so that dashboards made for TRL keep working."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence

import torch

from foveal.rl import nan_std
from foveal.rl.stats import Stat, merge_stats, stat_values
from foveal.train.window import Window


class MetricLog:
    """Collects metrics until they are logged, and then gives their means."""

    def __init__(self) -> None:
        self._values: dict[str, list[float]] = defaultdict(list)
        self._latest: dict[str, float] = {}
        self._step_stats: dict[str, Stat] = {}

    def add(self, metrics: Mapping[str, float]) -> None:
        for name, value in metrics.items():
            self._values[name].append(value)
            self._latest[name] = value

    def add_stats(self, stats: Mapping[str, Stat]) -> None:
        """Statistics of a micro-step; they are put together until :meth:`close_step`."""
        self._step_stats = merge_stats(self._step_stats, stats)

    def close_step(self) -> dict[str, float]:
        """Turn the statistics of an optimizer step into metrics, and return those."""
        values = stat_values(self.take_stats())
        self.add(values)
        return values

    def take_stats(self) -> dict[str, Stat]:
        """The statistics of an optimizer step, which begins anew."""
        stats, self._step_stats = self._step_stats, {}
        return stats

    def latest(self, name: str) -> float | None:
        """The last value of a metric, logged since or not."""
        return self._latest.get(name)

    def drain(self) -> dict[str, float]:
        """Means since the last time; not-a-number where nothing finite was seen."""
        means = {}
        for name, values in self._values.items():
            finite = [v for v in values if math.isfinite(v)]
            means[name] = sum(finite) / len(finite) if finite else math.nan
        self._values.clear()
        return means


def window_metrics(window: Window, reward_names: Sequence[str]) -> dict[str, float]:
    """Rewards and completion lengths of one rollout."""
    return (
        _length_metrics(window)
        | _reward_metrics(window, reward_names)
        | {name: float(value) for name, value in window.rewards.metrics.items()}
    )


def _length_metrics(window: Window) -> dict[str, float]:
    completions = window.completions
    lengths = [len(c.ids) for c in completions]
    # A completion that the policy ended itself; if there is none, TRL reports 0.
    ended = [len(c.ids) for c in completions if not c.truncated] or [0]
    clipped = sum(c.truncated for c in completions) / len(completions)
    return {
        "completions/mean_length": sum(lengths) / len(lengths),
        "completions/min_length": float(min(lengths)),
        "completions/max_length": float(max(lengths)),
        "completions/clipped_ratio": clipped,
        "completions/mean_terminated_length": sum(ended) / len(ended),
        "completions/min_terminated_length": float(min(ended)),
        "completions/max_terminated_length": float(max(ended)),
        "completions/masked_tokens": float(sum(r.counts.count(False) for r in window.rows)),
    }


def _reward_metrics(window: Window, names: Sequence[str]) -> dict[str, float]:
    reward_BF = torch.tensor(window.rewards.rewards_BF)
    metrics = {}
    for column, name in enumerate(names):
        reward_B = reward_BF[:, column]
        metrics[f"rewards/{name}/mean"] = reward_B.nanmean().item()
        metrics[f"rewards/{name}/std"] = nan_std(reward_B).item()
    advantages = window.advantages
    metrics["reward"] = advantages.reward_PG.nanmean().item()
    metrics["reward_std"] = nan_std(advantages.reward_PG).item()
    metrics["frac_reward_zero_std"] = advantages.zero_std_P.float().mean().item()
    if window.redrawn_groups:
        metrics["dynamic_sampling/redrawn_groups"] = float(window.redrawn_groups)
    return metrics
