"""Computing each prompt once against computing it for every completion: the same update."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from foveal.kernels.part_kernels import KERNELS
from foveal.models import training_layer
from foveal.models.checkpointing import set_checkpointing
from foveal.models.family import language_model, vision_modules
from foveal.models.forward import FeatureCache
from foveal.models.training_stack import TrainingStack
from foveal.rl import AGGREGATION, LossSpec, step_normaliser
from foveal.rl.stats import stat_values
from foveal.testing import tiny
from foveal.testing.tiny_models import SLIDING_WINDOW
from foveal.train import group_pass, plain_pass
from foveal.train.plain_pass import PassSettings, Row
from foveal.types import Completion
from tests.parity.our_side import assert_same, gradients, our_model, our_trainer, rows, values
from tests.samples import ragged_prompts, random_completions
from tests.unit.test_kernels_prefix_attention import TorchKernel

LENGTHS = ((30, 1, 5), (3, 1, 12), (1, 1, 2))
"""Of the completions of a prompt with one picture, with two, and with none. 30 leave the window
of Gemma's sliding layers, and what they see of their prompt shrinks from token to token."""


def sampled_rows(model: Any, processor: Any, **spread: bool) -> list[Row]:
    """Three groups of three, each row with its own advantage."""
    generator = torch.Generator().manual_seed(7)
    prompts = ragged_prompts(model, processor)
    assert max(len(prompt.ids) for prompt in prompts) > SLIDING_WINDOW
    return [
        sampled_row(prompt, ids, float(torch.randn((), generator=generator)), generator, **spread)
        for i, (prompt, lengths) in enumerate(zip(prompts, LENGTHS, strict=True))
        for ids in random_completions(list(lengths), seed=i)
    ]


def sampled_row(prompt, ids, advantage, generator, *, off_policy=False) -> Row:
    """With ``off_policy``, log-probabilities of other policies around that of random tokens."""

    def near(spread):
        return -6 + spread * torch.randn(len(ids), generator=generator)

    rollout = tuple(near(0.5).tolist()) if off_policy else None
    row = Row(prompt, Completion(tuple(ids), "", "stop", rollout), advantage, (True,) * len(ids))
    if off_policy:
        row.old_logprob, row.ref_logprob = near(2.0), near(2.0)
        row.counts = tuple(i != 1 for i in range(len(ids)))
    return row


def settings_of(spec: LossSpec | None = None, **given: Any) -> PassSettings:
    given = {"rows_at_once": 99, "temperature": 0.8, **given}
    return PassSettings(spec=spec or LossSpec(), **given)


def update(module, model, data, settings):
    """Gradients, loss, statistics, and the number of backward passes."""
    model.zero_grad()
    calls = []

    def backward(loss):
        calls.append(loss)
        loss.backward()

    normaliser = step_normaliser(settings.spec, [row.num_tokens for row in data])
    loss, stats = module.learn(
        model.train(), data, normaliser, settings, cache=FeatureCache(), backward=backward
    )
    return gradients(model), loss, stat_values(stats), len(calls)


def assert_same_update(ours, expected, tolerance=1e-5):
    assert_same(ours[0], expected[0], tolerance)
    torch.testing.assert_close(ours[1], expected[1], rtol=tolerance, atol=1e-6)
    assert ours[2] == pytest.approx(expected[2], rel=tolerance, abs=1e-6, nan_ok=True)


@pytest.mark.parametrize("devices", [{"cuda"}, {"cpu"}], ids=["stock layers", "fused layers"])
@pytest.mark.parametrize("vision", [False, True], ids=["frozen tower", "trained tower"])
def test_every_gradient_of_every_family_however_a_group_is_cut_and_checkpointed(
    family, vision, devices, monkeypatch
):
    monkeypatch.setattr(training_layer, "FUSED_ON", devices)
    model, processor = our_model(family, vision=vision)
    data = sampled_rows(model, processor)
    expected = update(plain_pass, model, data, settings_of())
    cases: list[tuple[Any, dict[str, Any], int]] = [
        (False, {}, 1),
        (True, {"tokens_at_once": 6}, 5),
        ("selective", {"tokens_at_once": 6}, 5),
        ("offload", {"tokens_at_once": 1}, 9),
        (True, {"tokens_at_once": 130}, 2),  # two prompts side by side, then the third
    ]
    for checkpointing, cut, calls in cases:
        set_checkpointing(model, checkpointing)
        ours = update(group_pass, model, data, settings_of(**cut))
        assert_same_update(ours, expected)
        assert ours[3] == calls


