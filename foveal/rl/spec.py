"""What a policy loss is made of, and what the sum over a step is divided by."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Aggregation:
    """How the loss of single tokens becomes the loss of an optimizer step."""

    within_row: Literal["mean", "sum"]
    divisor: Literal["rows", "rows_times_max_length", "step_tokens", "generation_tokens"]


AGGREGATION: dict[str, Aggregation] = {
    # DeepSeekMath (2402.03300), eq. 3. With importance_level="sequence" this is GSPO (2507.18071),
    # eq. 5.
    "grpo": Aggregation("mean", "rows"),
    # The mean over the tokens of a batch; the name is TRL's.
    "bnpo": Aggregation("sum", "step_tokens"),
    # Dr. GRPO (2503.20783): one constant, so that no completion is favoured for its length.
    "dr_grpo": Aggregation("sum", "rows_times_max_length"),
    # DAPO (2503.14476), eq. 8.
    "dapo": Aggregation("sum", "generation_tokens"),
    # MiniMax-M1 (2506.13585), eq. 4.
    "cispo": Aggregation("sum", "generation_tokens"),
    # SAPO (2511.20347).
    "sapo": Aggregation("mean", "rows"),
    # LUSPO (2602.05261): each sequence's loss times its length.
    "luspo": Aggregation("sum", "rows"),
    # VESPO (2602.10693).
    "vespo": Aggregation("sum", "generation_tokens"),
}
"""The loss types that exist, and how each turns token losses into one number."""

CLIPPED = ("grpo", "bnpo", "dr_grpo", "dapo", "luspo")
"""The loss types that share the clipped surrogate and differ in their aggregation only."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LossSpec:
    """Which loss, with which constants. Names and defaults are those of TRL's ``GRPOConfig``,
    shortened where the class already says it. Raises ValueError for what cannot be meant."""

    loss_type: str = "dapo"
    """A key of ``AGGREGATION``."""
    importance_level: str = "token"
    """"token": one ratio a token. "sequence": one a row, the geometric mean of its tokens' (GSPO).
    VESPO has its own sequence weight and uses this for the KL term only."""
    epsilon_low: float = 0.2
    """The ratio is clipped from below at ``1 - epsilon_low``."""
    epsilon_high: float = 0.2
    """The ratio is clipped from above at ``1 + epsilon_high``. For "cispo" it is the largest weight
    itself, not added to 1: ScaleRL (2510.13786) takes 5."""
    delta: float | None = None
    """A cap on the unclipped ratio, which bounds the loss of negative advantages too (INTELLECT-2,
    2505.07291). Above ``1 + epsilon_high``; clipped losses only."""
    beta: float = 0.0
    """Weight of the KL divergence to the reference policy. 0 needs no reference."""
    bias_corrected_kl: bool = True
    """Multiply the KL term by the ratio, which makes its gradient unbiased (DeepSeek-V3.2)."""
    sapo_temperature_pos: float = 1.0
    """How fast SAPO's gate closes for positive advantages."""
    sapo_temperature_neg: float = 1.05
    """The same for advantages of 0 and below."""
    vespo_k_pos: float = 2.0
    """Power of VESPO's weight for advantages of 0 and above: how far low ratios are damped."""
    vespo_lambda_pos: float = 3.0
    """Decay of VESPO's weight for the same: how far high ratios are damped."""
    vespo_k_neg: float = 3.0
    """Power for negative advantages."""
    vespo_lambda_neg: float = 2.0
    """Decay for negative advantages."""
    max_completion_length: int | None = None
    """Tokens that a completion may have: "dr_grpo" divides by it and needs it."""
    off_policy_mask_threshold: float | None = None
    """Drop rows of negative advantage whose mean KL from the sampler is above this (nats a token;
    DeepSeek-V3.2, eq. 9). None keeps all."""
    entropy_coef: float = 0.0
    """Weight of the entropy bonus: mean entropy a token, in nats, is subtracted from the loss."""
    top_entropy_quantile: float = 1.0
    """The share of tokens, those of the highest entropy, that the policy term is kept for
    (2506.01939). Below 1, ``policy_loss`` needs ``entropy_mask_BT``."""

    def __post_init__(self) -> None:
        self._check_names()
        self._check_ranges()
        if self.delta is not None and self.loss_type not in CLIPPED:
            raise ValueError(
                f"delta is {self.delta}, but loss_type {self.loss_type!r} clips no ratio that it "
                f"could cap; leave it None, or take one of {', '.join(CLIPPED)}"
            )
        if self.loss_type == "dr_grpo" and self.max_completion_length is None:
            raise ValueError(
                "max_completion_length is None, but loss_type 'dr_grpo' divides by it; give the "
                "largest number of tokens that a completion may have"
            )

    @property
    def aggregation(self) -> Aggregation:
        return AGGREGATION[self.loss_type]

    def _check_names(self) -> None:
        if self.loss_type not in AGGREGATION:
            raise ValueError(
                f"loss_type is {self.loss_type!r}; known ones are {', '.join(AGGREGATION)}"
            )
        if self.importance_level not in ("token", "sequence"):
            raise ValueError(
                f"importance_level is {self.importance_level!r}; it must be 'token' or 'sequence'"
            )

    def _check_ranges(self) -> None:
        for name, (low, high, remedy) in _RANGES.items():
            value = getattr(self, name)
            if value is None and name in _OPTIONAL:
                continue
            # Written so that NaN, which compares false with everything, is refused as well.
            if not low <= value <= high:
                raise ValueError(f"{name} is {value}; it must be {remedy}")


