"""The policy losses: one formula a token, an aggregation, a KL term, an entropy bonus.

``policy_loss`` reads top to bottom as what happens to a micro-batch; the papers' formulas are the
functions of ``PER_TOKEN``, and how a loss type sums them up is ``spec.AGGREGATION``. Shapes: B rows
(completions), T tokens; a value with one column, ``[B, 1]``, stands for every token of its row.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from foveal.rl.ratios import kl_k3, log_ratio, off_policy_mask, row_tokens
from foveal.rl.spec import LossSpec, Normaliser
from foveal.rl.stats import Mean, Stat, Sum, highest, lowest, row_mean, token_mean


@dataclass(frozen=True, slots=True)
class LossOutput:
    """A micro-batch's share of the loss of its optimizer step."""

    loss: Tensor
    """0-dimensional, with gradient. Backward it as it is: the shares of a step add up."""
    stats: dict[str, Stat]
    """Detached; combine with ``merge_stats``. Under TRL's names: "policy_loss" (Sum; before the
    entropy bonus), "kl" and "entropy" (Mean over tokens), "clip_ratio/{low,high,region}_mean" (Mean
    over tokens, over rows at level "sequence"), "clip_ratio/low_min" (Min over rows),
    "clip_ratio/high_max" (Max over rows), "cispo_clip_ratio" (as the former means),
    "vespo/phi_seq_mean" (Mean over rows). "entropy_kept", if an entropy mask was given, is the
    entropy of the tokens it keeps: what ``EntropyControl`` follows. A Mean here weighs every token
    (or row) of the step alike; TRL averages micro-batches."""


@dataclass(frozen=True, slots=True)
class Terms:
    """What a formula may look at. Masked tokens have log-probability 0, ratio and weight 1."""

    policy_logprob_BT: Tensor
    old_logprob_BT: Tensor
    ratio: Tensor
    """policy / old, ``[B, T]``, or ``[B, 1]`` at level "sequence"."""
    advantage_B1: Tensor
    mask_BT: Tensor
    mismatch_weight_BT: Tensor | None


Formula = Callable[[LossSpec, Terms], tuple[Tensor, dict[str, Stat]]]


def clipped(spec: LossSpec, terms: Terms) -> tuple[Tensor, dict[str, Stat]]:
    """-min(r A, clip(r, 1 - e_low, 1 + e_high) A)

    PPO's surrogate as in DeepSeekMath (2402.03300), eq. 3; two epsilons: DAPO (2503.14476), eq. 8;
    r of a whole sequence: GSPO (2507.18071), eq. 5. With ``delta`` the first r is min(r, delta):
    INTELLECT-2 (2505.07291).
    """
    ratio, advantage_B1 = terms.ratio, terms.advantage_B1
    bounded = ratio.clamp(1 - spec.epsilon_low, 1 + spec.epsilon_high)
    if spec.delta is not None:
        ratio = ratio.clamp(max=spec.delta)
    loss = -torch.minimum(ratio * advantage_B1, bounded * advantage_B1)
    low = (ratio < 1 - spec.epsilon_low) & (advantage_B1 < 0)
    high = (ratio > 1 + spec.epsilon_high) & (advantage_B1 > 0)
    return loss, _clip_stats(spec, terms, low.to(loss.dtype), high.to(loss.dtype))


def cispo(spec: LossSpec, terms: Terms) -> tuple[Tensor, dict[str, Stat]]:
    """-sg(min(r, e_high)) A log p

    MiniMax-M1 (2506.13585), eq. 4 and 5, without the lower bound, which its authors leave open; the
    bound is ``epsilon_high`` itself: ScaleRL (2510.13786). sg stops the gradient, so every token
    keeps one.
    """
    weight = terms.ratio.detach().clamp(max=spec.epsilon_high)
    loss_BT = -weight * terms.advantage_B1 * terms.policy_logprob_BT
    over = (terms.ratio > spec.epsilon_high) & (terms.advantage_B1 > 0)
    return loss_BT, {"cispo_clip_ratio": _mean(spec, terms, over.to(loss_BT.dtype))}