@pytest.mark.parametrize(("checkpointing", "times"), [(False, 1), (True, 2), ("offload", 2)])
def test_each_prompt_passes_a_layer_once_and_again_only_where_checkpointed(checkpointing, times):
    model, processor = our_model("qwen2_5_vl", vision=False)
    data = sampled_rows(model, processor)
    set_checkpointing(model, checkpointing)
    tokens = []
    norm = language_model(model).layers[1].input_layernorm
    norm.register_forward_pre_hook(lambda _, inputs: tokens.append(inputs[0].shape[:-1].numel()))
    update(group_pass, model, data, settings_of(rows_at_once=2))
    prompts = sum(len(prompt.ids) for prompt in ragged_prompts(model, processor))
    # Nothing follows a completion's last token, and one of a single token has no other.
    assert sum(tokens) == times * (prompts + sum(n - 1 for group in LENGTHS for n in group))


def test_calls_joined_by_their_log_sum_exp_stand_in_for_the_reference(family, monkeypatch):
    """The form that CUDA takes, recomputed in checkpoints, with kernels in plain torch."""
    model, processor = our_model(family, vision=True)
    data = sampled_rows(model, processor)
    expected = update(plain_pass, model, data, settings_of())
    calls = []

    class Counted(TorchKernel):
        def backward(self, grad, q, k, v, out, lse, kept, spans, scale):
            calls.append(spans)
            return super().backward(grad, q, k, v, out, lse, kept, spans, scale)

    monkeypatch.setitem(KERNELS, "reference", Counted())
    monkeypatch.setattr(training_layer, "FUSED_ON", {"cpu"})
    set_checkpointing(model, True)
    assert_same_update(update(group_pass, model, data, settings_of()), expected)
    assert any(spans.window for spans in calls) == (family == "gemma3")


def test_gradients_of_all_parameters_where_no_adapter_is(family, monkeypatch):
    """Embeddings, norms and head too: they are reached from both sides of the cut."""
    monkeypatch.setattr(training_layer, "FUSED_ON", {"cpu"})
    model, processor = tiny(family)
    data = sampled_rows(model, processor)
    normaliser = step_normaliser(LossSpec(), [row.num_tokens for row in data])
    plain_pass.learn(
        model, data, normaliser, settings_of(), cache=FeatureCache(), backward=torch.Tensor.backward
    )
    for name, parameter in model.named_parameters():
        # A bias on keys shifts every score alike (where nothing is rotated): only rounding.
        if parameter.grad is None or ("vision_tower" in name and "k_proj.bias" in name):
            parameter.requires_grad_(False)
    expected = update(plain_pass, model, data, settings_of())
    assert_same_update(update(group_pass, model, data, settings_of(tokens_at_once=6)), expected)


@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize("loss_type", list(AGGREGATION))
def test_every_loss_and_its_metrics(loss_type, level):
    model, processor = our_model("qwen2_5_vl", vision=False)
    data = sampled_rows(model, processor, off_policy=True)
    spec = LossSpec(
        loss_type=loss_type, importance_level=level, beta=0.1, entropy_coef=0.01,
        max_completion_length=30,
    )  # fmt: skip
    mode = {"mismatch_mode": "token_truncate", "tokens_at_once": 6}
    expected = update(plain_pass, model, data, settings_of(spec, **mode))
    assert_same_update(update(group_pass, model, data, settings_of(spec, **mode)), expected)


@pytest.mark.parametrize(
    "given",
    [
        pytest.param({}, id="one step a rollout"),
        pytest.param(
            {"importance_sampling_level": "sequence", "num_iterations": 2, "epsilon": 0.01},
            id="GSPO, two steps a rollout",
        ),
    ],
)
def test_a_run_ends_at_the_weights_of_the_plain_pass(tmp_path, given):
    ends = []
    for training_pass in ("group", "plain"):
        model, processor = our_model("qwen3_vl")
        # Adam would blow rounding up wherever a gradient is close to 0.
        given = {"optim": "sgd", "learning_rate": 0.05, "max_steps": 4, **given}
        trainer = our_trainer(
            model, processor, tmp_path, rows(4), training_pass=training_pass, **given
        )
        before = values(model)
        trainer.train()
        ends.append(values(model))
    assert any((before[name] - ends[0][name]).abs().max() > 1e-3 for name in before)
    for name, value in ends[1].items():
        torch.testing.assert_close(ends[0][name], value, rtol=0, atol=1e-6)


