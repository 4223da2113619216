"""From rewards to advantages: how much better a completion is than its group.

Shapes: P prompts, G completions per prompt, F reward functions. NaN stands for "no reward" (the
function returned None). A completion without any reward gets the advantage 0 and is left out of
every mean and deviation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

STD_EPS = 1e-4
"""Added to a standard deviation before dividing by it; TRL's value."""
SCALES = ("group", "batch", "none")
AGGREGATIONS = ("sum_then_normalize", "normalize_then_sum")


@dataclass(frozen=True, slots=True)
class Advantages:
    """Advantages, and what they were made from."""

    advantage_PG: Tensor
    reward_PG: Tensor
    """The weighted sum of a completion's rewards; NaN if it has none."""
    mean_P: Tensor
    """Mean of ``reward_PG`` over a group; NaN if it has no reward at all."""
    std_P: Tensor
    """Its standard deviation (n - 1 in the denominator); 0 with fewer than two rewards."""
    zero_std_P: Tensor
    """bool: every advantage of the group is exactly 0, there is nothing to learn from it."""


def advantages_from_rewards(
    reward_PGF: Tensor,
    weights: Sequence[float] | None = None,
    *,
    aggregation: str = "sum_then_normalize",
    scale: str = "group",
) -> Advantages:
    """Advantages from the rewards of F functions.

    Args:
        reward_PGF: one reward for each function; NaN where it returned None.
        weights: of the functions; None weighs each with 1.
        aggregation: "sum_then_normalize": ``group_advantages`` of the weighted sum.
            "normalize_then_sum" (GDPO, 2601.05242): each function is normalised within its group
            first, so that a function of small spread is not drowned; the weighted sum of these is
            divided by its deviation over the batch. ``scale`` plays no part then.
        scale: see ``group_advantages``.

    Raises:
        ValueError: for an infinite reward, a wrong number of weights, an unknown name.
    """
    reward_PG = aggregate(reward_PGF, weights)
    if aggregation == "sum_then_normalize":
        return group_advantages(reward_PG, scale)
    if aggregation != "normalize_then_sum":
        raise ValueError(
            f"aggregation is {aggregation!r}; known ones are {', '.join(AGGREGATIONS)}"
        )
    return _gdpo_advantages(reward_PGF, reward_PG, _weights(weights, reward_PGF))


def aggregate(reward_PGF: Tensor, weights: Sequence[float] | None = None) -> Tensor:
    """The weighted sum over the functions that gave a reward, ``[P, G]``; NaN where none did."""
    _refuse_infinite(reward_PGF)
    total_PG = (reward_PGF * _weights(weights, reward_PGF)).nansum(-1)
    return total_PG.masked_fill(reward_PGF.isnan().all(-1), torch.nan)


def group_advantages(reward_PG: Tensor, scale: str = "group") -> Advantages:
    """Reward minus the group's mean (GRPO, 2402.03300, section 4.1.2).

    Args:
        reward_PG: NaN marks a completion without a reward.
        scale: what the difference is divided by. "group": the group's standard deviation. "batch":
            that of all rewards given (2508.08221). "none": nothing (Dr. GRPO, 2503.20783).

    A group whose rewards are equal, up to rounding, gets advantages of exactly 0. Without this
    rule eight rewards of 0.1 have a mean that is not 0.1, and the division by a small deviation
    makes a gradient out of that.
    """
    _refuse_infinite(reward_PG)
    if scale not in SCALES:
        raise ValueError(f"scale is {scale!r}; known ones are {', '.join(SCALES)}")
    centred_PG = _centred(reward_PG)
    std_P = nan_std(reward_PG, dim=-1).nan_to_num(nan=0.0).masked_fill(tied(reward_PG), 0.0)
    if scale == "group":
        advantage_PG = centred_PG / (std_P.unsqueeze(-1) + STD_EPS)
    elif scale == "batch":
        advantage_PG = centred_PG / (nan_std(reward_PG).nan_to_num(nan=0.0) + STD_EPS)
    else:
        advantage_PG = centred_PG
    return _result(advantage_PG, reward_PG, std_P)