_TINY, _HUGE = sys.float_info.min, sys.float_info.max
_NOT_NEGATIVE = (0.0, _HUGE, "0 or a finite number above")
_POSITIVE = (_TINY, _HUGE, "a finite number above 0")
_OPTIONAL = ("delta", "off_policy_mask_threshold", "max_completion_length")
_RANGES = {
    "epsilon_low": _NOT_NEGATIVE,
    "epsilon_high": _NOT_NEGATIVE,
    "delta": _POSITIVE,
    "beta": _NOT_NEGATIVE,
    "sapo_temperature_pos": _POSITIVE,
    "sapo_temperature_neg": _POSITIVE,
    "vespo_k_pos": _NOT_NEGATIVE,
    "vespo_lambda_pos": _NOT_NEGATIVE,
    "vespo_k_neg": _NOT_NEGATIVE,
    "vespo_lambda_neg": _NOT_NEGATIVE,
    "max_completion_length": (1, _HUGE, "at least 1"),
    "off_policy_mask_threshold": _NOT_NEGATIVE,
    "entropy_coef": (-_HUGE, _HUGE, "finite"),
    "top_entropy_quantile": (0.0, 1.0, "in [0, 1]"),
}


@dataclass(frozen=True, slots=True)
class Normaliser:
    """What the sums over one optimizer step are divided by, known before its first backward.

    Because it covers the whole step, the gradients of its micro-batches add up to the same number
    however the rows are split. Every row of the step counts, also those with nothing to learn from
    that are never passed through the model.
    """

    policy: float
    """Divides the policy and KL terms."""
    entropy: float
    """Divides the entropy bonus: the number of tokens that it acts on."""


def step_normaliser(
    spec: LossSpec,
    row_lengths: Sequence[int],
    *,
    generation_tokens: int | None = None,
    optimizer_steps: float = 1,
    entropy_tokens: int | None = None,
) -> Normaliser:
    """The normaliser of one optimizer step.

    Args:
        row_lengths: unmasked tokens of every row of the step: 0 for a row that is masked whole
            (a truncated completion), which still counts as a row, as in TRL; rows of groups that
            are skipped because their advantages are 0 belong here too.
        generation_tokens: unmasked tokens of the generation batch that the rows come from; needed
            if it serves more or less than one optimizer step.
        optimizer_steps: how many optimizer steps one pass over that generation batch makes: TRL's
            ``steps_per_generation / gradient_accumulation_steps``. Repeated passes
            (``num_iterations``) do not count. Below 1 if one step takes several generation batches:
            then each has a normaliser of its own.
        entropy_tokens: tokens that ``entropy_mask`` keeps in the step; all of them if None.

    By loss type, with the step's rows and tokens: "grpo", "sapo" and "luspo" divide by rows;
    "dr_grpo" by rows times ``max_completion_length``; "dapo", "cispo" and "vespo" by the tokens of
    the generation batch over ``optimizer_steps``; "bnpo" by the step's tokens. TRL's "bnpo"
    averages the token means of micro-batches instead, which depends on the split, and its entropy
    bonus likewise: the numbers agree where TRL runs a step as one micro-batch.
    """
    if not row_lengths:
        raise ValueError("row_lengths is empty; an optimizer step has at least one row")
    if not optimizer_steps > 0:
        raise ValueError(f"optimizer_steps is {optimizer_steps}; it must be above 0")
    tokens = sum(row_lengths)
    if generation_tokens is None:
        if optimizer_steps != 1:
            raise ValueError(
                f"optimizer_steps is {optimizer_steps}, so the generation batch is not this step's "
                "rows; give its unmasked tokens as generation_tokens"
            )
        generation_tokens = tokens
    divisor = spec.aggregation.divisor
    if divisor == "rows":
        policy = float(len(row_lengths))
    elif divisor == "rows_times_max_length":
        assert spec.max_completion_length is not None, "LossSpec checks this"
        policy = float(len(row_lengths) * spec.max_completion_length)
    elif divisor == "step_tokens":
        policy = float(max(tokens, 1))
    else:
        policy = max(generation_tokens, 1) / optimizer_steps
    kept = tokens if entropy_tokens is None else entropy_tokens
    return Normaliser(policy=policy, entropy=float(max(kept, 1)))
