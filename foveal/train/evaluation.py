"""Evaluation during training: the rollouts and rewards of training, on other prompts."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

from foveal.memory import PhaseMeter
from foveal.train.metrics import window_metrics
from foveal.train.window import Collector
from foveal.types import Prompt


def evaluation_metrics(
    collector: Collector,
    prompts_of: Callable[[Sequence[int]], list[Prompt]],
    indices: Sequence[int],
    *,
    completions_at_once: int,
    device: torch.device,
    trainer_state: Any,
) -> dict[str, float]:
    """Answer and reward all prompts, a few at a time.

    Args:
        collector: with the settings of evaluation.
        prompts_of: row numbers -> prompts.
        indices: rows of the evaluation set.
        completions_at_once: completions of one rollout; at least one group is made.
        device: of the model, for timing.
        trainer_state: handed to reward functions.

    Returns:
        Means over prompts of the metrics of training.
    """
    meter = PhaseMeter(device)
    at_once = max(1, completions_at_once // collector.num_generations)
    parts: list[tuple[int, dict[str, float]]] = []
    for start in range(0, len(indices), at_once):
        prompts = prompts_of(indices[start : start + at_once])
        window = collector.collect(prompts, (-1, start), meter=meter, trainer_state=trainer_state)
        parts.append((len(prompts), window_metrics(window, collector.rewards.names)))
    return {
        name: _mean([(part.get(name, math.nan), weight) for weight, part in parts])
        for name in dict.fromkeys(name for _, part in parts for name in part)
    }


def _mean(values: list[tuple[float, int]]) -> float:
    """Weighted mean of what is a number: a reward function may say nothing about a batch."""
    known = [(value, weight) for value, weight in values if math.isfinite(value)]
    return sum(v * w for v, w in known) / sum(w for _, w in known) if known else math.nan
