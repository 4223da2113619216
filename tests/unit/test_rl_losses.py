"""The losses: numbers worked out by hand, and the laws that every loss type must keep."""

import math

import pytest
import torch

from foveal.rl import (
    AGGREGATION,
    PER_TOKEN,
    LossSpec,
    entropy_mask,
    entropy_threshold,
    merge_stats,
    policy_loss,
    stat_values,
    step_normaliser,
)

LOSS_TYPES = list(AGGREGATION)
LEVELS = ["token", "sequence"]
NAN, INF = float("nan"), float("inf")


def tensor(rows, **kwargs):
    return torch.tensor(rows, dtype=torch.float64, **kwargs)


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


# Two rows. Row 0: two tokens of ratio 1.5 and 0.9, advantage 1. Row 1: one token of ratio 0.5,
# advantage -2. Probabilities of the tokens under the policy: 1/2, 1/4; 1/2.
LN2 = math.log(2)
POLICY = [[-LN2, -2 * LN2], [-LN2, 0.0]]
LOG_RATIO = [[math.log(1.5), math.log(0.9)], [math.log(0.5), 0.0]]
MASK = torch.tensor([[True, True], [True, False]])
ADVANTAGE = [1.0, -2.0]


def two_rows(spec, **normaliser):
    """The loss, its gradient and the statistics of the two rows as one optimizer step."""
    policy = tensor(POLICY, requires_grad=True)
    output = policy_loss(
        spec,
        policy_logprob_BT=policy,
        old_logprob_BT=policy.detach() - tensor(LOG_RATIO),
        advantage_B=tensor(ADVANTAGE),
        mask_BT=MASK,
        normaliser=step_normaliser(spec, [2, 1], **normaliser),
    )
    output.loss.backward()
    assert policy.grad is not None
    return output.loss.item(), policy.grad.tolist(), stat_values(output.stats)


# The clipped losses of the three tokens at epsilon 0.2, and their gradients:
#   -min(1.5, 1.2) = -1.2, clipped, 0;   -min(0.9, 0.9), gradient -0.9;
#   -min(0.5 * -2, 0.8 * -2) = 1.6, clipped, 0.
CLIPPED_HAND = {
    "grpo": ((-(1.2 + 0.9) / 2 + 1.6) / 2, -0.9 / 2 / 2),
    "bnpo": ((-1.2 - 0.9 + 1.6) / 3, -0.9 / 3),
    "dr_grpo": ((-1.2 - 0.9 + 1.6) / (2 * 4), -0.9 / 8),
    "dapo": ((-1.2 - 0.9 + 1.6) / 3, -0.9 / 3),
    "luspo": ((-1.2 - 0.9 + 1.6) / 2, -0.9 / 2),
}


@pytest.mark.parametrize("loss_type", CLIPPED_HAND)
def test_clipped_losses_by_hand(loss_type):
    loss, grad, stats = two_rows(LossSpec(loss_type=loss_type, max_completion_length=4))
    expected_loss, expected_grad = CLIPPED_HAND[loss_type]
    assert loss == pytest.approx(expected_loss)
    assert grad[0] == pytest.approx([0.0, expected_grad])
    assert grad[1] == [0.0, 0.0]
    assert stats == pytest.approx(
        {
            "policy_loss": expected_loss,
            "clip_ratio/low_mean": 1 / 3,
            "clip_ratio/low_min": 0.0,
            "clip_ratio/high_mean": 1 / 3,
            "clip_ratio/high_max": 0.5,
            "clip_ratio/region_mean": 2 / 3,
        }
    )


def test_dapo_divides_by_its_share_of_the_generation_batch():
    loss, _, _ = two_rows(LossSpec(loss_type="dapo"), generation_tokens=12, optimizer_steps=2)
    assert loss == pytest.approx((-1.2 - 0.9 + 1.6) / 6)


def test_gspo_by_hand():
    # Row 0's ratio is sqrt(1.5 * 0.9), inside the range; row 1's 0.5 is clipped.
    loss, grad, stats = two_rows(LossSpec(loss_type="grpo", importance_level="sequence"))
    ratio = math.sqrt(1.35)
    assert loss == pytest.approx((-ratio + 1.6) / 2)
    # The ratio's gradient for each of the two tokens is ratio / 2; the row counts half.
    assert grad[0] == pytest.approx([-ratio / 4, -ratio / 4])
    assert grad[1] == [0.0, 0.0]
    assert stats["clip_ratio/low_mean"] == 0.5 and stats["clip_ratio/high_mean"] == 0.0


