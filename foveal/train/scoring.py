"""What a window's passes compare with: old log-probabilities, entropies, and the step's sizes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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
        note_old=config.num_iterations > 1,
    )


def score_steps(
    model: nn.Module, window: Window, config: GRPOConfig, cache: FeatureCache, steps: Sequence[int]
) -> Iterator[tuple[Row, Tensor, Tensor]]:
    """Each row of some optimizer steps with its log-probability and entropy, computed in the pieces
    in which it will be trained."""
    # A tower that is trained gives other features under other weights: nothing to share then.
    shared = not vision_is_trained(model)
    model.train()
    for step in steps:
        rows = step_rows(window, step, config)
        scores = PASSES[config.training_pass].score(
            model,
            rows,
            pass_settings(config, window.pass_tokens),
            cache=cache if shared else FeatureCache(),
        )
        for row, (logprob, entropy) in zip(rows, scores, strict=True):
            yield row, logprob, entropy


def score_old(model: nn.Module, window: Window, config: GRPOConfig, cache: FeatureCache) -> None:
    """Note what the weights of the rollout say, before any step changes them.

    Rows of the first optimizer step stay without: there the weights are still those.
    """
    for step in config.steps_scored_ahead:
        for row, logprob, entropy in score_steps(model, window, config, cache, [step]):
            row.old_logprob = logprob if step else None
            row.entropy = entropy if config.top_entropy_quantile < 1 else None
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
