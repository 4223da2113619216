"""TRL 1.16's own trainer and ours on the same rows, pictures, completions and adapter: the loss,
the gradient of every adapter matrix, and the metrics."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from foveal.rl import AGGREGATION
from foveal.rl.spec import CLIPPED
from tests.parity.our_side import (
    COMMON,
    SHAPES,
    OurScript,
    assert_same,
    digit_sum,
    gradients,
    our_model,
    our_trainer,
    rows,
    set_adapter,
    trained,
)
from tests.parity.trl_side import ScriptedTRL, datasets, trl, trl_trainer

LOSSES = list(AGGREGATION)
LEVELS = ["token", "sequence"]
SHIFT = 0.3
"""How far old log-probabilities lie from the present ones: outside of every clip range below."""


@dataclass
class Pair:
    """Both sides' models of one family; the oracle's trainer is built once and set anew."""

    family: str
    folder: Path
    oracle: ScriptedTRL
    model: Any
    processor: Any
    data: list[dict[str, Any]]

    def score(self, **settings: Any) -> dict[str, Any]:
        """What TRL makes of the rows before its loss, reference included."""
        set_oracle(self.oracle, **{**settings, "beta": 0.04})
        repeated = [row for row in self.data for _ in SHAPES]
        return self.oracle._generate_and_score_completions(repeated)

    @functools.cached_property
    def scored(self) -> dict[str, Any]:
        return self.score()

    @functools.cached_property
    def policy_BT(self) -> Tensor:
        """TRL's log-probabilities under the present weights."""
        inputs = self.scored
        names = ("pixel_values", "image_grid_thw", "num_images")
        names += ("token_type_ids", "mm_token_type_ids")
        with torch.no_grad():
            logprob_BT, _, _ = self.oracle._get_per_token_logps_and_entropies(
                self.oracle.model,
                torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1),
                torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], dim=1),
                inputs["completion_ids"].shape[1],
                **{name: inputs[name] for name in names if name in inputs},
            )
        return logprob_BT

    @property
    def old_BT(self) -> Tensor:
        return self.policy_BT + shift_BT(self.scored["advantages"], self.policy_BT.shape[1])


def shift_BT(advantage_B: Tensor, tokens: int) -> Tensor:
    """Old minus present, up or down by ``SHIFT``. Rows of either sign take turns: to where clipping
    acts on them, to the other side, up and down token by token."""
    turns_T = SHIFT * (1 - 2 * (torch.arange(tokens) % 2)).float()
    shifts = []
    for row, advantage in enumerate(advantage_B.tolist()):
        clipped_T = turns_T.abs() * (-1 if advantage > 0 else 1)
        earlier = int((advantage_B[:row].sign() == advantage_B[row].sign()).sum())
        shifts.append((clipped_T, -clipped_T, turns_T)[earlier % 3])
    return torch.stack(shifts)


TUNED = (
    *("loss_type", "importance_sampling_level", "beta", "delta", "epsilon", "epsilon_high"),
    *("use_bias_correction_kl", "mask_truncated_completions", "off_policy_mask_threshold"),
    *("entropy_coef", "top_entropy_quantile"),
    *("vllm_importance_sampling_mode", "vllm_importance_sampling_clip_max"),
)
DEFAULTS = {f.name: f.default for f in dataclasses.fields(trl.GRPOConfig) if f.name in TUNED}
DEFAULTS["steps_per_generation"] = 1


def set_oracle(oracle: ScriptedTRL, **settings: Any) -> None:
    """Give TRL's trainer other settings, its defaults where none are named.

    As its constructor does; a new trainer would wrap the model's forward once more each time.
    """
    assert settings.keys() <= DEFAULTS.keys()
    chosen = {**DEFAULTS, **settings}
    for name, value in chosen.items():
        setattr(oracle.args, name, value)
        if hasattr(oracle, name) or name == "epsilon_high":
            setattr(oracle, name, value)
    oracle.epsilon_low = chosen["epsilon"]
    if chosen["epsilon_high"] is None:
        oracle.epsilon_high = chosen["epsilon"]
    oracle._entropy_bonus_enabled = bool(chosen["entropy_coef"])
    oracle.current_gradient_accumulation_steps = 1


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Pair]:
    @functools.cache
    def pair(family: str, vision: bool = True) -> Pair:
        folder = tmp_path_factory.mktemp(family)
        data = rows()
        oracle = trl_trainer(family, folder, data, vision=vision, beta=0.04)
        model, processor = our_model(family, vision=vision)
        return Pair(family, folder, oracle, model, processor, data)

    return pair