def test_a_frozen_tower_sees_no_backward_and_a_trained_one_one_forward_a_prompt(family):
    for vision in (False, True):
        model, processor = our_model(family, vision=vision)
        set_checkpointing(model, False)
        forward, backward = [], []
        tower = vision_modules(model)[0]
        tower.register_forward_hook(lambda *_, seen=forward: seen.append(torch.is_grad_enabled()))
        for module in tower.modules():
            if not list(module.children()):
                module.register_full_backward_pre_hook(lambda *_, seen=backward: seen.append(1))
        data = sampled_rows(model, processor)
        update(group_pass, model, data, settings_of(rows_at_once=1))
        with_pictures = len({row.prompt.ids for row in data if row.prompt.images})
        assert forward == [vision] * with_pictures
        assert bool(backward) == vision


def test_rows_without_a_gradient_are_not_passed_backward_and_change_nothing():
    model, processor = our_model("qwen2_5_vl", vision=True)
    data = sampled_rows(model, processor)
    for row in data[:3]:
        row.advantage = 0.0
    data[4].counts = (False,) * len(data[4].counts)
    expected = update(plain_pass, model, data, settings_of())
    # A row beside others goes backward with them; pieces and groups of such rows alone do not.
    for at_once, calls in ((None, 1), (1, 5)):
        ours = update(group_pass, model, data, settings_of(tokens_at_once=at_once))
        assert_same_update(ours, expected)
        assert ours[3] == calls
    # Terms that act on every row bring them back.
    spec = LossSpec(entropy_coef=0.01)
    ours = update(group_pass, model, data, settings_of(spec))
    assert_same_update(ours, update(plain_pass, model, data, settings_of(spec)))
    assert ours[3] == 1


def test_a_prompt_whose_completions_pass_no_layer_stands_between_two_that_do():
    """Completions of one token are predicted by the prompt's last state alone."""
    model, processor = our_model("qwen3_vl", vision=True)
    data = sampled_rows(model, processor)
    for row in data[3:6]:
        row.completion = replace(row.completion, ids=row.completion.ids[:1])
        row.counts = row.counts[:1]
    ours = update(group_pass, model, data, settings_of())
    assert_same_update(ours, update(plain_pass, model, data, settings_of()))
    assert ours[3] == 1


def test_where_no_row_has_a_gradient_an_optimizer_finds_zeros_as_in_the_plain_pass():
    model, processor = our_model("qwen2_5_vl", vision=True)
    data = sampled_rows(model, processor)
    for row in data:
        row.advantage = 0.0
    plain, ours = (update(m, model, data, settings_of()) for m in (plain_pass, group_pass))
    assert ours[3] == 0 and ours[2] == pytest.approx(plain[2], rel=1e-5, abs=1e-6, nan_ok=True)
    assert ours[0].keys() == plain[0].keys()
    assert not any(gradient.any() for gradient in ours[0].values())


def test_neighbours_with_the_same_text_and_other_pictures_are_two_prompts():
    model, processor = our_model("qwen2_5_vl")
    data = sampled_rows(model, processor)[:3]
    other = sampled_rows(model, processor)[3:6]
    image = replace(data[0].prompt.images[0], digest="other")
    image = replace(image, pixel_values=image.pixel_values.flip(0))
    for row in other:
        row.prompt = replace(data[0].prompt, images=(image,))
    data += other
    expected = update(plain_pass, model, data, settings_of())
    assert_same_update(update(group_pass, model, data, settings_of()), expected)


@pytest.mark.parametrize(
    ("field", "value"), [("attention_dropout", 0.1), ("attn_logit_softcapping", 30.0)]
)
def test_what_attention_to_a_shared_prompt_leaves_out_is_refused(field, value):
    model, _ = our_model("gemma3")
    text = model.config.get_text_config()
    setattr(text, field, value)
    for layer in model.get_base_model().model.language_model.layers:
        setattr(layer.self_attn, field, value)
    with pytest.raises(ValueError, match=rf"{field}.*training_pass='plain'"):
        TrainingStack(model)
