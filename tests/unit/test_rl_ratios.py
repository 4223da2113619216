"""Ratios, divergence and the two guards against a rollout that was not the policy's."""

import math

import pytest
import torch

from foveal.rl import (
    kl_k3,
    log_ratio,
    logprob_difference,
    mismatch_weight,
    off_policy_mask,
    stat_values,
)

NAN, INF = float("nan"), float("inf")


def tensor(rows):
    return torch.tensor(rows, dtype=torch.float64)


MASK = torch.tensor([[True, True, True], [True, False, False], [False, False, False]])


def test_sequence_ratio_is_the_mean_over_a_rows_own_tokens():
    policy = tensor([[-1.0, -2.0, -3.0], [-1.0, NAN, INF], [NAN, NAN, NAN]])
    old = tensor([[-1.5, -2.0, -2.0], [-4.0, -1.0, -INF], [0.0, 0.0, 0.0]])
    per_token = log_ratio(policy, old, MASK)
    assert per_token.tolist() == [[0.5, 0.0, -1.0], [3.0, 0.0, 0.0], [0.0, 0.0, 0.0]]
    per_row = log_ratio(policy, old, MASK, "sequence")
    assert per_row.flatten().tolist() == pytest.approx([-0.5 / 3, 3.0, 0.0])


def test_sequence_ratio_spreads_its_gradient_over_the_row():
    policy = torch.zeros(3, 3, dtype=torch.float64, requires_grad=True)
    log_ratio(policy, torch.zeros_like(policy), MASK, "sequence").sum().backward()
    assert policy.grad is not None
    assert policy.grad.tolist() == [[1 / 3] * 3, [1.0, 0.0, 0.0], [0.0] * 3]


def test_k3_is_zero_at_equality_positive_elsewhere_and_right_on_average():
    ref, policy = tensor([0.2, 0.3, 0.5]), tensor([0.6, 0.3, 0.1])
    kl = kl_k3(ref.log(), policy.log())
    # 0.2/0.6 - ln(0.2/0.6) - 1
    assert kl[0].item() == pytest.approx(1 / 3 + math.log(3) - 1)
    assert kl[1].item() == 0 and (kl >= 0).all()
    exact = (policy * (policy / ref).log()).sum()
    assert (policy * kl).sum().item() == pytest.approx(exact.item())


def test_bias_corrected_kl_has_the_gradient_of_the_true_divergence():
    logits = torch.tensor([0.3, -0.2, 0.9], dtype=torch.float64, requires_grad=True)
    policy = logits.log_softmax(0)
    ref = tensor([0.2, 0.3, 0.5]).log()
    ratio = (policy - policy.detach()).exp()
    # The expectation over samples of the policy, its probabilities held fixed as sampling does.
    (sampled,) = torch.autograd.grad(
        (policy.detach().exp() * kl_k3(ref, policy, ratio)).sum(), logits, retain_graph=True
    )
    (true,) = torch.autograd.grad((policy.exp() * (policy - ref)).sum(), logits)
    torch.testing.assert_close(sampled, true)


# Ratios 2, 0.5, 4 in the first row (product 4); 0.25 in the second.
TRAINER = tensor([[math.log(2), math.log(0.5), math.log(4)], [math.log(0.25), NAN, 9.0], [1.0] * 3])
ROLLOUT = torch.zeros(3, 3, dtype=torch.float64)


