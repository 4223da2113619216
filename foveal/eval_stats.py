"""What samples say about a model: estimators, intervals and a paired test, over plain numbers.

Prompts are the unit throughout: samples of one prompt depend on each other, so intervals draw
prompts anew and never single samples. Letters: P prompts, n samples of a prompt, c right ones,
R resamples.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

LEVEL = 0.95
"""Of every interval: the share of repetitions that cover the truth."""
RESAMPLES = 2000
FLIPS = 10_000
EXACT_UP_TO = 13
"""Differences other than zero up to which all sign patterns are counted (8,192 of them)."""

_DRAWS_AT_ONCE = 4_000_000
_TIE = 1e-12


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over prompts with its 95 % interval."""

    mean: float
    low: float
    high: float
    prompts: int
    method: str
    """"wilson" or "bootstrap"; "none" for a single prompt whose value is not 0 or 1."""


@dataclass(frozen=True, slots=True)
class PairedTest:
    """Second minus first, over the same prompts."""

    difference: float
    low: float
    high: float
    p_value: float
    """Two-sided: how often signs given at random make a mean difference at least as large."""
    prompts: int


def pass_at_k(n: int, c: int, k: int) -> float:
    """Probability that k of the n samples, drawn without replacement, hold a right one.

    ``1 - C(n-c, k) / C(n, k)``: unbiased for the chance that k fresh samples hold one. Chen et
    al. 2021, arXiv:2107.03374, equation 1.

    Raises:
        ValueError: unless ``0 <= c <= n`` and ``1 <= k <= n``.
    """
    if not (0 <= c <= n and 1 <= k <= n):
        raise ValueError(f"n is {n}, c is {c}, k is {k}; 0 <= c <= n and 1 <= k <= n must hold")
    return 1.0 - math.comb(n - c, k) / math.comb(n, k)


def majority(votes: Sequence[str], right: Sequence[float]) -> float:
    """Whether the most frequent answer of one prompt is right.

    Args:
        votes: answer of each sample in one spelling; empty for a sample without one, which has
            no vote.
        right: 1 or 0 of each sample.

    Returns:
        Share of right samples under the most frequent answer, which is 0 or 1 where equal answers
        are judged alike; the mean over the answers that tie for most votes; 0 without any vote.
    """
    judged: dict[str, list[float]] = {}
    for vote, value in zip(votes, right, strict=True):
        if vote:
            judged.setdefault(vote, []).append(value)
    if not judged:
        return 0.0
    most = max(map(len, judged.values()))
    winners = [sum(values) / most for values in judged.values() if len(values) == most]
    return sum(winners) / len(winners)


def wilson(successes: int, trials: int, level: float = LEVEL) -> tuple[float, float]:
    """Score interval of a proportion (Wilson 1927, J. Am. Stat. Assoc. 22, 209).

    Raises:
        ValueError: unless ``0 <= successes <= trials`` and ``trials >= 1``.
    """
    if not (trials >= 1 and 0 <= successes <= trials):
        raise ValueError(f"{successes} successes in {trials} trials; 0 <= successes <= trials")
    z2 = NormalDist().inv_cdf((1 + level) / 2) ** 2
    share = successes / trials
    centre = (share + z2 / (2 * trials)) / (1 + z2 / trials)
    spread = share * (1 - share) / trials + z2 / (4 * trials**2)
    half = math.sqrt(z2 * spread) / (1 + z2 / trials)
    # Exactly 0 and 1 at the ends, where rounding would leave 1e-17.
    low = 0.0 if successes == 0 else centre - half
    return low, 1.0 if successes == trials else centre + half


def bootstrap(values: Sequence[float], seed: int = 0, level: float = LEVEL) -> tuple[float, float]:
    """Percentile interval of the mean of P values, prompts drawn with replacement.

    Raises:
        ValueError: for no value.
    """
    value_P = np.asarray(values, dtype=float)
    if not value_P.size:
        raise ValueError("there is no value to draw from; give at least one")
    generator = np.random.default_rng(seed)
    rows = max(1, _DRAWS_AT_ONCE // value_P.size)
    means = [
        value_P[generator.integers(value_P.size, size=(min(rows, RESAMPLES - done), value_P.size))]
        .mean(axis=1)
        .tolist()
        for done in range(0, RESAMPLES, rows)
    ]
    low, high = np.quantile(np.concatenate(means), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def estimate(values: Sequence[float], seed: int = 0) -> Estimate:
    """Mean over prompts and its interval.

    Wilson's where every prompt counts 0 or 1: one sample each, or no spread at all, of which a
    resample would make certainty. Else the bootstrap over prompts.

    Args:
        values: one finite value a prompt.
        seed: of the bootstrap.

    Raises:
        ValueError: for no value.
    """
    if not len(values):
        raise ValueError("there is no value to average; give at least one")
    mean = math.fsum(values) / len(values)
    if all(value in (0.0, 1.0) for value in values):
        low, high = wilson(round(math.fsum(values)), len(values))
        return Estimate(mean, low, high, len(values), "wilson")
    low, high = bootstrap(values, seed)
    return Estimate(mean, low, high, len(values), "bootstrap" if len(values) > 1 else "none")


def paired_test(first: Sequence[float], second: Sequence[float], seed: int = 0) -> PairedTest:
    """Compare two models on the same prompts.

    Args:
        first, second: one value a prompt, in the same order.
        seed: of resamples and sign flips.

    Returns:
        Mean difference with its bootstrap interval over prompts, and the p-value of a sign-flip
        permutation test: exact up to ``EXACT_UP_TO`` differences, else of ``FLIPS`` draws, with
        the observed signs counted among them so that p is never 0.

    Raises:
        ValueError: for no prompt, or values that differ in number.
    """
    if len(first) != len(second) or not len(first):
        raise ValueError(
            f"{len(first)} and {len(second)} values; a paired test needs the same prompts in both, "
            "at least one"
        )
    difference_P = np.asarray(second, dtype=float) - np.asarray(first, dtype=float)
    low, high = bootstrap(difference_P.tolist(), seed)
    p_value = sign_flip_p(difference_P.tolist(), seed)
    return PairedTest(float(difference_P.mean()), low, high, p_value, len(first))


def sign_flip_p(differences: Sequence[float], seed: int = 0) -> float:
    """Two-sided p-value of "each difference might as well have had the other sign"."""
    moved = np.asarray([value for value in differences if value != 0.0], dtype=float)
    if not moved.size:
        return 1.0
    reach = abs(moved.sum()) - _TIE * np.abs(moved).sum()
    if moved.size <= EXACT_UP_TO:
        numbers = np.arange(2**moved.size)[:, None]
        sign_RP = 1 - 2 * (numbers >> np.arange(moved.size) & 1)
        return float((np.abs(sign_RP @ moved) >= reach).mean())
    generator = np.random.default_rng(seed)
    rows, found = max(1, _DRAWS_AT_ONCE // moved.size), 0
    for done in range(0, FLIPS, rows):
        size = (min(rows, FLIPS - done), moved.size)
        sign_RP = 1 - 2 * generator.integers(2, size=size, dtype=np.int8)
        found += int((np.abs(sign_RP @ moved) >= reach).sum())
    return (found + 1) / (FLIPS + 1)
