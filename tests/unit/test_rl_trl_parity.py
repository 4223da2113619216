"""TRL 1.16 as the oracle: the same numbers into its loss and ours, the same loss, gradients and
metrics out. TRL's loss is called unbound, on a stand-in that has the attributes it reads; its
advantage and mismatch code sits inside a long method and is cut out of the source by its syntax."""

import ast
import inspect
import math
import textwrap
from collections import defaultdict
from types import SimpleNamespace

import pytest
import torch

from foveal.rl import (
    AGGREGATION,
    MISMATCH_MODES,
    EntropyControl,
    LossSpec,
    advantages_from_rewards,
    entropy_mask,
    entropy_threshold,
    logprob_difference,
    mismatch_weight,
    policy_loss,
    stat_values,
    step_normaliser,
)

trl_module = pytest.importorskip("trl.trainer.grpo_trainer", reason="needs trl, the oracle")
TRL = trl_module.GRPOTrainer

ROWS, TOKENS, MAX_LENGTH = 6, 5, 7
NAN = float("nan")


# ---- the loss ----


class Accelerator:
    """One process."""

    num_processes = 1
    sync_gradients = True

    def gather(self, tensor):
        return tensor

    def gather_for_metrics(self, tensor):
        return tensor

    def reduce(self, tensor, reduction):
        assert reduction == "sum"
        return tensor

    def pad_across_processes(self, tensor, dim, pad_index):
        return tensor


def trl_trainer(spec, *, training=True, accumulation=1, steps_per_generation=1, correction=False):
    """What ``GRPOTrainer._compute_loss`` reads of a trainer, set up as ``spec``."""
    args = SimpleNamespace(
        delta=spec.delta,
        use_bias_correction_kl=spec.bias_corrected_kl,
        sapo_temperature_pos=spec.sapo_temperature_pos,
        sapo_temperature_neg=spec.sapo_temperature_neg,
        vespo_k_pos=spec.vespo_k_pos,
        vespo_lambda_pos=spec.vespo_lambda_pos,
        vespo_k_neg=spec.vespo_k_neg,
        vespo_lambda_neg=spec.vespo_lambda_neg,
        steps_per_generation=steps_per_generation,
    )
    trainer = SimpleNamespace(
        args=args,
        accelerator=Accelerator(),
        model=SimpleNamespace(training=training),
        loss_type=spec.loss_type,
        importance_sampling_level=spec.importance_level,
        epsilon_low=spec.epsilon_low,
        epsilon_high=spec.epsilon_high,
        beta=spec.beta,
        max_completion_length=spec.max_completion_length,
        off_policy_mask_threshold=spec.off_policy_mask_threshold,
        top_entropy_quantile=spec.top_entropy_quantile,
        entropy_coef=spec.entropy_coef,
        use_adaptive_entropy=False,
        _entropy_bonus_enabled=spec.entropy_coef != 0,
        use_vllm=correction,
        vllm_importance_sampling_correction=correction,
        aux_loss_enabled=False,
        current_gradient_accumulation_steps=accumulation,
        get_off_policy_mask=TRL.get_off_policy_mask,
        get_gamma_weights=TRL.get_gamma_weights,
        _metrics={"train": defaultdict(list), "eval": defaultdict(list)},
    )
    trainer.get_high_entropy_mask = TRL.get_high_entropy_mask.__get__(trainer)
    return trainer