@pytest.mark.parametrize(
    ("mode", "clip_min", "clip_max", "expected"),
    [
        ("token_truncate", None, 3.0, [[2, 0.5, 3], [0.25, 1, 1], [1, 1, 1]]),
        ("token_truncate", 0.5, None, [[2, 0.5, 4], [0.5, 1, 1], [1, 1, 1]]),
        ("token_truncate", None, 0.4, [[0.4, 0.4, 0.4], [0.25, 1, 1], [1, 1, 1]]),
        ("token_mask", None, 3.0, [[2, 0.5, 0], [0.25, 1, 1], [1, 1, 1]]),
        ("token_mask", 0.3, None, [[2, 0.5, 4], [0, 1, 1], [1, 1, 1]]),
        ("sequence_truncate", 0.5, 3.0, [[3], [0.5], [1]]),
        ("sequence_mask", None, 3.0, [[0], [0.25], [1]]),
        ("sequence_mask", 0.3, 5.0, [[4], [0], [1]]),
        ("sequence_mask", None, None, [[4], [0.25], [1]]),
    ],
)
def test_mismatch_weight_of_each_mode(mode, clip_min, clip_max, expected):
    weight, _ = mismatch_weight(
        TRAINER, ROLLOUT, MASK, mode=mode, clip_min=clip_min, clip_max=clip_max
    )
    torch.testing.assert_close(weight, tensor(expected))


def test_mismatch_statistics_count_tokens_or_rows():
    _, stats = mismatch_weight(TRAINER, ROLLOUT, MASK, mode="token_truncate", clip_max=3.0)
    name = "sampling/importance_sampling_ratio"
    assert stat_values(stats) == pytest.approx(
        {f"{name}/min": 0.25, f"{name}/mean": 5.75 / 4, f"{name}/max": 3.0}
    )
    _, stats = mismatch_weight(TRAINER, ROLLOUT, MASK, mode="sequence_truncate", clip_max=3.0)
    assert stat_values(stats)[f"{name}/mean"] == pytest.approx((3 + 0.25 + 1) / 3)


def test_a_token_that_the_sampler_could_not_score_weighs_one_and_is_not_counted():
    rollout = ROLLOUT.clone()
    rollout[0, 2] = NAN
    weight, _ = mismatch_weight(TRAINER, rollout, MASK, mode="sequence_mask", clip_max=3.0)
    assert weight[0].item() == pytest.approx(1.0)
    stats = stat_values(logprob_difference(TRAINER, rollout, MASK))
    name = "sampling/sampling_logp_difference"
    assert stats == pytest.approx(
        {f"{name}/mean": math.log(2 * 2 * 4) / 3, f"{name}/max": math.log(4)}
    )


def test_mismatch_weight_carries_no_gradient():
    trainer = torch.zeros(1, 2, requires_grad=True)
    weight, _ = mismatch_weight(trainer, torch.zeros(1, 2), torch.ones(1, 2, dtype=torch.bool))
    assert not weight.requires_grad


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mode": "token"}, "mode is 'token'; known ones are token_truncate"),
        ({"mode": "token_truncate", "clip_max": None}, "needs clip_min or clip_max"),
        ({"clip_min": 3.0}, r"clip_min is 3.0; it must be below clip_max, 3.0"),
    ],
)
def test_mismatch_settings_that_mean_nothing_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        mismatch_weight(ROLLOUT, ROLLOUT, MASK, **arguments)


def test_off_policy_rows_are_dropped_only_if_their_advantage_is_negative():
    # Mean log(rollout / policy) a token: 1 in row 0 (NaN counts 0), 1 in row 1, 0 in row 2.
    policy = tensor([[-2.0, -2.0, -5.0], [-2.0, NAN, NAN], [-1.0] * 3])
    rollout = tensor([[-1.0, 0.0, NAN], [-1.0, 7.0, INF], [0.0] * 3])

    def kept(advantages, threshold):
        advantage_B1 = tensor(advantages).unsqueeze(1)
        return off_policy_mask(policy, rollout, MASK, advantage_B1, threshold).flatten().tolist()

    assert kept([-1, -1, -1], 0.5) == [False, False, True]
    assert kept([-1, -1, -1], 1.0) == [True, True, True]
    assert kept([0, 1, -1], 0.5) == [True, True, True]


def test_unknown_level_is_refused():
    with pytest.raises(ValueError, match="level is 'row'"):
        log_ratio(ROLLOUT, ROLLOUT, MASK, "row")
