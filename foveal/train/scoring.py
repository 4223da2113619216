"""What a window's passes compare with: old log-probabilities, entropies, and the step's sizes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from foveal.models.family import vision_is_trained
from foveal.models.forward import FeatureCache
from foveal.rl import Normaliser, entropy_threshold, step_normaliser
from foveal.train import group_pass, plain_pass
from foveal.train.config import GRPOConfig
from foveal.train.plain_pass import PassSettings, Row
from foveal.train.window import Window

PASSES: dict[str, Any] = {"group": group_pass, "plain": plain_pass}
"""Modules with ``learn`` and ``score``, by ``GRPOConfig.training_pass``."""


def pass_settings(config: GRPOConfig, planned_tokens: int | None = None) -> PassSettings:
    """What a pass takes from the run's settings.

    Args:
        config: of the run.
        planned_tokens: bound on tokens at once in place of ``pass_tokens``, where memory asks for a
            smaller one.
    """
    return PassSettings(
        spec=config.loss_spec(),
        temperature=config.temperature,
        rows_at_once=config.pass_rows,
        tokens_at_once=planned_tokens or config.pass_tokens,
        correct_mismatch=config.vllm_importance_sampling_correction,
        mismatch_mode=config.vllm_importance_sampling_mode,
        mismatch_max=config.vllm_importance_sampling_clip_max,
        mismatch_min=config.vllm_importance_sampling_clip_min,
    )


def score_window(
    model: nn.Module, window: Window, config: GRPOConfig, cache: FeatureCache
) -> list[tuple[Tensor, Tensor]]:
    """Log-probability and entropy of every row, in the pieces in which they will be trained."""
    # A tower that is trained gives other features under other weights: nothing to share then.
    shared = not vision_is_trained(model)
    model.train()
    return [
        scores
        for step in range(config.optimizer_steps_per_pass)
        for scores in PASSES[config.training_pass].score(
            model,
            step_rows(window, step, config),
            pass_settings(config, window.pass_tokens),
            cache=cache if shared else FeatureCache(),
        )
    ]


def score_old(model: nn.Module, window: Window, config: GRPOConfig, cache: FeatureCache) -> None:
    """Note what the weights of the rollout say, before any step changes them."""
    for row, (logprob, entropy) in zip(
        window.rows, score_window(model, window, config, cache), strict=True
    ):
        if config.needs_old_logprobs:
            row.old_logprob = logprob
        if config.top_entropy_quantile < 1:
            row.entropy = entropy
    if config.top_entropy_quantile < 1:
        window.entropy_threshold = entropy_threshold(
            torch.cat([counted_entropy(row) for row in window.rows]), config.top_entropy_quantile
        )


def step_rows(window: Window, step: int, config: GRPOConfig) -> list[Row]:
    """Rows of an optimizer step, the steps of one pass over the window counted from 0."""
    return window.part(step, config.optimizer_steps_per_pass)


def normaliser_of(window: Window, step: int, config: GRPOConfig) -> Normaliser:
    """The normaliser of an optimizer step, counted as in :func:`step_rows`."""
    rows = step_rows(window, step, config)
    kept: dict[str, Any] = {}
    if window.entropy_threshold is not None:
        above = [(counted_entropy(row) >= window.entropy_threshold).sum() for row in rows]
        kept["entropy_tokens"] = int(torch.stack(above).sum())
    return step_normaliser(
        config.loss_spec(),
        [row.num_tokens for row in rows],
        generation_tokens=sum(row.num_tokens for row in window.rows),
        optimizer_steps=config.optimizer_steps_per_pass,
        **kept,
    )


def counted_entropy(row: Row) -> Tensor:
    """Entropies of the tokens that take part in the loss."""
    assert row.entropy is not None
    return row.entropy[torch.tensor(row.counts, device=row.entropy.device)]