def _gdpo_advantages(reward_PGF: Tensor, reward_PG: Tensor, weight_F: Tensor) -> Advantages:
    reward_PFG = reward_PGF.transpose(1, 2)
    std_PF = nan_std(reward_PFG, dim=-1).nan_to_num(nan=0.0)
    score_PGF = (_centred(reward_PFG) / (std_PF.unsqueeze(-1) + STD_EPS)).transpose(1, 2)
    score_PG = (score_PGF * weight_F).sum(-1).masked_fill(reward_PG.isnan(), torch.nan)
    # GDPO subtracts the batch's mean here. Each function's scores add up to 0 in every group, so
    # that mean is 0 but for rounding, which would give a group without spread an advantage.
    advantage_PG = score_PG / (nan_std(score_PG).nan_to_num(nan=0.0) + STD_EPS)
    std_P = nan_std(reward_PG, dim=-1).nan_to_num(nan=0.0)
    return _result(advantage_PG, reward_PG, std_P)


def _result(advantage_PG: Tensor, reward_PG: Tensor, std_P: Tensor) -> Advantages:
    advantage_PG = advantage_PG.nan_to_num(nan=0.0)
    return Advantages(
        advantage_PG=advantage_PG,
        reward_PG=reward_PG,
        mean_P=reward_PG.nanmean(-1),
        std_P=std_P,
        zero_std_P=(advantage_PG == 0).all(-1),
    )


def nan_std(value: Tensor, dim: int | None = None) -> Tensor:
    """Standard deviation with n - 1 in the denominator, over what is not NaN.

    NaN with fewer than two such values. ``dim=None`` takes the whole tensor.
    """
    if dim is None:
        value, dim = value.flatten(), 0
    count = (~value.isnan()).sum(dim)
    deviation = value - value.nanmean(dim, keepdim=True)
    variance = deviation.square().nansum(dim) / (count - 1)
    return variance.sqrt().masked_fill(count < 2, torch.nan)


def tied(value: Tensor) -> Tensor:
    """bool, without the last axis: its values that are not NaN are equal up to rounding.

    A sum of a few rewards carries a rounding error of a few units in the last place of its largest
    term; below 1e-8 TRL takes a deviation for 0 as well. True with fewer than two values.
    """
    highest = value.nan_to_num(nan=-torch.inf).amax(-1)
    lowest = value.nan_to_num(nan=torch.inf).amin(-1)
    rounding = 4 * torch.finfo(value.dtype).eps * torch.maximum(highest.abs(), lowest.abs())
    return (highest - lowest) <= rounding + 1e-8


def _centred(value: Tensor) -> Tensor:
    """Minus the mean over the last axis; exactly 0 where NaN or where all values are tied."""
    centred = value - value.nanmean(-1, keepdim=True)
    return centred.nan_to_num(nan=0.0).masked_fill(tied(value).unsqueeze(-1), 0.0)


def _weights(weights: Sequence[float] | None, reward_PGF: Tensor) -> Tensor:
    functions = reward_PGF.shape[-1]
    if weights is None:
        return reward_PGF.new_ones(functions)
    if len(weights) != functions:
        raise ValueError(
            f"{len(weights)} reward weights for {functions} reward functions; give one for each"
        )
    return reward_PGF.new_tensor(list(weights))


def _refuse_infinite(reward: Tensor) -> None:
    if bool(reward.isinf().any()):
        where = reward.isinf().nonzero()[0].tolist()
        names = ("prompt", "completion", "function")
        place = ", ".join(f"{name} {i}" for name, i in zip(names, where, strict=False))
        raise ValueError(
            f"the reward of {place} is {reward[tuple(where)].item()}; a reward function must "
            "return a finite number, or None for no reward"
        )
