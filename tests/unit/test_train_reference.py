"""The reference policy is the model as it began, or without its adapter, and only for a while."""

from __future__ import annotations

import pytest
import torch

from foveal import FastVisionModel
from foveal.models.forward import completion_logprobs
from foveal.testing import tiny
from foveal.train.reference import Reference
from tests.samples import build, random_completions, row


@pytest.fixture
def policy():
    """An adapted model, and its log-probabilities of one completion."""
    model, processor = tiny("qwen2_5_vl")
    prompts = build(model, processor, row("How many?"))
    adapted = FastVisionModel.get_peft_model(model, r=2, finetune_vision_layers=False)

    def logprobs():
        with torch.no_grad():
            return completion_logprobs(
                adapted, prompts, random_completions([4]), temperature=1.0
            ).logprob_BT

    return adapted, logprobs


def shift(model):
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.add_(0.3)


@pytest.mark.parametrize("choice", ["start", "off", "auto"])
def test_of_a_fresh_adapter_every_reference_is_the_base(policy, choice):
    model, logprobs = policy
    reference = Reference(model, choice)
    base = logprobs()
    shift(model)
    moved = logprobs()
    assert (moved - base).abs().max() > 1e-3
    for _ in range(2):
        with reference():
            assert torch.equal(logprobs(), base)
        assert torch.equal(logprobs(), moved)


@pytest.mark.parametrize(("choice", "is_start"), [("start", True), ("auto", True), ("off", False)])
def test_of_an_adapter_that_was_warmed_up_they_differ(policy, choice, is_start):
    model, logprobs = policy
    base = logprobs()
    shift(model)
    start = logprobs()
    reference = Reference(model, choice)
    shift(model)
    with reference():
        assert torch.equal(logprobs(), start if is_start else base)


def test_an_error_within_does_not_leave_the_reference_in_place(policy):
    model, logprobs = policy
    reference = Reference(model, "start")
    shift(model)
    moved = logprobs()
    with pytest.raises(OSError), reference():
        raise OSError
    assert torch.equal(logprobs(), moved)


def test_a_model_without_an_adapter_starts_from_its_own_weights():
    model, _ = tiny("qwen2_5_vl")
    assert Reference(model, "auto").choice == "start"
    with pytest.raises(ValueError, match='reference="off" switches an adapter off'):
        Reference(model, "off")
