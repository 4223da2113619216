"""What only a GPU can show: 16-bit and packed weights, offloading, float16 range."""

from __future__ import annotations

import importlib.util

import pytest
import torch

from foveal import FastVisionModel, GRPOConfig, GRPOTrainer
from foveal.memory import PhaseMeter
from foveal.models.checkpointing import set_checkpointing
from foveal.models.family import language_model, stock_model, vision_modules
from foveal.models.forward import completion_logprobs
from foveal.rollout.engine import Engine
from foveal.testing import TINY_FAMILIES, save_tiny
from foveal.types import SamplingParams
from tests.samples import picture, ragged_prompts, random_completions, row

pytestmark = pytest.mark.gpu

needs_bitsandbytes = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed"
)


@pytest.fixture(scope="module", params=list(TINY_FAMILIES))
def checkpoint(request, tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("tiny") / request.param, request.param)


def adapted(checkpoint, vision=False, **load):
    model, processor = FastVisionModel.from_pretrained(checkpoint, **load)
    model = FastVisionModel.get_peft_model(model, r=4, finetune_vision_layers=vision)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.05)
    return model, processor


def mean_gap(model, processor, max_tokens=48):
    prompts = ragged_prompts(stock_model(model), processor)
    backend = Engine(model, processor.tokenizer)
    groups = backend.generate(prompts, 8, SamplingParams(max_tokens=max_tokens, seed=0))
    gaps = []
    for group in groups:
        ids = [c.ids for c in group.completions]
        with torch.no_grad():
            output = completion_logprobs(model, [group.prompt] * 8, ids, temperature=1.0)
        for i, completion in enumerate(group.completions):
            rollout = torch.tensor(completion.rollout_logprob, device="cuda")
            gaps.append((output.logprob_BT[i, : len(rollout)] - rollout).abs())
    return torch.cat(gaps).mean().item()


def test_bf16_is_chosen_and_sampler_agrees_with_trainer(checkpoint):
    model, processor = adapted(checkpoint)
    assert stock_model(model).dtype == torch.bfloat16
    assert all(p.dtype == torch.float32 for p in model.parameters() if p.requires_grad)
    assert mean_gap(model, processor) < 0.02


@pytest.mark.usefixtures("without_tf32")
def test_float32_sampler_equals_trainer(checkpoint):
    model, processor = adapted(checkpoint, dtype=torch.float32)
    gap = mean_gap(model, processor)
    assert gap < 1e-5, f"mean |trainer - sampler| is {gap:.3g} nats a token"


@needs_bitsandbytes
@pytest.mark.parametrize("bits", [4, 8])
def test_packed_weights_leave_the_tower_alone_and_train(checkpoint, bits, tmp_path):
    model, processor = adapted(checkpoint, **{f"load_in_{bits}bit": True})
    packed = [n for n, m in model.named_modules() if type(m).__name__ in PACKED[bits]]
    assert packed and all("language_model" in name for name in packed)
    assert mean_gap(model, processor) < 0.05
    train_steps(model, processor, tmp_path, optim="adamw_8bit")


PACKED = {4: ("Linear4bit",), 8: ("Linear8bitLt",)}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
@pytest.mark.parametrize("vision", [False, True], ids=["frozen", "vision"])
def test_two_steps_in_16_bit_move_every_adapter(checkpoint, dtype, vision, tmp_path):
    model, processor = adapted(checkpoint, vision=vision, dtype=dtype)
    train_steps(model, processor, tmp_path)


def train_steps(model, processor, folder, **config):
    rows = [row(f"How many {w}?", picture(i, 64, 64)) for i, w in enumerate("abcd")]

    def reward(completion_ids, **_):
        return [float(sum(ids) % 7) for ids in completion_ids]

    trainer = GRPOTrainer(
        model=model,
        processing_class=processor,
        reward_funcs=[reward],
        train_dataset=rows,
        args=GRPOConfig(
            output_dir=str(folder),
            per_device_train_batch_size=8,
            num_generations=4,
            max_completion_length=8,
            max_steps=2,
            learning_rate=1e-3,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            beta=0.01,
            num_iterations=2,
            **config,
        ),
    )
    before = {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}
    trainer.train()
    after = dict(model.named_parameters())
    moved = [name for name, value in before.items() if not torch.equal(value, after[name])]
    assert len(moved) > 0.9 * len(before)
    assert all(p.isfinite().all() for n, p in after.items() if n in before)
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert all(entry["memory/train_gib"] > 0 and entry["step_time"] > 0 for entry in logs)


@pytest.mark.parametrize("policy", [True, "offload"])
def test_checkpointing_and_offloading_keep_the_gradient(checkpoint, policy):
    model, processor = adapted(checkpoint, vision=True, dtype=torch.float32)
    prompts = ragged_prompts(stock_model(model), processor)
    completions = random_completions([5, 1, 20])
    gradients = []
    for choice in (False, policy):
        set_checkpointing(model, choice)
        model.train()
        model.zero_grad()
        output = completion_logprobs(model, prompts, completions, temperature=1.0)
        output.logprob_BT.sum().backward()
        gradients.append(
            {n: p.grad.clone() for n, p in model.named_parameters() if p.requires_grad}
        )
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, atol=1e-4, rtol=1e-3)


def test_gemma_in_float16_keeps_a_residual_beyond_its_range(tmp_path):
    """Gemma 3's residual stream outgrows 65,504: float16 alone would give inf."""
    model, processor = FastVisionModel.from_pretrained(
        save_tiny(tmp_path, "gemma3"), dtype=torch.float16
    )
    layers = language_model(model).layers
    with torch.no_grad():
        # The sum must leave the range, and neither the scaled embeddings nor a branch by itself.
        model.get_input_embeddings().weight.mul_(2e4)
        for layer in layers:
            layer.post_feedforward_layernorm.weight.fill_(1.5e4)
    seen = []

    def note(module, inputs, output):
        seen.append(output[0] if isinstance(output, tuple) else output)

    hooks = [layer.register_forward_hook(note) for layer in layers]
    prompts = ragged_prompts(model, processor)
    output = completion_logprobs(model, prompts, random_completions([4, 4, 4]), temperature=1.0)
    backend = Engine(model, processor.tokenizer)
    groups = backend.generate(prompts, 2, SamplingParams(max_tokens=4))
    for hook in hooks:
        hook.remove()
    assert all(hidden.dtype == torch.float32 for hidden in seen)
    assert max(hidden.abs().max().item() for hidden in seen) > 65504
    assert output.logprob_BT.isfinite().all()
    logprobs = [x for g in groups for c in g.completions for x in c.rollout_logprob]
    assert torch.tensor(logprobs).isfinite().all()


def test_a_frozen_tower_is_not_in_the_backward_pass(checkpoint):
    model, processor = adapted(checkpoint)
    set_checkpointing(model, True)
    model.train()
    calls = []
    hooks = [
        m.register_full_backward_hook(lambda *_: calls.append(1)) for m in vision_modules(model)
    ]
    prompts = ragged_prompts(stock_model(model), processor)
    output = completion_logprobs(model, prompts, random_completions([4, 4, 4]), temperature=1.0)
    output.logprob_BT.sum().backward()
    for hook in hooks:
        hook.remove()
    assert not calls


def test_the_meter_sees_allocations_of_its_phase():
    meter = PhaseMeter(torch.device("cuda"))
    with meter("large"):
        block = torch.empty(256 << 20, dtype=torch.uint8, device="cuda")
        del block
    with meter("small"):
        pass
    metrics = meter.drain()
    assert metrics["memory/large_gib"] >= metrics["memory/small_gib"] + 0.2