def sapo(spec: LossSpec, terms: Terms) -> tuple[Tensor, dict[str, Stat]]:
    """-(4 / tau) sigmoid(tau (r - 1)) A, with a tau for A > 0 and one for the rest

    SAPO (2511.20347). At r = 1 the gate's slope is 1: on policy this is the plain gradient.
    """
    tau_B1 = torch.where(
        terms.advantage_B1 > 0, spec.sapo_temperature_pos, spec.sapo_temperature_neg
    ).to(terms.ratio.dtype)
    gate = torch.sigmoid(tau_B1 * (terms.ratio - 1)) * 4 / tau_B1
    return -gate * terms.advantage_B1, {}


def vespo(spec: LossSpec, terms: Terms) -> tuple[Tensor, dict[str, Stat]]:
    """-sg(phi(w)) A log p, with phi(w) = w^k exp(lambda (1 - w)), w the ratio of whole sequences

    VESPO (2602.10693). w is a product over the row's tokens, not their mean, and takes in the
    rollout's mismatch; its logarithm is kept in [log 1e-8, 20], as in the authors' code.
    """
    with torch.no_grad():
        log_w_B1 = _log_sequence_weight(terms)
        positive_B1 = terms.advantage_B1 >= 0
        power_B1 = torch.where(positive_B1, spec.vespo_k_pos, spec.vespo_k_neg)
        decay_B1 = torch.where(positive_B1, spec.vespo_lambda_pos, spec.vespo_lambda_neg)
        decay_B1 = decay_B1.clamp(min=1e-4)
        phi_B1 = (power_B1 * log_w_B1 + decay_B1 * (1 - log_w_B1.exp())).exp()
        phi_B1 = phi_B1.nan_to_num(nan=0.0, posinf=0.0).to(log_w_B1.dtype)
    loss_BT = -phi_B1 * terms.advantage_B1 * terms.policy_logprob_BT
    return loss_BT, {"vespo/phi_seq_mean": row_mean(phi_B1)}


def _log_sequence_weight(terms: Terms) -> Tensor:
    log_min, log_max = math.log(1e-8), 20.0
    log_ratio_BT = log_ratio(terms.policy_logprob_BT, terms.old_logprob_BT, terms.mask_BT)
    log_w_B1 = log_ratio_BT.clamp(-log_max, log_max).sum(-1, keepdim=True)
    if terms.mismatch_weight_BT is not None:
        log_mismatch_BT = terms.mismatch_weight_BT.log().clamp(log_min, log_max)
        log_w_B1 = log_w_B1 + log_mismatch_BT.sum(-1, keepdim=True)
    return log_w_B1.clamp(log_min, log_max)


PER_TOKEN: dict[str, Formula] = {
    "grpo": clipped,
    "bnpo": clipped,
    "dr_grpo": clipped,
    "dapo": clipped,
    "cispo": cispo,
    "sapo": sapo,
    "luspo": clipped,
    "vespo": vespo,
}


