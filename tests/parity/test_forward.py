"""The plain pass against the stock model's own forward: log-probabilities and gradients."""

from __future__ import annotations

import pytest
import torch

from foveal.models.family import vision_modules
from foveal.models.forward import FeatureCache, completion_logprobs
from foveal.models.positions import mrope_positions
from tests.samples import (
    build,
    picture,
    ragged_prompts,
    random_completions,
    row,
    stock_inputs,
)

LENGTHS = [5, 1, 40]


def stock_logprobs(model, prompt, completion, temperature):
    logits = model(**stock_inputs(model, prompt, completion)).logits / temperature
    start = len(prompt.ids) - 1
    logprobs = torch.log_softmax(logits, -1)[0, start:-1]
    return logprobs.gather(-1, torch.tensor(completion)[:, None])[:, 0]


def test_ragged_rows_with_none_one_and_two_pictures_equal_the_stock_forward(tiny_model):
    model, processor = tiny_model
    prompts = ragged_prompts(model, processor)
    completions = random_completions(LENGTHS)
    output = completion_logprobs(model, prompts, completions, temperature=0.7)
    assert output.mask_BT.sum(-1).tolist() == LENGTHS
    for i, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
        expected = stock_logprobs(model, prompt, completion, 0.7)
        torch.testing.assert_close(
            output.logprob_BT[i, : len(completion)], expected, atol=2e-6, rtol=1e-5
        )


def test_every_gradient_equals_the_stock_forwards(tiny_model):
    model, processor = tiny_model
    prompts = ragged_prompts(model, processor)
    completions = random_completions(LENGTHS)
    weights = torch.randn(3, max(LENGTHS), generator=torch.Generator().manual_seed(1))

    output = completion_logprobs(model, prompts, completions, temperature=0.7)
    (output.logprob_BT * weights * output.mask_BT).sum().backward()
    ours = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    for i, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
        expected = stock_logprobs(model, prompt, completion, 0.7)
        (expected * weights[i, : len(completion)]).sum().backward()
    stock = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}

    assert ours.keys() == stock.keys()
    assert any("visual" in n or "vision" in n for n in ours), "the tower takes part"
    for name, gradient in stock.items():
        # Key biases shift every score alike: their gradient is rounding around an exact zero.
        scale = gradient.abs().max().clamp(min=1e-2)
        assert (ours[name] - gradient).abs().max() / scale < 1e-4, name


def test_a_picture_matters(tiny_model):
    """Fails if images are dropped on the way: the fault that makes a policy train blind."""
    model, processor = tiny_model
    completion = random_completions([6])
    logprobs = [
        completion_logprobs(
            model,
            build(model, processor, row("How many?", picture(seed, 64, 64))),
            completion,
            temperature=1.0,
        ).logprob_BT
        for seed in (1, 2)
    ]
    assert (logprobs[0] - logprobs[1]).abs().max() > 1e-3


def test_the_order_of_two_pictures_matters(tiny_model):
    model, processor = tiny_model
    first, second = picture(1, 64, 64), picture(2, 64, 64)
    completion = random_completions([6])
    logprobs = [
        completion_logprobs(
            model,
            build(model, processor, row("How many?", *pictures)),
            completion,
            temperature=1.0,
        ).logprob_BT
        for pictures in ((first, second), (second, first))
    ]
    assert (logprobs[0] - logprobs[1]).abs().max() > 1e-4


def test_a_placeholder_in_a_completion_is_a_token_and_not_a_picture(tiny_model):
    model, processor = tiny_model
    prompts = ragged_prompts(model, processor)[:1]
    completion = random_completions([8])[0]
    completion[3] = model.config.image_token_id
    logprob_BT = completion_logprobs(model, prompts, [completion], temperature=1.0).logprob_BT
    assert logprob_BT.isfinite().all()
    before = completion_logprobs(model, prompts, [completion[:3]], temperature=1.0).logprob_BT
    torch.testing.assert_close(logprob_BT[:, :3], before, atol=2e-6, rtol=1e-5)


def test_a_frozen_tower_sees_each_picture_once(tiny_model):
    model, processor = tiny_model
    for module in vision_modules(model):
        module.requires_grad_(False)
    prompts = build(model, processor, row("How many?", picture(0, 64, 64))) * 4
    cache = FeatureCache()
    seen = []
    hook = vision_modules(model)[0].register_forward_hook(lambda *_: seen.append(1))
    for seed in range(3):
        completion_logprobs(
            model, prompts, random_completions([3] * 4, seed), temperature=1.0, cache=cache
        )
    hook.remove()
    assert len(seen) == 1 and cache.tower_calls == 1


def test_a_trained_tower_gets_its_gradient_though_rows_share_a_picture(tiny_model):
    model, processor = tiny_model
    prompts = build(model, processor, row("How many?", picture(0, 64, 64))) * 2
    completions = random_completions([4, 4])
    output = completion_logprobs(model, prompts, completions, temperature=1.0, cache=FeatureCache())
    output.logprob_BT.sum().backward()
    trained = [p for m in vision_modules(model) for p in m.parameters() if p.grad is not None]
    assert trained and any(p.grad.abs().sum() > 0 for p in trained)


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl"])
def test_positions_equal_the_stock_rope_index(tiny_model):
    model, processor = tiny_model
    for prompt in ragged_prompts(model, processor)[:2]:
        inputs = stock_inputs(model, prompt, [1, 2, 3])
        expected, _ = model.model.get_rope_index(
            inputs["input_ids"],
            mm_token_type_ids=inputs["mm_token_type_ids"],
            image_grid_thw=inputs["image_grid_thw"],
        )
        ours = mrope_positions(
            prompt.ids,
            model.config.image_token_id,
            [image.grid_thw for image in prompt.images],
            merge_size=2,
            length=len(prompt.ids) + 3,
        )
        assert torch.equal(ours, expected[:, 0])