def trl_loss(trainer, rows, policy_BT, entropy_BT, generation_tokens):
    count, tokens = policy_BT.shape
    nothing = torch.zeros(count, 1, dtype=torch.long)
    inputs = {
        "prompt_ids": nothing,
        "prompt_mask": nothing,
        "completion_ids": torch.zeros(count, tokens, dtype=torch.long),
        "completion_mask": rows["mask_BT"].long(),
        "advantages": rows["advantage_B"],
        "num_items_in_batch": torch.tensor(generation_tokens),
    }
    for ours, theirs in {
        "old_logprob_BT": "old_per_token_logps",
        "ref_logprob_BT": "ref_per_token_logps",
        "rollout_logprob_BT": "sampling_per_token_logps",
        "mismatch_weight": "importance_sampling_ratio",
    }.items():
        if rows.get(ours) is not None:
            inputs[theirs] = rows[ours]
    trainer._get_per_token_logps_and_entropies = lambda *_, **__: (policy_BT, entropy_BT, None)
    return TRL._compute_loss(trainer, trainer.model, inputs)


def make_rows(seed=0, *, spread=0.4, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=dtype)

    policy_BT = -normal(ROWS, TOKENS).abs() - 0.1
    lengths = torch.tensor([5, 2, 0, 1, 4, 5])
    return {
        "policy_logprob_BT": policy_BT,
        "entropy_BT": normal(ROWS, TOKENS).abs(),
        "advantage_B": torch.tensor([1.3, -0.7, 0.4, 0.0, -1.1, 0.9], dtype=dtype),
        "mask_BT": torch.arange(TOKENS) < lengths.unsqueeze(1),
        "old_logprob_BT": policy_BT + spread * normal(ROWS, TOKENS),
        "ref_logprob_BT": policy_BT + spread * normal(ROWS, TOKENS),
        "rollout_logprob_BT": policy_BT + spread * normal(ROWS, TOKENS),
    }


def compare(spec, rows, *, training=True, generation_tokens=None, steps=1):
    """One optimizer step of one micro-batch through both; ``steps`` of them a generation batch."""
    lengths = rows["mask_BT"].sum(-1).tolist()
    tokens = sum(lengths)
    leaves = [rows[name].clone().requires_grad_() for name in ("policy_logprob_BT", "entropy_BT")]
    trainer = trl_trainer(
        spec,
        training=training,
        steps_per_generation=steps,
        correction=rows.get("mismatch_weight") is not None,
    )
    expected = trl_loss(trainer, rows, *leaves, generation_tokens or tokens)
    expected_grad = torch.autograd.grad(expected, leaves, allow_unused=True)

    ours = {**rows, "policy_logprob_BT": leaves[0], "entropy_BT": leaves[1]}
    kept = tokens
    if spec.top_entropy_quantile < 1:
        threshold = entropy_threshold(
            rows["entropy_BT"][rows["mask_BT"]], spec.top_entropy_quantile
        )
        ours["entropy_mask_BT"] = entropy_mask(rows["entropy_BT"], rows["mask_BT"], threshold)
        kept = int(ours["entropy_mask_BT"].sum())
    normaliser = step_normaliser(
        spec,
        lengths,
        generation_tokens=generation_tokens,
        optimizer_steps=steps,
        entropy_tokens=kept,
    )
    output = policy_loss(spec, normaliser=normaliser, **ours)
    grad = torch.autograd.grad(output.loss, leaves, allow_unused=True)
    torch.testing.assert_close(output.loss, expected)
    for mine, theirs in zip(grad, expected_grad, strict=True):
        assert (mine is None) == (theirs is None)
        if mine is not None and theirs is not None:
            torch.testing.assert_close(mine, theirs)
    compare_metrics(output.stats, trainer._metrics["train" if training else "eval"], spec)


def compare_metrics(stats, metrics, spec):
    values = stat_values(stats)
    values.pop("entropy_kept", None)
    if not spec.entropy_coef:
        values.pop("policy_loss")  # TRL logs it beside the bonus only
    expected = {name: value for name, (value,) in metrics.items() if name != "entropy_coef"}
    assert values == pytest.approx(expected, nan_ok=True)


def spec_of(loss_type, level, **kwargs):
    kwargs.setdefault("epsilon_high", 1.4 if loss_type == "cispo" else 0.3)
    return LossSpec(
        loss_type=loss_type, importance_level=level, max_completion_length=MAX_LENGTH, **kwargs
    )