def policy_loss(
    spec: LossSpec,
    *,
    policy_logprob_BT: Tensor,
    advantage_B: Tensor,
    mask_BT: Tensor,
    normaliser: Normaliser,
    old_logprob_BT: Tensor | None = None,
    rollout_logprob_BT: Tensor | None = None,
    ref_logprob_BT: Tensor | None = None,
    entropy_BT: Tensor | None = None,
    entropy_mask_BT: Tensor | None = None,
    mismatch_weight: Tensor | None = None,
) -> LossOutput:
    """The loss of some rows of an optimizer step.

    Args:
        policy_logprob_BT: log-probabilities of the tokens, with gradient; float32 or better.
        mask_BT: bool, True for completion tokens that count. A masked token has no influence at
            all, whatever its numbers are; a row may be masked whole.
        normaliser: of the whole step, from ``step_normaliser``.
        old_logprob_BT: at the weights of the rollout. None: those are the present weights, and
            the ratio is 1 (with its gradient).
        rollout_logprob_BT: the sampler's, for ``off_policy_mask_threshold`` only; None takes old.
        ref_logprob_BT: the reference policy's; needed with ``beta``.
        entropy_BT: of the policy at each token, in nats; with gradient if there is a bonus.
        entropy_mask_BT: from ``entropy_mask``; needed with ``top_entropy_quantile`` below 1.
        mismatch_weight: from ``mismatch_weight``, ``[B, T]`` or ``[B, 1]``; VESPO, which makes one
            weight of it for a row, needs ``[B, T]``.

    Raises:
        ValueError: if a tensor that ``spec`` needs is missing or has another shape.
        TypeError: for log-probabilities in 16 bit, whose ratios would be noise.
    """
    given = {
        "mask_BT": mask_BT,
        "old_logprob_BT": old_logprob_BT,
        "rollout_logprob_BT": rollout_logprob_BT,
        "ref_logprob_BT": ref_logprob_BT,
        "entropy_BT": entropy_BT,
        "entropy_mask_BT": entropy_mask_BT,
    }
    _check(spec, policy_logprob_BT, advantage_B, mismatch_weight, given)

    terms = _terms(
        spec, policy_logprob_BT, old_logprob_BT, advantage_B, mask_BT.bool(), mismatch_weight
    )
    token_loss, stats = PER_TOKEN[spec.loss_type](spec, terms)
    token_loss = token_loss.where(_kept(spec, terms, rollout_logprob_BT, entropy_mask_BT), 0.0)
    if terms.mismatch_weight_BT is not None and spec.loss_type != "vespo":
        token_loss = token_loss * terms.mismatch_weight_BT
    if spec.beta and ref_logprob_BT is not None:
        kl_BT = _kl(spec, terms, ref_logprob_BT)
        token_loss = token_loss + spec.beta * kl_BT
        stats["kl"] = token_mean(kl_BT, terms.mask_BT)

    loss = aggregate(spec, token_loss, terms.mask_BT) / normaliser.policy
    stats["policy_loss"] = Sum(loss.detach())
    if entropy_BT is not None:
        entropy_sum, entropy_stats = _entropy(entropy_BT, terms.mask_BT, entropy_mask_BT)
        stats |= entropy_stats
        if spec.entropy_coef:
            loss = loss - spec.entropy_coef * entropy_sum / normaliser.entropy
    return LossOutput(loss, stats)


def aggregate(spec: LossSpec, token_loss: Tensor, mask_BT: Tensor) -> Tensor:
    """Token losses to the sum over rows that the normaliser divides, 0-dimensional.

    ``token_loss`` is ``[B, T]``, or ``[B, 1]`` for one loss at every token of a row. A row without
    unmasked tokens adds 0.
    """
    row_sum_B1 = token_loss.expand_as(mask_BT).where(mask_BT, 0.0).sum(-1, keepdim=True)
    if spec.aggregation.within_row == "mean":
        row_sum_B1 = row_sum_B1 / row_tokens(mask_BT)
    return row_sum_B1.sum()


def _terms(
    spec: LossSpec,
    policy_logprob_BT: Tensor,
    old_logprob_BT: Tensor | None,
    advantage_B: Tensor,
    mask_BT: Tensor,
    mismatch_weight: Tensor | None,
) -> Terms:
    # From here on nothing can leak out of a masked token, not even as 0 * nan.
    policy_BT = policy_logprob_BT.masked_fill(~mask_BT, 0.0)
    old_BT = policy_BT if old_logprob_BT is None else old_logprob_BT.masked_fill(~mask_BT, 0.0)
    old_BT = old_BT.detach()
    if mismatch_weight is not None:
        mismatch_weight = mismatch_weight.detach().expand_as(mask_BT).where(mask_BT, 1.0)
    return Terms(
        policy_logprob_BT=policy_BT,
        old_logprob_BT=old_BT,
        ratio=log_ratio(policy_BT, old_BT, mask_BT, spec.importance_level).exp(),
        advantage_B1=advantage_B.unsqueeze(1).to(policy_BT.dtype),
        mask_BT=mask_BT,
        mismatch_weight_BT=mismatch_weight,
    )


