"""Training on the layer inputs that a rollout has kept against the plain pass: the same update."""

from __future__ import annotations

from dataclasses import replace
from itertools import count
from typing import Any

import pytest
import torch

from foveal.models import training_layer, training_stack
from foveal.models.checkpointing import set_checkpointing
from foveal.models.family import language_model
from foveal.models.forward import FeatureCache
from foveal.models.layer_inputs import PackedInputs
from foveal.rl import LossSpec, step_normaliser
from foveal.rollout.engine import Engine
from foveal.testing import tiny
from foveal.train import group_pass, plain_pass
from foveal.train.captured import Agreement, agreement, without_layer_inputs
from foveal.train.plain_pass import Row
from foveal.types import PAGE, SamplingParams
from tests.parity.our_side import our_model
from tests.parity.test_group_pass import assert_same_update, settings_of, update
from tests.runs.tiny_run import parameters, steps_logged, trainer
from tests.samples import ragged_prompts
from tests.unit.test_rollout_engine import cache_of, some_prompts

LENGTHS = ((30, 1, 6), (1, 1, 1), (9, 2, 5))
"""Of the completions of a prompt with one picture, with two, and with none: some in one burst, some
over several, some that pass no layer."""


def drawn_rows(model: Any, processor: Any, lengths: Any = LENGTHS) -> list[Row]:
    """Groups of completions from the engine, each with its own length, advantage and blocks."""
    sampler, seed = Engine(model, processor.tokenizer), count()
    generator = torch.Generator().manual_seed(7)
    found = []
    with sampler.keeping_layer_inputs():
        for prompt, group in zip(ragged_prompts(model, processor), lengths, strict=True):
            for tokens in group:
                sampling = SamplingParams(max_tokens=tokens, seed=next(seed), ignore_eos=True)
                ((completion,),) = (g.completions for g in sampler.generate([prompt], 1, sampling))
                advantage = float(torch.randn((), generator=generator))
                found.append(Row(prompt, completion, advantage, (True,) * tokens))
    return found


@pytest.mark.parametrize("devices", [{"cuda"}, {"cpu"}], ids=["stock layers", "fused layers"])
@pytest.mark.parametrize("vision", [False, True], ids=["frozen tower", "trained tower"])
def test_every_gradient_of_every_family_from_kept_inputs(family, vision, devices, monkeypatch):
    monkeypatch.setattr(training_layer, "FUSED_ON", devices)
    model, processor = our_model(family, vision=vision)
    data = drawn_rows(model, processor)
    expected = update(plain_pass, model, data, settings_of())
    set_checkpointing(model, "captured")
    for most, calls in ((None, 1), (6, 7), (130, 2)):
        ours = update(group_pass, model, data, settings_of(tokens_at_once=most))
        assert_same_update(ours, expected)
        assert ours[3] == calls


def test_gradients_of_all_parameters_where_no_adapter_is(family):
    """The embedding too, which gives the first layer's input."""
    model, processor = tiny(family)
    data = drawn_rows(model, processor)
    normaliser = step_normaliser(LossSpec(), [row.num_tokens for row in data])
    plain_pass.learn(
        model, data, normaliser, settings_of(), cache=FeatureCache(), backward=torch.Tensor.backward
    )
    for name, parameter in model.named_parameters():
        # A bias on keys shifts every score alike (where nothing is rotated): only rounding.
        if parameter.grad is None or ("vision_tower" in name and "k_proj.bias" in name):
            parameter.requires_grad_(False)
    expected = update(plain_pass, model, data, settings_of())
    set_checkpointing(model, "captured")
    assert_same_update(update(group_pass, model, data, settings_of(tokens_at_once=6)), expected)


def test_completions_pass_each_layer_once_and_those_without_a_gradient_none():
    model, processor = our_model("qwen2_5_vl", vision=False)
    data = drawn_rows(model, processor)
    for row in data[:3]:
        row.advantage = 0.0
    expected = update(plain_pass, model, data, settings_of())
    tokens = []
    norm = language_model(model).layers[1].input_layernorm
    norm.register_forward_pre_hook(lambda _, inputs: tokens.append(inputs[0].shape[:-1].numel()))
    set_checkpointing(model, "captured")
    assert_same_update(update(group_pass, model, data, settings_of()), expected)
    prompts = sum(len(prompt.ids) for prompt in ragged_prompts(model, processor))
    # Prompts are checkpointed as ever.
    assert sum(tokens) == 2 * prompts + sum(n - 1 for group in LENGTHS[1:] for n in group)


def test_scores_of_other_weights_do_not_come_from_the_rollout():
    """A reference with its adapter off passes the same rows under the same policy."""
    model, processor = our_model("qwen3_vl", vision=False)
    data = drawn_rows(model, processor)
    set_checkpointing(model, "captured")
    with model.disable_adapter():
        scored, expected = (
            group_pass.score(model.train(), some, settings_of(), cache=FeatureCache())
            for some in (data, without_layer_inputs(data))
        )
    for (ours, _), (theirs, _) in zip(scored, expected, strict=True):
        assert torch.equal(ours, theirs)