each_loss = pytest.mark.parametrize("loss_type", list(AGGREGATION))
each_level = pytest.mark.parametrize("level", ["token", "sequence"])


@each_loss
@each_level
@pytest.mark.parametrize("beta", [0.0, 0.04])
@pytest.mark.parametrize("epsilon", [(0.2, 0.2), (0.2, 0.28), (3e-4, 4e-4), (0.0, 5.0)])
def test_loss_gradient_and_metrics(loss_type, level, beta, epsilon):
    low, high = epsilon
    for bias_corrected in (True, False) if beta else (True,):
        spec = spec_of(
            loss_type,
            level,
            beta=beta,
            epsilon_low=low,
            epsilon_high=high,
            bias_corrected_kl=bias_corrected,
        )
        compare(spec, make_rows())


@pytest.mark.parametrize("loss_type", ["grpo", "bnpo", "dr_grpo", "dapo", "luspo"])
@each_level
@pytest.mark.parametrize("delta", [1.1, 1.5])
def test_delta(loss_type, level, delta):
    spec = spec_of(loss_type, level, delta=delta, beta=0.1)
    compare(spec, make_rows(1, spread=0.8))


@each_loss
@each_level
def test_entropy_bonus_quantile_and_off_policy_mask(loss_type, level):
    rows = make_rows(2)
    for quantile, threshold in [(0.4, None), (1.0, 0.05), (0.7, 0.05), (0.0, None)]:
        spec = spec_of(
            loss_type,
            level,
            beta=0.1,
            entropy_coef=0.02,
            top_entropy_quantile=quantile,
            off_policy_mask_threshold=threshold,
        )
        compare(spec, rows)


@each_loss
@each_level
def test_on_policy_without_old_log_probabilities(loss_type, level):
    rows = make_rows(3)
    rows["old_logprob_BT"] = None
    del rows["rollout_logprob_BT"]
    compare(spec_of(loss_type, level, beta=0.1, off_policy_mask_threshold=0.05), rows)


@each_loss
@each_level
def test_mismatch_weight_in_the_loss(loss_type, level):
    # Both refuse one weight a row for VESPO.
    for mode in ["token_truncate", "token_mask", *(["sequence_mask"] * (loss_type != "vespo"))]:
        rows = make_rows(4)
        rows["mismatch_weight"], _ = mismatch_weight(
            rows["old_logprob_BT"],
            rows["rollout_logprob_BT"],
            rows["mask_BT"],
            mode=mode,
            clip_max=1.5,
        )
        assert (rows["mismatch_weight"] != 1).any()
        compare(spec_of(loss_type, level, beta=0.1), rows)


@each_loss
def test_evaluation_and_a_generation_batch_of_several_steps(loss_type):
    rows = make_rows(5)
    spec = spec_of(loss_type, "token", beta=0.1)
    compare(spec, rows, training=False)
    compare(spec, rows, generation_tokens=40, steps=2)


def test_vespo_far_off_policy():
    spec = spec_of("vespo", "token", vespo_lambda_pos=0.0, vespo_lambda_neg=1e-6, vespo_k_pos=0.3)
    for spread in (3.0, 30.0):
        rows = make_rows(10, spread=spread)
        compare(spec, rows)
        rows["mismatch_weight"], _ = mismatch_weight(
            rows["old_logprob_BT"], rows["rollout_logprob_BT"], rows["mask_BT"], mode="token_mask"
        )
        compare(spec, rows)
    # One token of ratio e^25 against four that bring the row back: the bound is a token's.
    rows = make_rows(11)
    rows["old_logprob_BT"][0] = rows["policy_logprob_BT"][0] - torch.tensor([25.0, -5, -5, -5, -6])
    compare(spec, rows)
    # A weight of 0 counts e^-18.4, not nothing: a row that went up e^19 outweighs it.
    rows["old_logprob_BT"][0] = rows["policy_logprob_BT"][0] - torch.tensor([5.0, 4, 4, 3, 3])
    rows["mismatch_weight"] = torch.ones(ROWS, TOKENS, dtype=torch.float64)
    rows["mismatch_weight"][0, 1] = 0.0
    compare(spec, rows)


