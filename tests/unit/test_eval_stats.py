"""Estimators against brute force, intervals and p-values against simulated data."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from foveal.eval_stats import (
    EXACT_UP_TO,
    bootstrap,
    estimate,
    majority,
    paired_test,
    pass_at_k,
    sign_flip_p,
    wilson,
)


def test_pass_at_k_is_the_share_of_all_draws_that_hold_a_right_one():
    for n in range(1, 7):
        for c, k in itertools.product(range(n + 1), range(1, n + 1)):
            draws = list(itertools.combinations(range(n), k))
            hits = sum(any(sample < c for sample in draw) for draw in draws)
            assert pass_at_k(n, c, k) == pytest.approx(hits / len(draws), abs=1e-12)
    for wrong in ((4, 5, 1), (4, 1, 0), (4, 1, 5)):
        with pytest.raises(ValueError, match="must hold"):
            pass_at_k(*wrong)


@pytest.mark.parametrize(
    ("votes", "right", "value"),
    [
        ("aab", (1, 1, 0), 1.0),
        ("abb", (1, 0, 0), 0.0),
        ("aabb", (1, 1, 0, 0), 0.5),  # a tie counts its share
        ("abc", (1, 0, 0), 1 / 3),
        (("", "", "a"), (0, 0, 1), 1.0),  # no answer, no vote
        (("", ""), (0, 0), 0.0),
    ],
)
def test_majority_counts_votes_ties_and_samples_without_an_answer(votes, right, value):
    assert majority(list(votes), right) == pytest.approx(value)


def test_wilson_is_the_known_interval_and_stays_inside_0_and_1():
    # 7 of 10: (0.3968, 0.8922), as in Newcombe 1998's form of the formula.
    assert wilson(7, 10) == pytest.approx((0.3968, 0.8922), abs=1e-4)
    for successes, end in ((0, 0), (20, 1)):
        assert wilson(successes, 20)[end] == float(end)
        assert 0.1 < abs(wilson(successes, 20)[1 - end] - end) < 0.2


def test_the_bootstrap_interval_covers_the_truth_as_often_as_it_says():
    generator = np.random.default_rng(0)
    truth, covered, repetitions = 0.3, 0, 300
    for repetition in range(repetitions):
        # Prompts differ in difficulty; eight samples each.
        chances = generator.beta(3, 7, size=60)
        shares = generator.binomial(8, chances) / 8
        low, high = bootstrap(shares.tolist(), seed=repetition)
        covered += low <= truth <= high
    # 0.94 is what 60 prompts give; the standard error of the share is 0.013.
    assert 0.90 <= covered / repetitions <= 0.98


def test_an_estimate_without_spread_is_not_certain():
    found = estimate([0.0] * 20)
    assert (found.mean, found.low, found.method) == (0.0, 0.0, "wilson")
    assert found.high == pytest.approx(0.161, abs=1e-3)
    assert estimate([0.5, 0.25, 1.0]).method == "bootstrap"
    assert estimate([0.5, 0.25, 1.0], seed=3) == estimate([0.5, 0.25, 1.0], seed=3)


def test_the_paired_test_finds_a_planted_difference():
    generator = np.random.default_rng(1)
    chances = generator.uniform(0.1, 0.9, size=200)
    first = generator.binomial(8, chances) / 8
    second = generator.binomial(8, np.minimum(chances + 0.1, 1)) / 8
    found = paired_test(first.tolist(), second.tolist())
    assert found.difference == pytest.approx(float((second - first).mean()))
    assert 0 < found.low < found.difference < found.high
    assert found.p_value < 0.001
    # The other way round is the same difference with the other sign.
    back = paired_test(second.tolist(), first.tolist())
    assert (back.difference, back.p_value) == (-found.difference, found.p_value)


@pytest.mark.parametrize("prompts", [10, 40])
def test_p_is_uniform_where_there_is_no_difference(prompts):
    generator = np.random.default_rng(2)
    values = [
        sign_flip_p(generator.normal(size=prompts).tolist(), seed=number) for number in range(300)
    ]
    for level in (0.05, 0.25, 0.5, 0.9):
        # Three standard errors of a share of 300.
        assert (
            abs(np.mean(np.array(values) <= level) - level) < 3 * (level * (1 - level) / 300) ** 0.5
        )


def test_sign_flips_are_counted_exactly_where_they_are_few():
    # Of the 8 patterns of three equal differences, two are as extreme as all positive.
    assert sign_flip_p([0.0, 0.1, 0.1, 0.1, 0.0]) == 0.25
    assert sign_flip_p([0.0, 0.0]) == 1.0
    many = [0.1] * (EXACT_UP_TO + 20)
    assert 0 < sign_flip_p(many) < 0.001
    with pytest.raises(ValueError, match="same prompts"):
        paired_test([1.0], [1.0, 0.0])
