"""The plain training pass: every completion its own row, in pieces of a few rows.

    for rows in pieces:
        log p(token) under the policy                      models.forward
        ratio to the old policy, loss                      rl.policy_loss
        backward of this piece's share                     adds up exactly: rl.step_normaliser

It is the specification of faster passes and stays beside them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from foveal.kernels.transfer import to_device
from foveal.models.forward import CompletionLogprobs, FeatureCache, completion_logprobs
from foveal.rl import (
    LossSpec,
    Normaliser,
    entropy_mask,
    logprob_difference,
    merge_stats,
    mismatch_weight,
    policy_loss,
)
from foveal.rl.stats import Stat
from foveal.types import Completion, Prompt


@dataclass(slots=True)
class Row:
    """A completion as the loss sees it. Tensors are ``[T]``, float32."""

    prompt: Prompt
    completion: Completion
    advantage: float
    counts: tuple[bool, ...]
    """Which tokens take part in the loss: T flags."""
    old_logprob: Tensor | None = None
    """Under the weights that made the rollout; None where those are the present ones."""
    ref_logprob: Tensor | None = None
    entropy: Tensor | None = None
    """Of the same weights as ``old_logprob``; kept where only the highest entropies count."""

    @property
    def num_tokens(self) -> int:
        """Tokens that take part in the loss."""
        return sum(self.counts)


@dataclass(frozen=True, slots=True)
class PassSettings:
    """What the pass needs to know beside its rows."""

    spec: LossSpec
    temperature: float
    rows_at_once: int
    """Rows of one forward and backward."""
    tokens_at_once: int | None = None
    """Completion tokens of one forward and backward of ``group_pass``; None sets no bound."""
    correct_mismatch: bool = True
    mismatch_mode: str = "sequence_mask"
    mismatch_max: float | None = 3.0
    mismatch_min: float | None = None
    note_old: bool = False
    """Rows without old log-probabilities get this pass's: they are trained on again, when the
    weights have changed."""


def learn(
    model: nn.Module,
    rows: Sequence[Row],
    normaliser: Normaliser,
    settings: PassSettings,
    *,
    cache: FeatureCache,
    backward: Callable[[Tensor], None],
    entropy_threshold: Tensor | None = None,
) -> tuple[Tensor, dict[str, Stat]]:
    """Forward and backward for ``rows``; their gradient is added to the parameters.

    Args:
        model: the policy.
        rows: of one micro-step.
        normaliser: of the optimizer step that the rows belong to.
        settings: the loss and its temperature.
        cache: features of pictures.
        backward: called with the share of each piece.
        entropy_threshold: tokens below it are left out (``top_entropy_quantile``).

    Returns:
        The rows' share of the step's loss, detached, and statistics to merge with others'.
    """
    shares, stats = [], []
    for piece in pieces(rows, settings.rows_at_once):
        output = _forward(model, piece, settings.temperature, cache)
        loss, piece_stats = loss_share(piece, output, normaliser, settings, entropy_threshold)
        backward(loss)
        shares.append(loss.detach())
        stats.append(piece_stats)
    return torch.stack(shares).sum(), merge_stats(*stats)


def score(
    model: nn.Module,
    rows: Sequence[Row],
    settings: PassSettings,
    *,
    cache: FeatureCache,
) -> list[tuple[Tensor, Tensor]]:
    """Log-probability and entropy of each row, ``[T]`` each, without gradient.

    Rows are laid out in the same pieces as in :func:`learn`, so that with unchanged weights both
    give the same bits: GSPO's clip range of 3e-4 leaves no room for rounding.
    """
    results: list[tuple[Tensor, Tensor]] = []
    with torch.no_grad():
        for piece in pieces(rows, settings.rows_at_once):
            output = _forward(model, piece, settings.temperature, cache)
            for i, row in enumerate(piece):
                length = len(row.completion.ids)
                results.append((output.logprob_BT[i, :length], output.entropy_BT[i, :length]))
    return results


def pieces(rows: Sequence[Row], size: int) -> Iterator[Sequence[Row]]:
    for start in range(0, len(rows), size):
        yield rows[start : start + size]


def _forward(
    model: nn.Module, rows: Sequence[Row], temperature: float, cache: FeatureCache
) -> CompletionLogprobs:
    return completion_logprobs(
        model,
        [row.prompt for row in rows],
        [row.completion.ids for row in rows],
        temperature=temperature,
        cache=cache,
    )


def loss_share(
    rows: Sequence[Row],
    output: CompletionLogprobs,
    normaliser: Normaliser,
    settings: PassSettings,
    entropy_threshold: Tensor | None,
) -> tuple[Tensor, dict[str, Stat]]:
    """What some rows add to the loss of their optimizer step, and statistics of theirs."""
    policy_BT = output.logprob_BT
    device = policy_BT.device
    mask_BT = _padded([torch.tensor(row.counts) for row in rows], device)
    assert mask_BT.shape == policy_BT.shape
    old_BT = _stacked([row.old_logprob for row in rows], device)
    rollout_BT = _rollout_logprobs(rows, device)
    stats: dict[str, Stat] = {}
    weight = None
    if rollout_BT is not None:
        trainer_BT = policy_BT.detach() if old_BT is None else old_BT
        stats |= logprob_difference(trainer_BT, rollout_BT, mask_BT)
        if settings.correct_mismatch:
            weight, ratio_stats = mismatch_weight(
                trainer_BT,
                rollout_BT,
                mask_BT,
                mode=settings.mismatch_mode,
                clip_max=settings.mismatch_max,
                clip_min=settings.mismatch_min,
            )
            stats |= ratio_stats
            if settings.spec.loss_type == "vespo":
                weight = _as_token_weights(weight, mask_BT)
    keep_BT = None
    if entropy_threshold is not None:
        entropy_BT = _stacked([row.entropy for row in rows], device)
        assert entropy_BT is not None
        keep_BT = entropy_mask(entropy_BT, mask_BT, entropy_threshold)
    result = policy_loss(
        settings.spec,
        policy_logprob_BT=policy_BT,
        old_logprob_BT=old_BT,
        advantage_B=to_device(torch.tensor([row.advantage for row in rows]), device),
        mask_BT=mask_BT,
        normaliser=normaliser,
        rollout_logprob_BT=rollout_BT,
        ref_logprob_BT=_stacked([row.ref_logprob for row in rows], device),
        entropy_BT=output.entropy_BT if settings.spec.entropy_coef else output.entropy_BT.detach(),
        entropy_mask_BT=keep_BT,
        mismatch_weight=weight,
    )
    if settings.note_old and old_BT is None:
        for row, logprob_T in zip(rows, policy_BT.detach(), strict=True):
            row.old_logprob = logprob_T[: len(row.completion.ids)]
    return result.loss, stats | result.stats


def _as_token_weights(weight: Tensor, mask_BT: Tensor) -> Tensor:
    """One weight a token whose product over a row is the row's weight: what VESPO multiplies."""
    if weight.shape == mask_BT.shape:
        return weight
    return weight.pow(1 / mask_BT.sum(-1, keepdim=True).clamp(min=1)).expand_as(mask_BT)


def _rollout_logprobs(rows: Sequence[Row], device: torch.device) -> Tensor | None:
    known = [row.completion.rollout_logprob for row in rows]
    if any(logprob is None for logprob in known):
        return None
    return _padded([torch.tensor(logprob) for logprob in known], device)


def _stacked(columns: Sequence[Tensor | None], device: torch.device) -> Tensor | None:
    present = [column for column in columns if column is not None]
    assert len(present) in (0, len(columns)), "some rows have this column and some do not"
    return _padded(present, device) if present else None


def _padded(columns: Sequence[Tensor], device: torch.device) -> Tensor:
    return to_device(pad_sequence(list(columns), batch_first=True), device)


def counted_tokens(
    completion: Completion, never: frozenset[int], mask_truncated: bool
) -> tuple[bool, ...]:
    """Which tokens of a completion take part in the loss.

    A placeholder token that a completion holds (no backend samples one, a script may) never does:
    it stands for a picture that is not there. Of a truncated completion none does, if asked.
    """
    if mask_truncated and completion.truncated:
        return (False,) * len(completion.ids)
    return tuple(token not in never for token in completion.ids)