def trl_loss(oracle: ScriptedTRL, inputs: dict[str, Any]) -> tuple[Tensor, dict[str, float]]:
    """Loss and the metrics it noted; gradients are left on the model."""
    oracle.model.train()
    oracle.model.zero_grad()
    oracle._metrics["train"].clear()
    loss = oracle.compute_loss(oracle.model, inputs)
    loss.backward()
    return loss.detach(), {name: values[-1] for name, values in oracle._metrics["train"].items()}


def our_loss(
    trainer: Any, old_BT: Tensor | None = None, step: int = 0
) -> tuple[Tensor, dict[str, float]]:
    """The same of one of our trainer's micro-steps, which is a whole optimizer step."""
    micro = trainer.train_dataset[step]
    window = trainer._window_at(micro)
    if old_BT is not None:
        for row, old_T in zip(window.rows, old_BT, strict=True):
            row.old_logprob = old_T[: len(row.completion.ids)]
    trainer.model.zero_grad()
    loss = trainer.training_step(trainer.model, micro)
    return loss, trainer.metrics.drain()


def compare(
    pair: Pair,
    *,
    perturbed: bool,
    inputs: dict[str, Any] | None = None,
    backend: Any = None,
    **settings: Any,
) -> dict[str, float]:
    """One optimizer step's loss, gradients and metrics on both sides; returns TRL's metrics."""
    given = dict(pair.scored if inputs is None else inputs)
    old_BT = pair.old_BT if perturbed else None
    if old_BT is not None:
        given["old_per_token_logps"] = old_BT
    if not settings.get("beta"):
        del given["ref_per_token_logps"]
    set_oracle(pair.oracle, **settings)
    expected, their_metrics = trl_loss(pair.oracle, given)

    if settings.get("beta"):
        settings.setdefault("reference", "off")
    trainer = our_trainer(
        pair.model, pair.processor, pair.folder, pair.data, backend=backend, **settings
    )
    loss, our_metrics = our_loss(trainer, old_BT)

    torch.testing.assert_close(loss, expected, atol=2e-6, rtol=1e-5)
    assert_same(gradients(pair.model), gradients(pair.oracle.model))
    their_metrics.pop("entropy_coef", None)
    shared = {name: our_metrics.get(name) for name in their_metrics}
    assert shared == pytest.approx(their_metrics, rel=1e-4, abs=2e-6)
    return their_metrics


def clip_range(loss_type: str) -> dict[str, Any]:
    # CISPO's bound is the largest weight itself.
    return {"epsilon": 0.2, "epsilon_high": 1.2 if loss_type == "cispo" else 0.25}


def test_both_sides_build_the_same_prompts_and_advantages(pairs, family):
    pair = pairs(family)
    trainer: Any = our_trainer(pair.model, pair.processor, pair.folder, pair.data)
    window = trainer._window_at(trainer.train_dataset[0])
    scored = pair.scored
    assert scored["num_images"] == [1] * 4 + [2] * 4
    for i, row in enumerate(window.rows):
        ids = scored["prompt_ids"][i][scored["prompt_mask"][i].bool()]
        assert row.prompt.ids == tuple(ids.tolist())
        length = len(row.completion.ids)
        assert scored["completion_ids"][i, :length].tolist() == list(row.completion.ids)
        assert scored["completion_mask"][i].sum() == length
    ours = torch.tensor([row.advantage for row in window.rows])
    torch.testing.assert_close(ours, scored["advantages"])
    assert (ours > 0).any() and (ours < 0).any()