def test_epsilons_bound_their_own_side():
    spec = LossSpec(loss_type="bnpo", epsilon_low=0.6, epsilon_high=0.3)
    loss, grad, _ = two_rows(spec)
    # 1.5 is cut to 1.3; 0.5 is inside [0.4, 1.3] now, with the gradient -A r.
    assert loss == pytest.approx((-1.3 - 0.9 + 2 * 0.5) / 3)
    assert grad[1] == pytest.approx([2 * 0.5 / 3, 0.0])


def test_delta_caps_what_a_negative_advantage_can_lose():
    policy = tensor([[0.0, 0.0]], requires_grad=True)
    spec = LossSpec(loss_type="bnpo", delta=3.0)
    output = policy_loss(
        spec,
        policy_logprob_BT=policy,
        old_logprob_BT=-tensor([[math.log(10), math.log(2)]]),
        advantage_B=tensor([-1.0]),
        mask_BT=torch.ones(1, 2, dtype=torch.bool),
        normaliser=step_normaliser(spec, [2]),
    )
    output.loss.backward()
    assert output.loss.item() == pytest.approx((3 + 2) / 2)
    assert policy.grad is not None
    assert policy.grad[0].tolist() == pytest.approx([0.0, 2 / 2])


def test_cispo_by_hand():
    loss, grad, stats = two_rows(LossSpec(loss_type="cispo", epsilon_high=1.2))
    # -w A log p: 1.2 * 1 * ln 2 + 0.9 * 2 ln 2 - 0.5 * 2 ln 2 = 2 ln 2.
    assert loss == pytest.approx(2 * LN2 / 3)
    # The clipped token keeps its gradient.
    assert grad[0] == pytest.approx([-1.2 / 3, -0.9 / 3])
    assert grad[1] == pytest.approx([0.5 * 2 / 3, 0.0])
    assert stats["cispo_clip_ratio"] == pytest.approx(1 / 3)


def test_sapo_by_hand():
    spec = LossSpec(loss_type="sapo", sapo_temperature_pos=1.0, sapo_temperature_neg=2.0)
    loss, grad, _ = two_rows(spec)
    row_0 = -(4 * sigmoid(0.5) + 4 * sigmoid(-0.1)) / 2
    row_1 = 2 * 2 * sigmoid(2 * -0.5)
    assert loss == pytest.approx((row_0 + row_1) / 2)
    # d/d log p = -A r 4 s (1 - s)
    slope = 4 * sigmoid(-0.1) * sigmoid(0.1)
    assert grad[0][1] == pytest.approx(-0.9 * slope / 2 / 2)
    slope = 4 * sigmoid(-1.0) * sigmoid(1.0)
    assert grad[1] == pytest.approx([2 * 0.5 * slope / 2, 0.0])


def test_vespo_by_hand():
    loss, grad, stats = two_rows(LossSpec(loss_type="vespo"))
    # w = 1.5 * 0.9 with k 2, lambda 3; w = 0.5 with k 3, lambda 2.
    phi_0 = 1.35**2 * math.exp(3 * (1 - 1.35))
    phi_1 = 0.5**3 * math.exp(2 * 0.5)
    assert loss == pytest.approx((3 * LN2 * phi_0 - 2 * LN2 * phi_1) / 3, rel=1e-6)
    assert grad[0] == pytest.approx([-phi_0 / 3, -phi_0 / 3], rel=1e-6)
    assert grad[1] == pytest.approx([2 * phi_1 / 3, 0.0], rel=1e-6)
    assert stats["vespo/phi_seq_mean"] == pytest.approx((phi_0 + phi_1) / 2, rel=1e-6)