def test_rows_that_step_back_keep_what_they_were_and_go_on_behind_it(tiny_model):
    model, processor = tiny_model
    prompts = some_prompts(model, processor)
    sampling = SamplingParams(max_tokens=PAGE + 20, seed=0, ignore_eos=True)
    kept = []
    for options in ({}, {"cache_bytes": cache_of(model, 18)}):
        sampler = Engine(model, processor.tokenizer, **options)
        with sampler.keeping_layer_inputs():
            groups = sampler.generate(prompts, 5, sampling)
        kept.append([c.layer_inputs for group in groups for c in group.completions])
        steps_back = sampler._scheduler.counters.preemptions  # pyright: ignore
    assert steps_back > 0
    roomy, small = (PackedInputs(inputs, torch.device("cpu")) for inputs in kept)
    assert roomy.tokens == small.tokens == 5 * len(prompts) * (PAGE + 19)
    for layer in range(len(language_model(model).layers)):
        torch.testing.assert_close(small.behind(layer), roomy.behind(layer), atol=1e-4, rtol=1e-4)


def learner(model: Any) -> Any:
    def learn(some: Any) -> None:
        normaliser = step_normaliser(LossSpec(), [row.num_tokens for row in some])
        group_pass.learn(
            model.train(), some, normaliser, settings_of(), cache=FeatureCache(),
            backward=torch.Tensor.backward,
        )  # fmt: skip

    return learn


def test_layers_on_the_way_back_compute_in_the_arithmetic_of_the_pass(family, monkeypatch):
    """16-bit weights under float32 adapters: products of both are 16 bit by autocast alone."""
    again, autocasts = training_stack.layer_again, []

    def spy(*args: Any) -> torch.Tensor:
        autocasts.append(torch.is_autocast_enabled("cpu"))
        return again(*args)

    monkeypatch.setattr(training_stack, "layer_again", spy)
    model, processor = our_model(family, vision=False)
    for parameter in model.parameters():
        if not parameter.requires_grad:
            parameter.data = parameter.data.bfloat16()
    data = drawn_rows(model, processor)
    set_checkpointing(model, "captured")
    found = agreement(model, data, learner(model))
    assert autocasts and all(autocasts)
    # Tiny models round unevenly.
    assert all(0.99 < cosine < 1 for cosine in found.cosines.values()), found.cosines


def test_weights_for_the_rollouts_rounding_are_no_part_of_an_agreement():
    """Over a long completion they are far from 1, and differ where the gradients are the same."""
    model, processor = our_model("gemma3", vision=False)
    data, seen = drawn_rows(model, processor), []
    set_checkpointing(model, "captured")

    def learn(rows: Any) -> None:
        seen.append([row.completion.rollout_logprob for row in rows])
        learner(model)(rows)

    agreement(model, data, learn)
    assert seen == [[None] * len(data)] * 2
    assert all(parameter.grad is None for parameter in model.parameters())


def test_an_agreement_names_the_part_that_is_worst_and_refuses_below_its_bound(monkeypatch):
    model, processor = our_model("gemma3", vision=True)
    data = drawn_rows(model, processor)
    set_checkpointing(model, "captured")

    def measured() -> Agreement:
        model.zero_grad()
        return agreement(model, data, learner(model))

    found = measured()
    layers = len(language_model(model).layers)
    assert found.cosines.keys() == {*(f"layer {n}" for n in range(layers)), "vision"}
    assert all(cosine > 1 - 1e-9 for cosine in found.cosines.values())
    found.check()
    behind = PackedInputs.behind

    def wrong(self: Any, layer: int) -> torch.Tensor:
        x_ND = behind(self, layer)
        return x_ND.roll(1, 0) if layer == 0 else x_ND

    monkeypatch.setattr(PackedInputs, "behind", wrong)
    with pytest.raises(ValueError, match=r"in layer 1 .*cosine 0\.\d+.* below 0.999.*=True"):
        measured().check()
    with pytest.raises(ValueError, match="cosine nan"):
        Agreement({"layer 0": float("nan")}).check()


def test_a_pass_over_other_tokens_than_were_kept_is_refused():
    model, processor = our_model("qwen2_5_vl", vision=False)
    data = drawn_rows(model, processor)
    set_checkpointing(model, "captured")
    data[0].completion = replace(data[0].completion, layer_inputs=data[2].completion.layer_inputs)
    with pytest.raises(ValueError, match=r"layer inputs of 23 tokens.*has 47.*=True"):
        update(group_pass, model, data, settings_of())


# ------------------------------------------------------------------------------------- in a run


def test_a_run_ends_at_the_weights_of_full_checkpointing(tmp_path, capsys):
    ends = []
    for policy in (True, "captured"):
        model, processor = our_model("qwen2_5_vl")
        set_checkpointing(model, policy)
        run = trainer(
            tmp_path / str(policy), model=(model, processor), max_steps=3, optim="sgd",
            max_completion_length=9, beta=0.05,
        )  # fmt: skip
        before = parameters(run.policy)
        run.train()
        ends.append(parameters(run.policy))
    assert any((before[name] - ends[0][name]).abs().max() > 1e-4 for name in before)
    for name, value in ends[0].items():
        torch.testing.assert_close(ends[1][name], value, rtol=0, atol=1e-6)
    assert capsys.readouterr().out.count("captured layer inputs: cosine") == 1
    logs = [steps_logged(tmp_path / str(policy)) for policy in (True, "captured")]
    assert len(logs[1]) == 3
    for ours, theirs in zip(logs[1], logs[0], strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], abs=1e-5)