@pytest.mark.parametrize("beta", [0.0, 0.04])
@pytest.mark.parametrize("perturbed", [False, True], ids=["on_policy", "off_policy"])
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("loss_type", LOSSES)
def test_every_loss_and_gradient_equals_trls(pairs, loss_type, level, perturbed, beta):
    metrics = compare(
        pairs("qwen2_5_vl"),
        perturbed=perturbed,
        loss_type=loss_type,
        importance_sampling_level=level,
        beta=beta,
        **clip_range(loss_type),
    )
    if loss_type in CLIPPED:
        for end in ("low", "high"):
            assert (metrics[f"clip_ratio/{end}_mean"] > 0) is perturbed, "clipping acts, or not"
    assert not beta or metrics["kl"] > 0.01, "the reference is another policy"


@pytest.mark.parametrize("loss_type", ["grpo", "cispo", "vespo"])
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("family", ["qwen3_vl", "gemma3"])
def test_the_other_families_equal_trls(pairs, family, level, loss_type):
    compare(
        pairs(family),
        perturbed=True,
        loss_type=loss_type,
        importance_sampling_level=level,
        beta=0.04,
        **clip_range(loss_type),
    )


def test_a_frozen_tower_gives_the_decoder_the_same_gradients(pairs, family):
    pair = pairs(family, vision=False)
    assert not any("vis" in name for name in trained(pair.model))
    compare(pair, perturbed=True, loss_type="dapo", beta=0.04)


@pytest.mark.parametrize("level", LEVELS)
def test_delta_caps_the_ratio_of_negative_advantages(pairs, level):
    pair = pairs("qwen2_5_vl")
    settings = {"loss_type": "grpo", "importance_sampling_level": level, "epsilon": 0.2}
    compare(pair, perturbed=True, delta=1.3, **settings)
    capped = gradients(pair.model)
    compare(pair, perturbed=True, **settings)
    free = gradients(pair.model)
    assert any(not torch.equal(capped[name], free[name]) for name in free), "the cap acts"


@pytest.mark.parametrize("loss_type", LOSSES)
def test_masked_truncated_completions(pairs, loss_type):
    pair = pairs("qwen2_5_vl")
    inputs = pair.score(mask_truncated_completions=True)
    lengths = inputs["completion_mask"].sum(-1).tolist()
    assert lengths == [0, 5, 0, 4] * 2, "TRL masks what does not end with the stop token"
    compare(
        pair,
        perturbed=True,
        inputs=inputs,
        loss_type=loss_type,
        beta=0.04,
        mask_truncated_completions=True,
    )


@pytest.mark.parametrize(
    "settings",
    [
        {"use_bias_correction_kl": False},
        {"entropy_coef": 0.05},
        {"entropy_coef": 0.05, "top_entropy_quantile": 0.4},
        {"off_policy_mask_threshold": 0.1},
    ],
    ids="+".join,
)
def test_what_else_changes_the_loss(pairs, settings):
    pair, plain = pairs("qwen2_5_vl"), {"loss_type": "sapo", "beta": 0.04}
    compare(pair, perturbed=True, **plain)
    before = gradients(pair.model)
    compare(pair, perturbed=True, **plain, **settings)
    after = gradients(pair.model)
    assert any(not torch.equal(before[name], after[name]) for name in before), "it acts"