@each_loss
def test_float32(loss_type):
    compare(spec_of(loss_type, "token", beta=0.1), make_rows(6, dtype=torch.float32))


@each_loss
@each_level
def test_accumulated_micro_batches_of_trl_are_our_whole_step(loss_type, level):
    rows = make_rows(8)
    # Micro-batches of 7 tokens each, so that TRL's "bnpo" is the mean over the step too.
    lengths = [5, 2, 3, 4, 5, 2]
    rows["mask_BT"] = torch.arange(TOKENS) < torch.tensor(lengths).unsqueeze(1)
    spec = spec_of(loss_type, level, beta=0.1)
    policy_BT = rows["policy_logprob_BT"].requires_grad_()
    total = torch.tensor(0.0)
    for i in range(0, ROWS, 2):
        trainer = trl_trainer(spec, accumulation=3, steps_per_generation=6)
        part = {name: value[i : i + 2] for name, value in rows.items()}
        loss = trl_loss(trainer, part, part["policy_logprob_BT"], part["entropy_BT"], 50)
        total = total + loss
    (expected,) = torch.autograd.grad(total, policy_BT)
    normaliser = step_normaliser(spec, lengths, generation_tokens=50, optimizer_steps=2)
    output = policy_loss(spec, normaliser=normaliser, **rows)
    torch.testing.assert_close(output.loss, total.double())
    torch.testing.assert_close(torch.autograd.grad(output.loss, policy_BT)[0], expected)


# ---- the entropy controller ----


def test_adaptive_entropy_follows_trl():
    spec = LossSpec(loss_type="bnpo")
    trainer = trl_trainer(spec)
    trainer.use_adaptive_entropy = trainer._entropy_bonus_enabled = True
    trainer._last_world_entropy, trainer._entropy_window_stats = math.inf, None
    settings = {"minimum": 0.0, "maximum": 0.012, "step": 0.005, "target": 0.7}
    for theirs, ours in {"min": "minimum", "max": "maximum", "delta": "step"}.items():
        setattr(trainer.args, f"entropy_coef_{theirs}", settings[ours])
    trainer.args.entropy_target = settings["target"]
    trainer.entropy_coef = 0.002
    control = EntropyControl(coef=0.002, **settings)
    for seed, scale in enumerate([0.5, 0.5, 2.0, 0.5, 0.5, 2.0, 2.0, 2.0]):
        rows = make_rows(seed)
        rows["entropy_BT"] = scale * rows["entropy_BT"]
        entropy_BT = rows["entropy_BT"].clone().requires_grad_()
        loss = trl_loss(trainer, rows, rows["policy_logprob_BT"], entropy_BT, 17)
        (grad,) = torch.autograd.grad(loss, entropy_BT)
        tokens = rows["mask_BT"].sum()
        torch.testing.assert_close(grad, -control.applied * rows["mask_BT"].double() / tokens)
        mean = (rows["entropy_BT"] * rows["mask_BT"]).sum() / tokens
        control = control.update(mean.item())
        assert control.coef == pytest.approx(trainer.entropy_coef)


# ---- advantages and mismatch: cut out of the long method ----


def cut_out(condition, **names):
    """Run the ``if`` statement of TRL's scoring method whose source begins with ``condition``."""
    source = textwrap.dedent(inspect.getsource(TRL._generate_and_score_completions))
    found = [
        node
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.If) and ast.unparse(node).startswith(condition)
    ]
    assert found, f"TRL has no statement that begins with {condition!r}"
    scope = {**vars(trl_module), **names}
    exec(compile(ast.Module(found[:1], []), "trl", "exec"), scope)
    return scope