def test_kl_and_entropy_terms_by_hand():
    spec = LossSpec(loss_type="bnpo", beta=0.5, bias_corrected_kl=False, entropy_coef=0.1)
    policy = tensor([[0.0, 0.0]], requires_grad=True)
    entropy = tensor([[1.0, 3.0]], requires_grad=True)
    output = policy_loss(
        spec,
        policy_logprob_BT=policy,
        advantage_B=tensor([0.0]),
        mask_BT=torch.ones(1, 2, dtype=torch.bool),
        normaliser=step_normaliser(spec, [2]),
        ref_logprob_BT=tensor([[math.log(2), 0.0]]),
        entropy_BT=entropy,
    )
    output.loss.backward()
    kl = (2 - LN2 - 1) / 2
    assert output.loss.item() == pytest.approx(0.5 * kl - 0.1 * 2)
    assert policy.grad is not None and entropy.grad is not None
    assert policy.grad[0].tolist() == pytest.approx([0.5 * (-2 + 1) / 2, 0.0])
    assert entropy.grad[0].tolist() == pytest.approx([-0.05, -0.05])
    stats = stat_values(output.stats)
    assert stats["kl"] == pytest.approx(kl) and stats["entropy"] == 2
    assert stats["policy_loss"] == pytest.approx(0.5 * kl)


# ---- laws for every loss type ----


def make_spec(loss_type, level="token", **kwargs):
    high = 5.0 if loss_type == "cispo" else 0.3
    return LossSpec(
        loss_type=loss_type,
        importance_level=level,
        epsilon_high=high,
        max_completion_length=9,
        **kwargs,
    )


LENGTHS = [5, 1, 0, 7, 3, 7, 2, 4]