@pytest.mark.parametrize(
    ("loss_type", "mode"),
    [
        ("dapo", "sequence_mask"),
        ("grpo", "sequence_truncate"),
        ("dapo", "token_mask"),
        ("vespo", "token_truncate"),
    ],
)
def test_the_correction_of_a_sampler_that_computes_otherwise(pairs, loss_type, mode):
    """TRL corrects vLLM's rollouts only; its sampler here is told to be one."""
    pair = pairs("qwen2_5_vl")
    lengths = pair.scored["completion_mask"].sum(-1).tolist()
    # The second group's longest completion ends up above the cap of 3.
    gaps = [0.05, -0.1, 0.02, 0.1, -0.05, 0.1, -0.2, 0.0]
    logprobs = [
        (policy_T[:length] + gap).tolist()
        for policy_T, length, gap in zip(pair.policy_BT, lengths, gaps, strict=True)
    ]
    settings = {"loss_type": loss_type, "vllm_importance_sampling_mode": mode}
    if mode.startswith("token"):
        settings["vllm_importance_sampling_clip_max"] = 1.15
    pair.oracle.use_vllm, pair.oracle.rollout_logprobs = True, logprobs
    try:
        pair.oracle._metrics["train"].clear()
        inputs = pair.score(**settings)
        sampling = {
            name: values[-1]
            for name, values in pair.oracle._metrics["train"].items()
            if name.startswith("sampling/")
        }
        backend = OurScript(pair.processor.tokenizer, logprobs)
        compare(pair, perturbed=False, inputs=inputs, backend=backend, **settings)
        trainer = our_trainer(
            pair.model, pair.processor, pair.folder, pair.data, backend=backend, **settings
        )
        _, ours = our_loss(trainer)
    finally:
        pair.oracle.use_vllm, pair.oracle.rollout_logprobs = False, None
    assert len(sampling) == 5
    assert {name: ours[name] for name in sampling} == pytest.approx(sampling, rel=1e-4, abs=2e-6)
    ratio = inputs["importance_sampling_ratio"]
    if mode.endswith("mask"):
        assert (ratio == 0).any()
    else:
        assert (ratio == settings.get("vllm_importance_sampling_clip_max", 3.0)).any()


@pytest.mark.parametrize("loss_type", ["grpo", "bnpo", "dapo", "cispo", "vespo"])
def test_a_rollout_that_serves_two_steps(pairs, loss_type):
    """What a step divides by may count the tokens of both."""
    from trl.trainer.utils import (
        split_pixel_values_by_grid,
        split_tensor_dict,
        unsplit_pixel_values_by_grid,
    )

    pair, data = pairs("qwen2_5_vl"), rows(4)
    set_oracle(pair.oracle, loss_type=loss_type, steps_per_generation=2)
    scored = pair.oracle._generate_and_score_completions([row for row in data for _ in SHAPES])
    by_row: Any = split_pixel_values_by_grid(scored)
    halves: list[Any] = split_tensor_dict(by_row, 2)
    assert halves[0]["completion_mask"].sum() != halves[1]["completion_mask"].sum()
    trainer = our_trainer(
        pair.model,
        pair.processor,
        pair.folder,
        data,
        loss_type=loss_type,
        generation_batch_size=len(data) * len(SHAPES),
    )
    for step, half in enumerate(halves):
        inputs = unsplit_pixel_values_by_grid(half)
        assert "old_per_token_logps" in inputs, "the second half is off policy by then"
        expected, _ = trl_loss(pair.oracle, inputs)
        loss, _ = our_loss(trainer, step=step)
        torch.testing.assert_close(loss, expected, atol=2e-6, rtol=1e-5)
        assert_same(gradients(pair.model), gradients(pair.oracle.model))


def test_an_adapter_that_already_acts_is_the_reference_as_it_began(tmp_path):
    data, settings = rows(), {"loss_type": "grpo", "beta": 0.1}
    adapted, processor = our_model("qwen2_5_vl")
    oracle = ScriptedTRL(
        model=adapted,
        reward_funcs=[digit_sum],
        args=trl.GRPOConfig(output_dir=str(tmp_path), **{**COMMON, **settings}),
        train_dataset=datasets.Dataset.from_list(data),
        processing_class=processor,
    )
    model, processor = our_model("qwen2_5_vl")
    trainer = our_trainer(model, processor, tmp_path, data, **settings)
    for side in (oracle.model, model):
        set_adapter(side, seed=1)
    oracle.current_gradient_accumulation_steps = 1
    inputs = oracle._generate_and_score_completions([row for row in data for _ in SHAPES])
    expected, their_metrics = trl_loss(oracle, inputs)
    loss, our_metrics = our_loss(trainer)
    torch.testing.assert_close(loss, expected, atol=2e-6, rtol=1e-5)
    assert_same(gradients(model), gradients(oracle.model))
    assert our_metrics["kl"] == pytest.approx(their_metrics["kl"], rel=1e-4)
    assert our_metrics["kl"] > 0.01
