"""Advantages: numbers worked out by hand, ties, missing rewards, bad input."""

import pytest
import torch

from foveal.rl import advantages_from_rewards, aggregate, group_advantages, nan_std

NAN = float("nan")


def rewards(rows, dtype=torch.float64):
    return torch.tensor(rows, dtype=dtype)


def test_deviation_divides_by_n_minus_1():
    # 1, 0, 0, 1: mean 1/2, squares 4 * 1/4 = 1, over 3.
    result = group_advantages(rewards([[1.0, 0.0, 0.0, 1.0]]))
    std = (1 / 3) ** 0.5
    assert result.mean_P.tolist() == [0.5]
    assert result.std_P.tolist() == pytest.approx([std])
    each = 0.5 / (std + 1e-4)
    assert result.advantage_PG[0].tolist() == pytest.approx([each, -each, -each, each])


def test_batch_scale_takes_the_deviation_of_all_groups_but_the_mean_of_one():
    # Group means 1 and 4; all rewards 0, 2, 3, 5: mean 2.5, squares 6.25 + .25 + .25 + 6.25 = 13.
    result = group_advantages(rewards([[0.0, 2.0], [3.0, 5.0]]), scale="batch")
    each = 1 / ((13 / 3) ** 0.5 + 1e-4)
    assert result.advantage_PG.flatten().tolist() == pytest.approx([-each, each, -each, each])


def test_scale_none_only_subtracts_the_mean():
    result = group_advantages(rewards([[0.0, 2.0], [3.0, 7.0]]), scale="none")
    assert result.advantage_PG.tolist() == [[-1.0, 1.0], [-2.0, 2.0]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", ["group", "batch", "none"])
@pytest.mark.parametrize(
    "tie",
    [
        [0.1] * 8,
        [0.1 + 0.2, 0.3] * 4,
        [0.1 + 0.7, 0.8] * 4,
        [1000.1] * 8,
        [0.1 + 0.2 - 0.3, 0.0] * 4,
    ],
)
def test_a_tied_group_gets_exact_zeros_beside_one_with_spread(tie, scale, dtype):
    result = group_advantages(rewards([tie, [0.0, 1.0] * 4], dtype), scale)
    assert result.advantage_PG[0].tolist() == [0.0] * 8
    assert result.zero_std_P.tolist() == [True, False]
    assert result.std_P[0] == 0


def test_the_tie_rule_is_needed():
    value = torch.full((7,), 0.1)
    assert (value - value.mean()).abs().max() > 0


def test_a_small_but_real_spread_is_no_tie():
    result = group_advantages(rewards([[0.5, 0.5001, 0.5, 0.5]], torch.float32))
    assert not result.zero_std_P.item()
    # Mean 0.500025, deviation 0.00005: 0.000075 / (0.00005 + 0.0001).
    assert result.advantage_PG[0, 1].item() == pytest.approx(0.5, rel=1e-2)


def test_a_missing_reward_is_left_out_of_mean_and_deviation():
    result = group_advantages(rewards([[0.0, NAN, 2.0, 4.0]]))
    # Of 0, 2, 4: mean 2, deviation 2.
    assert result.advantage_PG[0].tolist() == pytest.approx([-2 / 2.0001, 0.0, 0.0, 2 / 2.0001])
    assert result.mean_P.item() == 2 and result.std_P.item() == 2


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
@pytest.mark.parametrize("lonely", [[NAN, NAN, NAN], [NAN, 5.0, NAN]])
def test_groups_with_fewer_than_two_rewards_have_no_advantage(lonely, scale):
    result = group_advantages(rewards([lonely, [0.0, 1.0, 2.0]]), scale)
    assert result.advantage_PG[0].tolist() == [0.0, 0.0, 0.0]
    assert result.zero_std_P.tolist() == [True, False]
    assert result.advantage_PG.isfinite().all()


def test_a_group_of_one_has_no_advantage():
    assert group_advantages(rewards([[3.0]])).advantage_PG.item() == 0


def test_weights_multiply_and_missing_functions_add_nothing():
    reward_PGF = rewards([[[1.0, 2.0], [NAN, 3.0], [NAN, NAN]]])
    total = aggregate(reward_PGF, [10.0, 0.5])
    assert total[0, :2].tolist() == [11.0, 1.5]
    assert total[0, 2].isnan()


def test_normalise_then_sum_lets_a_function_of_small_spread_count():
    # The second function's spread is a thousandth of the first's, and opposes it.
    reward_PGF = rewards([[[0.0, 0.03], [1.0, 0.0]], [[0.0, 0.0], [10.0, 10.0]]])
    summed = advantages_from_rewards(reward_PGF)
    assert summed.advantage_PG[0, 1] > 0.69
    gdpo = advantages_from_rewards(reward_PGF, aggregation="normalize_then_sum")
    # Deviations: 1/sqrt 2, 0.03/sqrt 2, 10/sqrt 2; a score is +-0.5 x / (x/sqrt 2 + 1e-4).
    one, small, ten = (0.5 * x / (x / 2**0.5 + 1e-4) for x in (1.0, 0.03, 10.0))
    scores = [small - one, one - small, -2 * ten, 2 * ten]
    std = (sum(s * s for s in scores) / 3) ** 0.5
    assert gdpo.advantage_PG.flatten().tolist() == pytest.approx([s / (std + 1e-4) for s in scores])


def test_normalise_then_sum_gives_a_tied_group_exact_zeros():
    reward_PGF = torch.rand(3, 7, 2, generator=torch.Generator().manual_seed(0))
    reward_PGF[1] = torch.tensor([0.1, 0.7])
    result = advantages_from_rewards(reward_PGF, aggregation="normalize_then_sum")
    assert result.advantage_PG[1].tolist() == [0.0] * 7
    assert result.zero_std_P.tolist() == [False, True, False]


def test_normalise_then_sum_with_missing_rewards():
    reward_PGF = rewards(
        [[[1.0, NAN], [0.0, 5.0], [NAN, NAN]], [[0.0, 1.0], [1.0, 0.0], [0.0, 1.0]]]
    )
    result = advantages_from_rewards(reward_PGF, aggregation="normalize_then_sum")
    assert result.advantage_PG.isfinite().all()
    assert result.advantage_PG[0, 2] == 0
    assert result.advantage_PG[0, 0] > 0 > result.advantage_PG[0, 1]


def test_nan_std_agrees_with_torch_where_nothing_is_missing():
    value = torch.randn(4, 5, dtype=torch.float64)
    torch.testing.assert_close(nan_std(value, dim=-1), value.std(-1))
    torch.testing.assert_close(nan_std(value), value.std())


def test_an_infinite_reward_is_named_with_its_place():
    reward_PGF = torch.zeros(2, 3, 2)
    reward_PGF[1, 2, 0] = -torch.inf
    with pytest.raises(ValueError, match="prompt 1, completion 2, function 0 is -inf"):
        advantages_from_rewards(reward_PGF)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"scale": "std"}, "scale is 'std'; known ones are group, batch, none"),
        ({"aggregation": "mean"}, "aggregation is 'mean'; known ones are sum_then_normalize"),
        ({"weights": [1.0]}, "1 reward weights for 2 reward functions"),
    ],
)
def test_unknown_names_and_wrong_counts_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        advantages_from_rewards(torch.zeros(1, 2, 2), **arguments)