def make_rows(seed=0):
    """Eight rows, one of them masked whole, with everything that a loss may want."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    rows, tokens = len(LENGTHS), max(LENGTHS)
    policy_BT = -normal(rows, tokens).abs()
    entropy_BT = normal(rows, tokens).abs()
    mask_BT = torch.arange(tokens) < torch.tensor(LENGTHS).unsqueeze(1)
    return {
        "policy_logprob_BT": policy_BT,
        "advantage_B": normal(rows),
        "mask_BT": mask_BT,
        "old_logprob_BT": policy_BT - 0.3 * normal(rows, tokens),
        "rollout_logprob_BT": policy_BT - 0.3 * normal(rows, tokens),
        "ref_logprob_BT": policy_BT - 0.5 * normal(rows, tokens),
        "entropy_BT": entropy_BT,
        "mismatch_weight": (0.3 * normal(rows, tokens)).exp(),
        "entropy_mask_BT": entropy_mask(
            entropy_BT, mask_BT, entropy_threshold(entropy_BT[mask_BT], 0.6)
        ),
    }


EVERYTHING = {
    "beta": 0.1,
    "entropy_coef": 0.05,
    "top_entropy_quantile": 0.6,
    "off_policy_mask_threshold": 0.1,
}


def full_normaliser(spec, rows, lengths=LENGTHS):
    kept = int(rows["entropy_mask_BT"].sum())
    return step_normaliser(
        spec, lengths, generation_tokens=100, optimizer_steps=2, entropy_tokens=kept
    )


def gradients(spec, rows, normaliser):
    leaves = {
        name: rows[name].clone().requires_grad_() for name in ("policy_logprob_BT", "entropy_BT")
    }
    output = policy_loss(spec, normaliser=normaliser, **{**rows, **leaves})
    output.loss.backward()
    return output, [leaf.grad for leaf in leaves.values()]


SPLITS = [
    [[i] for i in range(8)],
    [[0, 1, 2, 3], [4, 5, 6, 7]],
    [[7, 2], [0, 5, 3, 1, 6], [4]],
    [[2], [1, 3, 4, 5, 6, 7, 0]],
]


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_any_split_into_micro_batches_gives_the_gradient_of_the_whole(loss_type, level):
    spec = make_spec(loss_type, level, **EVERYTHING)
    rows = make_rows()
    normaliser = full_normaliser(spec, rows)
    whole, whole_grad = gradients(spec, rows, normaliser)
    for split in SPLITS:
        total = [torch.zeros_like(grad) for grad in whole_grad]
        loss, stats = 0.0, {}
        for part in split:
            width = max(1, max(LENGTHS[i] for i in part))  # padded to its own longest row
            some = {
                name: value[part] if value.dim() == 1 else value[part, :width]
                for name, value in rows.items()
            }
            output, grads = gradients(spec, some, normaliser)
            for sum_, grad in zip(total, grads, strict=True):
                sum_[part, :width] += grad
            loss += output.loss.item()
            stats = merge_stats(stats, output.stats)
        torch.testing.assert_close(total, whole_grad)
        assert loss == pytest.approx(whole.loss.item())
        assert stat_values(stats) == pytest.approx(stat_values(whole.stats))


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_a_masked_token_has_no_influence_whatever_its_numbers(loss_type, level):
    spec = make_spec(loss_type, level, **EVERYTHING)
    rows = make_rows()
    normaliser = full_normaliser(spec, rows)
    clean, clean_grad = gradients(spec, rows, normaliser)
    hidden_BT = ~rows["mask_BT"]
    for value in (NAN, INF, -INF, 1e30):
        dirty_rows = {
            name: x.masked_fill(hidden_BT, value) if x.dim() == 2 and x.is_floating_point() else x
            for name, x in rows.items()
        }
        dirty, dirty_grad = gradients(spec, dirty_rows, normaliser)
        torch.testing.assert_close(dirty_grad, clean_grad, rtol=0, atol=0)
        assert all((grad[hidden_BT] == 0).all() for grad in dirty_grad)
        assert dirty.loss.item() == clean.loss.item()
        assert stat_values(dirty.stats) == stat_values(clean.stats)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_on_policy_the_gradient_is_that_of_reinforce(loss_type, level):
    spec = make_spec(loss_type, level)
    rows = make_rows()
    normaliser = step_normaliser(spec, LENGTHS)
    policy_BT = rows["policy_logprob_BT"].clone().requires_grad_()
    mask_BT = rows["mask_BT"]
    output = policy_loss(
        spec,
        policy_logprob_BT=policy_BT,
        advantage_B=rows["advantage_B"],
        mask_BT=mask_BT,
        normaliser=normaliser,
    )
    output.loss.backward()

    weight_B1 = rows["advantage_B"].unsqueeze(1)
    if AGGREGATION[loss_type].within_row == "mean":
        weight_B1 = weight_B1 / torch.tensor(LENGTHS).clamp(min=1).unsqueeze(1)
    tokens = sum(LENGTHS)
    divisor = {"dr_grpo": 8 * 9, "grpo": 8, "sapo": 8, "luspo": 8}.get(loss_type, tokens)
    expected = (-weight_B1 * mask_BT / divisor).to(torch.float64)
    torch.testing.assert_close(policy_BT.grad, expected)


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_a_step_of_masked_rows_only_is_zero_and_finite(loss_type):
    spec = make_spec(loss_type, **EVERYTHING)
    rows = make_rows()
    rows["mask_BT"] = torch.zeros_like(rows["mask_BT"])
    normaliser = step_normaliser(spec, [0] * 8, entropy_tokens=0)
    output, grads = gradients(spec, rows, normaliser)
    assert output.loss.item() == 0
    assert all((grad == 0).all() for grad in grads)
    values = stat_values(output.stats)
    assert values["kl"] == 0 and values["entropy"] == 0


def test_a_row_that_is_masked_whole_still_counts_as_a_row():
    for loss_type, divisor in [("grpo", 3), ("sapo", 3), ("luspo", 3), ("dr_grpo", 27)]:
        assert step_normaliser(make_spec(loss_type), [4, 0, 2]).policy == divisor
    for loss_type in ("bnpo", "dapo", "cispo", "vespo"):
        assert step_normaliser(make_spec(loss_type), [4, 0, 2]).policy == 6


def test_a_step_of_several_generation_batches_shares_each_batch_out():
    # Half a generation batch's worth of steps a pass: its 10 tokens count as 20.
    normaliser = step_normaliser(
        make_spec("dapo"), [4, 6, 1, 3], generation_tokens=10, optimizer_steps=0.5
    )
    assert normaliser.policy == 20


def test_entropy_mask_keeps_the_kl_of_the_tokens_it_drops():
    rows = make_rows()
    spec = make_spec("bnpo", beta=0.2, top_entropy_quantile=0.5)
    rows["entropy_mask_BT"] = torch.zeros_like(rows["mask_BT"])
    output, (grad, _) = gradients(spec, rows, step_normaliser(spec, LENGTHS))
    assert output.loss.item() == pytest.approx(0.2 * stat_values(output.stats)["kl"])
    assert (grad[rows["mask_BT"]] != 0).all()


def test_vespo_takes_the_mismatch_into_its_weight_once():
    rows = make_rows()
    spec = make_spec("vespo")
    normaliser = step_normaliser(spec, LENGTHS)
    corrected, _ = gradients(spec, rows, normaliser)
    shifted = {**rows, "mismatch_weight": None}
    shifted["old_logprob_BT"] = rows["old_logprob_BT"] - rows["mismatch_weight"].log()
    same, _ = gradients(spec, shifted, normaliser)
    assert corrected.loss.item() == pytest.approx(same.loss.item())


def test_mismatch_weight_multiplies_the_policy_term_and_not_the_kl():
    rows = make_rows()
    spec = make_spec("dapo", beta=0.2)
    normaliser = step_normaliser(spec, LENGTHS)
    kl_only, _ = gradients(spec, {**rows, "mismatch_weight": torch.zeros(8, 1)}, normaliser)
    assert kl_only.loss.item() == pytest.approx(0.2 * stat_values(kl_only.stats)["kl"])


# ---- what is refused ----


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"loss_type": "ppo"}, "loss_type is 'ppo'; known ones are grpo, bnpo, dr_grpo, dapo"),
        ({"importance_level": "row"}, "importance_level is 'row'; it must be 'token' or"),
        ({"epsilon_low": -0.1}, "epsilon_low is -0.1; it must be 0 or a finite number above"),
        ({"epsilon_high": INF}, "epsilon_high is inf"),
        ({"beta": NAN}, "beta is nan"),
        ({"delta": 0.0}, "delta is 0.0; it must be a finite number above 0"),
        ({"loss_type": "sapo", "delta": 2.0}, "delta is 2.0, but loss_type 'sapo' clips no ratio"),
        ({"loss_type": "dr_grpo"}, "max_completion_length is None, but loss_type 'dr_grpo'"),
        ({"loss_type": "sapo", "sapo_temperature_pos": 0.0}, "sapo_temperature_pos is 0.0"),
        ({"top_entropy_quantile": 1.5}, r"top_entropy_quantile is 1.5; it must be in \[0, 1\]"),
        ({"max_completion_length": 0}, "max_completion_length is 0; it must be at least 1"),
        ({"entropy_coef": INF}, "entropy_coef is inf; it must be finite"),
    ],
)
def test_a_spec_that_cannot_be_meant_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        LossSpec(**arguments)


@pytest.mark.parametrize(
    ("spec", "changes", "message"),
    [
        ({"beta": 0.1}, {"ref_logprob_BT": None}, "beta is 0.1, which needs ref_logprob_BT"),
        (
            {"entropy_coef": 0.1},
            {"entropy_BT": None},
            "entropy_coef is 0.1, which needs entropy_BT",
        ),
        (
            {"top_entropy_quantile": 0.2},
            {"entropy_mask_BT": None},
            "top_entropy_quantile is 0.2, which needs entropy_mask_BT",
        ),
        (
            {},
            {"advantage_B": torch.zeros(8, 7)},
            r"advantage_B has shape \[8, 7\]; it must be \[8\]",
        ),
        ({}, {"mask_BT": torch.ones(8, 6)}, r"mask_BT has shape \[8, 6\]; it must be \[8, 7\]"),
        ({}, {"mismatch_weight": torch.ones(8)}, r"it must be \[8, 7\] or \[8, 1\]"),
        (
            {"loss_type": "vespo"},
            {"mismatch_weight": torch.ones(8, 1)},
            r"mismatch_weight has shape \[8, 1\]; it must be \[8, 7\]",
        ),
    ],
)
def test_missing_or_misshapen_tensors_are_named(spec, changes, message):
    spec = LossSpec(**spec)
    with pytest.raises(ValueError, match=message):
        policy_loss(spec, normaliser=step_normaliser(spec, LENGTHS), **{**make_rows(), **changes})


def test_sixteen_bit_log_probabilities_are_refused():
    rows = make_rows()
    rows["policy_logprob_BT"] = rows["policy_logprob_BT"].bfloat16()
    spec = LossSpec()
    with pytest.raises(TypeError, match=r"torch\.bfloat16"):
        policy_loss(spec, normaliser=step_normaliser(spec, LENGTHS), **rows)


@pytest.mark.parametrize(
    ("lengths", "arguments", "message"),
    [
        ([], {}, "row_lengths is empty"),
        ([1], {"optimizer_steps": 2}, "optimizer_steps is 2, so the generation batch is not"),
        ([1], {"optimizer_steps": 0}, "optimizer_steps is 0; it must be above 0"),
    ],
)
def test_a_normaliser_of_too_little_is_refused(lengths, arguments, message):
    with pytest.raises(ValueError, match=message):
        step_normaliser(LossSpec(), lengths, **arguments)


def test_every_loss_type_has_a_formula_and_an_aggregation():
    assert PER_TOKEN.keys() == AGGREGATION.keys()