def _kept(
    spec: LossSpec, terms: Terms, rollout_BT: Tensor | None, entropy_mask_BT: Tensor | None
) -> Tensor:
    keep_BT = terms.mask_BT
    if spec.off_policy_mask_threshold is not None:
        rollout_BT = terms.old_logprob_BT if rollout_BT is None else rollout_BT
        keep_BT = keep_BT & off_policy_mask(
            terms.policy_logprob_BT,
            rollout_BT,
            terms.mask_BT,
            terms.advantage_B1,
            spec.off_policy_mask_threshold,
        )
    return keep_BT if entropy_mask_BT is None else keep_BT & entropy_mask_BT.bool()


def _kl(spec: LossSpec, terms: Terms, ref_logprob_BT: Tensor) -> Tensor:
    ref_BT = ref_logprob_BT.detach().masked_fill(~terms.mask_BT, 0.0)
    ratio = terms.ratio if spec.bias_corrected_kl else None
    return kl_k3(ref_BT, terms.policy_logprob_BT, ratio)


def _entropy(
    entropy_BT: Tensor, mask_BT: Tensor, entropy_mask_BT: Tensor | None
) -> tuple[Tensor, dict[str, Stat]]:
    stats: dict[str, Stat] = {"entropy": token_mean(entropy_BT, mask_BT)}
    if entropy_mask_BT is not None:
        mask_BT = mask_BT & entropy_mask_BT.bool()
        stats["entropy_kept"] = token_mean(entropy_BT, mask_BT)
    return entropy_BT.where(mask_BT, 0.0).sum(), stats


def _mean(spec: LossSpec, terms: Terms, value: Tensor) -> Mean:
    # As in TRL: at level "sequence" rows that are masked whole count among the rows.
    by_row = spec.importance_level == "sequence"
    return row_mean(value) if by_row else token_mean(value, terms.mask_BT)


def _clip_stats(spec: LossSpec, terms: Terms, low: Tensor, high: Tensor) -> dict[str, Stat]:
    mask_BT = terms.mask_BT
    counts_B1 = mask_BT.any(-1, keepdim=True) | (spec.importance_level == "sequence")

    def by_row(value: Tensor) -> Tensor:
        masked_BT = value.expand_as(mask_BT).where(mask_BT, 0.0)
        return masked_BT.sum(-1, keepdim=True) / row_tokens(mask_BT)

    return {
        "clip_ratio/low_mean": _mean(spec, terms, low),
        "clip_ratio/low_min": lowest(by_row(low), counts_B1),
        "clip_ratio/high_mean": _mean(spec, terms, high),
        "clip_ratio/high_max": highest(by_row(high), counts_B1),
        "clip_ratio/region_mean": _mean(spec, terms, low + high),
    }


def _check(
    spec: LossSpec,
    policy_BT: Tensor,
    advantage_B: Tensor,
    mismatch_weight: Tensor | None,
    given: dict[str, Tensor | None],
) -> None:
    if policy_BT.dtype in (torch.float16, torch.bfloat16):
        raise TypeError(
            f"policy_logprob_BT is {policy_BT.dtype}, too coarse for ratios near 1; compute "
            "log-probabilities in float32"
        )
    rows, tokens = policy_BT.shape
    _check_shape("advantage_B", advantage_B, [(rows,)])
    for name, tensor in given.items():
        if tensor is not None:
            _check_shape(name, tensor, [(rows, tokens)])
    if mismatch_weight is not None:
        by_token, by_row = (rows, tokens), (rows, 1)
        allowed = [by_token] if spec.loss_type == "vespo" else [by_token, by_row]
        _check_shape("mismatch_weight", mismatch_weight, allowed)
    for name, needed, field in (
        ("ref_logprob_BT", spec.beta != 0, "beta"),
        ("entropy_BT", spec.entropy_coef != 0, "entropy_coef"),
        ("entropy_mask_BT", spec.top_entropy_quantile < 1, "top_entropy_quantile"),
    ):
        if needed and given[name] is None:
            raise ValueError(f"{field} is {getattr(spec, field)}, which needs {name}; it is None")


def _check_shape(name: str, tensor: Tensor, allowed: list[tuple[int, ...]]) -> None:
    if tuple(tensor.shape) not in allowed:
        wanted = " or ".join(str(list(shape)) for shape in allowed)
        raise ValueError(f"{name} has shape {list(tensor.shape)}; it must be {wanted}")
