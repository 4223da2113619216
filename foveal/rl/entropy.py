"""Entropy: which tokens to learn from, and a bonus that holds it up."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor


def entropy_threshold(entropy_N: Tensor, quantile: float) -> Tensor:
    """The entropy that the top ``quantile`` of the tokens reach, in nats, 0-dimensional.

    Args:
        entropy_N: of every unmasked token of the optimizer step, any order. A threshold over less
            than the step would make the gradient depend on how the step is split.
        quantile: rho of 2506.01939 (which takes 0.2). 0 keeps the largest only, 1 keeps all.

    +inf, which keeps nothing, if there are no tokens.
    """
    if not 0 <= quantile <= 1:
        raise ValueError(f"quantile is {quantile}; it must lie in [0, 1]")
    if entropy_N.numel() == 0:
        return entropy_N.new_full((), torch.inf)
    return torch.quantile(entropy_N.detach().float(), 1 - quantile)


def entropy_mask(entropy_BT: Tensor, mask_BT: Tensor, threshold: Tensor) -> Tensor:
    """bool ``[B, T]``: the unmasked tokens whose entropy is at least ``threshold``."""
    return (entropy_BT.detach() >= threshold) & mask_BT


@dataclass(frozen=True, slots=True, kw_only=True)
class EntropyControl:
    """A coefficient for the entropy bonus that follows a target (Skywork-OR1, 2505.22312).

    Immutable: keep what ``update`` returns, once an optimizer step. Two numbers make up its state:
    ``coef`` and ``last_entropy``.
    """

    coef: float = 0.0
    """The coefficient to begin with, and from then on the present one."""
    minimum: float = 0.0
    maximum: float = 1.0
    step: float = 0.005
    """How far the coefficient moves after each optimizer step."""
    target: float = 0.2
    """Mean entropy a token, in nats, over the tokens that the policy term is kept for."""
    last_entropy: float = float("inf")
    """Of the step before. Infinite at first: no bonus before something was measured."""

    def __post_init__(self) -> None:
        if not self.minimum <= self.maximum:
            raise ValueError(f"minimum is {self.minimum}; it must not be above {self.maximum}")
        if not self.step >= 0:
            raise ValueError(f"step is {self.step}; it must be 0 or above")

    @property
    def applied(self) -> float:
        """The coefficient for the next optimizer step: 0 while entropy is above the target."""
        return self.coef if self.last_entropy <= self.target else 0.0

    def update(self, mean_entropy: float) -> EntropyControl:
        """Up by ``step`` if the step's mean entropy was at most the target, else down."""
        if mean_entropy <= self.target:
            coef = min(self.coef + self.step, self.maximum)
        else:
            coef = max(self.coef - self.step, self.minimum)
        return replace(self, coef=coef, last_entropy=mean_entropy)