def trl_advantages(reward_PGF, weights, aggregation, scale):
    reward_BF = reward_PGF.flatten(0, 1)
    trainer = SimpleNamespace(
        multi_objective_aggregation=aggregation,
        scale_rewards=scale,
        reward_weights=torch.tensor(weights),
        reward_funcs=[None] * len(weights),
    )
    scope = cut_out(
        "if self.multi_objective_aggregation",
        self=trainer,
        rewards_per_func=reward_BF,
        unscorable_mask=reward_BF.isnan().all(dim=1),
        num_generations=reward_PGF.shape[1],
        device="cpu",
    )
    advantage_B = scope["advantages"].nan_to_num(nan=0.0)  # its next statement
    return advantage_B.view(reward_PGF.shape[:2])


def reward_cases():
    generator = torch.Generator().manual_seed(0)
    complete = torch.randn(4, 6, 3, generator=generator)
    yield "complete", complete
    some = complete.masked_fill(torch.rand(4, 6, 3, generator=generator) < 0.3, NAN)
    some[1, 2] = NAN
    some[3] = NAN
    some[3, 0, 1] = 1.0
    yield "missing", some
    binary = (complete > 0).float()
    binary[2] = torch.tensor([1.0, 0.0, 0.5])
    yield "ties", binary
    yield "one completion", complete[:, :1]


REWARDS = dict(reward_cases())


@pytest.mark.parametrize("name", list(REWARDS))
@pytest.mark.parametrize("scale", ["group", "batch", "none"])
@pytest.mark.parametrize("aggregation", ["sum_then_normalize", "normalize_then_sum"])
def test_advantages(name, scale, aggregation):
    reward_PGF = REWARDS[name]
    weights = [1.0, 0.5, 2.0]
    expected = trl_advantages(reward_PGF.clone(), weights, aggregation, scale)
    ours = advantages_from_rewards(reward_PGF, weights, aggregation=aggregation, scale=scale)
    torch.testing.assert_close(ours.advantage_PG, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("mode", MISMATCH_MODES)
@pytest.mark.parametrize("bounds", [(None, 3.0), (0.5, 2.0), (0.5, None)])
def test_mismatch_weight_and_its_statistics(mode, bounds):
    rows = make_rows(9)
    old_BT, rollout_BT, mask_BT = (
        rows[name] for name in ("old_logprob_BT", "rollout_logprob_BT", "mask_BT")
    )
    rollout_BT[0, 1] = NAN
    trainer = SimpleNamespace(
        use_vllm=True,
        vllm_importance_sampling_correction=True,
        vllm_importance_sampling_mode=mode,
        vllm_importance_sampling_clip_min=bounds[0],
        vllm_importance_sampling_clip_max=bounds[1],
        accelerator=Accelerator(),
        _metrics={"train": defaultdict(list)},
    )
    scope = cut_out(
        "if self.use_vllm and self.vllm_importance_sampling_correction:\n    mask =",
        self=trainer,
        old_per_token_logps=old_BT,
        sampling_per_token_logps=rollout_BT,
        completion_mask=mask_BT.long(),
        tool_mask=None,
    )
    scope = cut_out(
        "if self.use_vllm and self.vllm_importance_sampling_correction:\n    delta =",
        **{**scope, "mode": "train", "device": "cpu"},
    )
    weight, stats = mismatch_weight(
        old_BT, rollout_BT, mask_BT, mode=mode, clip_min=bounds[0], clip_max=bounds[1]
    )
    torch.testing.assert_close(weight, scope["vllm_importance_sampling_ratio"])
    stats |= logprob_difference(old_BT, rollout_BT, mask_BT)
    expected = {key: value for key, (value,) in trainer._metrics["train"].items()}
    assert stat_values(stats) == pytest.approx(expected)
