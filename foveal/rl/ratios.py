"""How far two policies are apart on the same tokens: ratios, divergence, and what to do about it.

All log-probabilities here are those of the sampled tokens under softmax(logits / temperature), in
nats. Four policies occur: ``policy`` (being trained), ``old`` (the trainer's weights when the
rollout was made), ``rollout`` (the same weights as the sampler computed them) and ``ref``.

Shapes: B rows, T tokens. ``mask_BT`` is bool, True for completion tokens that count.
"""

from __future__ import annotations

import torch
from torch import Tensor

from foveal.rl.stats import Stat, highest, lowest, row_mean, token_mean

MISMATCH_MODES = ("token_truncate", "token_mask", "sequence_truncate", "sequence_mask")


def log_ratio(policy_BT: Tensor, old_BT: Tensor, mask_BT: Tensor, level: str = "token") -> Tensor:
    """log(policy / old): ``[B, T]`` at level "token"; at "sequence" the mean over a row's unmasked
    tokens, ``[B, 1]`` (GSPO, 2507.18071, eq. 7), 0 for a row that has none. Masked entries are 0.
    """
    difference_BT = (policy_BT - old_BT).masked_fill(~mask_BT, 0.0)
    if level == "token":
        return difference_BT
    if level == "sequence":
        return difference_BT.sum(-1, keepdim=True) / row_tokens(mask_BT)
    raise ValueError(f"level is {level!r}; it must be 'token' or 'sequence'")


def row_tokens(mask_BT: Tensor) -> Tensor:
    """Unmasked tokens a row, ``[B, 1]``, at least 1 so that it can divide."""
    return mask_BT.sum(-1, keepdim=True).clamp(min=1)


def kl_k3(ref_BT: Tensor, policy_BT: Tensor, ratio: Tensor | None = None) -> Tensor:
    """KL(policy || ref) estimated at each token, ``[B, T]``, in nats, never negative.

    ``ref / policy - log(ref / policy) - 1``: Schulman's k3 (joschu.net/blog/kl-approx.html;
    DeepSeekMath, 2402.03300, eq. 4). Its gradient is biased; multiplied by ``ratio``, that is
    policy / old with its gradient, it is not (DeepSeek-V3.2, 2512.02556, eq. 7).
    """
    log_ref_ratio_BT = ref_BT - policy_BT
    kl_BT = log_ref_ratio_BT.exp() - log_ref_ratio_BT - 1
    return kl_BT if ratio is None else kl_BT * ratio


@torch.no_grad()
def off_policy_mask(
    policy_BT: Tensor, rollout_BT: Tensor, mask_BT: Tensor, advantage_B1: Tensor, threshold: float
) -> Tensor:
    """Rows to keep, bool ``[B, 1]``: those of advantage 0 or above, and those whose mean
    log(rollout / policy) a token is at most ``threshold`` (DeepSeek-V3.2, 2512.02556, eq. 9).

    A token that the sampler could not score (NaN) counts as one that did not move.
    """
    drift_BT = -_known_difference(policy_BT, rollout_BT, mask_BT)
    kl_B1 = drift_BT.sum(-1, keepdim=True) / row_tokens(mask_BT)
    return (advantage_B1 >= 0) | (kl_B1 <= threshold)


@torch.no_grad()
def mismatch_weight(
    trainer_logprob_BT: Tensor,
    rollout_logprob_BT: Tensor,
    mask_BT: Tensor,
    *,
    mode: str = "sequence_mask",
    clip_max: float | None = 3.0,
    clip_min: float | None = None,
) -> tuple[Tensor, dict[str, Stat]]:
    """Importance weight trainer / rollout, for samplers that compute another log-probability.

    Args:
        trainer_logprob_BT: the trainer's, at the weights that the rollout was made with (old).
        rollout_logprob_BT: the sampler's; NaN where it gave none: such a token weighs 1.
        mode: "token_*": a weight for each token, ``[B, T]``. "sequence_*": the product over a row,
            ``[B, 1]``. "*_truncate": brought into [clip_min, clip_max] (TIS). "*_mask": outside of
            it the weight is 0 (MIS).

    Returns:
        The weight, without gradient, and the statistics
        ``sampling/importance_sampling_ratio/{min,mean,max}``, over tokens or over rows.
        At masked tokens the weight is 1.
    """
    _check_clip(mode, clip_min, clip_max)
    difference_BT = _known_difference(trainer_logprob_BT, rollout_logprob_BT, mask_BT)
    per_row = mode.startswith("sequence")
    if per_row:
        difference_BT = difference_BT.sum(-1, keepdim=True)
    weight = difference_BT.exp()
    if mode.endswith("truncate"):
        weight = weight.clamp(min=clip_min, max=clip_max)
    else:
        low = 0.0 if clip_min is None else clip_min
        high = torch.inf if clip_max is None else clip_max
        weight = weight.where((weight >= low) & (weight <= high), 0.0)
    valid = torch.ones_like(weight, dtype=torch.bool) if per_row else mask_BT
    weight = weight.where(valid, 1.0)
    name = "sampling/importance_sampling_ratio"
    return weight, {
        f"{name}/min": lowest(weight, valid),
        f"{name}/mean": row_mean(weight) if per_row else token_mean(weight, mask_BT),
        f"{name}/max": highest(weight, valid),
    }


@torch.no_grad()
def logprob_difference(
    trainer_logprob_BT: Tensor, rollout_logprob_BT: Tensor, mask_BT: Tensor
) -> dict[str, Stat]:
    """``sampling/sampling_logp_difference/{mean,max}``: the absolute difference, in nats, over the
    unmasked tokens that the sampler scored."""
    known_BT = mask_BT & ~rollout_logprob_BT.isnan()
    gap_BT = _known_difference(trainer_logprob_BT, rollout_logprob_BT, mask_BT).abs()
    name = "sampling/sampling_logp_difference"
    return {f"{name}/mean": token_mean(gap_BT, known_BT), f"{name}/max": highest(gap_BT, known_BT)}


def _known_difference(trainer_BT: Tensor, rollout_BT: Tensor, mask_BT: Tensor) -> Tensor:
    known_BT = mask_BT & ~rollout_BT.isnan()
    return (trainer_BT - rollout_BT).masked_fill(~known_BT, 0.0)


def _check_clip(mode: str, clip_min: float | None, clip_max: float | None) -> None:
    if mode not in MISMATCH_MODES:
        raise ValueError(f"mode is {mode!r}; known ones are {', '.join(MISMATCH_MODES)}")
    if mode.endswith("truncate") and clip_min is None and clip_max is None:
        raise ValueError(f"mode {mode!r} needs clip_min or clip_max; both are None")
    if clip_min is not None and clip_max is not None and not clip_min < clip_max:
        raise ValueError(f"clip_min is {clip_min}; it must be below clip_max, {clip_max}")
