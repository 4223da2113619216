"""The engine on a GPU: fused kernels, captured graphs, and a cache that moves under them."""

from __future__ import annotations

import importlib.util

import pytest
import torch

from foveal import FastVisionModel
from foveal.models.decoder import Decoder
from foveal.models.family import stock_model
from foveal.models.forward import completion_logprobs
from foveal.rollout.engine import Engine
from foveal.testing import TINY_FAMILIES, save_tiny, tiny
from foveal.types import PAGE, SamplingParams
from tests.samples import ragged_prompts

pytestmark = pytest.mark.gpu

GREEDY = SamplingParams(max_tokens=PAGE + 20, temperature=0.0, ignore_eos=True)
SAMPLED = SamplingParams(max_tokens=PAGE + 20, seed=0, ignore_eos=True)
TRUNCATED = SamplingParams(
    max_tokens=40, seed=0, ignore_eos=True, top_p=0.9, repetition_penalty=1.3, temperature=0.8
)
half_types = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])


@pytest.fixture(scope="module", params=list(TINY_FAMILIES))
def checkpoint(request, tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("tiny") / request.param, request.param)


def adapted(checkpoint, r=4, **load):
    """A model with an adapter that does something, its processor, and prompts."""
    model, processor = FastVisionModel.from_pretrained(checkpoint, **load)
    model = FastVisionModel.get_peft_model(model, r=r, finetune_vision_layers=False)
    move(model)
    return model, processor, ragged_prompts(stock_model(model), processor)


def move(model, seed=0, std=0.05):
    """Give the adapter other values, in place, as an optimizer does."""
    generator = torch.Generator("cuda").manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=std, generator=generator)


def engine(model, processor, **options):
    return Engine(model, processor.tokenizer, **options)


def ids_of(groups):
    return [completion.ids for group in groups for completion in group.completions]


def logprobs_of(groups):
    return torch.tensor([x for g in groups for c in g.completions for x in c.rollout_logprob])


def assert_same(groups, expected, atol):
    assert ids_of(groups) == ids_of(expected)
    torch.testing.assert_close(logprobs_of(groups), logprobs_of(expected), atol=atol, rtol=0)


def mean_gap(model, groups):
    """Mean |trainer - sampler| in nats a token, at temperature 1."""
    rows = [(group.prompt, completion) for group in groups for completion in group.completions]
    with torch.no_grad():
        trainer = completion_logprobs(
            model, [prompt for prompt, _ in rows], [c.ids for _, c in rows], temperature=1.0
        )
    gap = trainer.logprob_BT[trainer.mask_BT].cpu() - logprobs_of(groups)
    assert gap.isfinite().all(), f"{int((~gap.isfinite()).sum())} of {len(gap)} are not finite"
    return gap.abs().mean().item()


# -- fused, plain, captured, eager


@half_types
def test_a_replayed_graph_does_what_the_eager_step_does(checkpoint, dtype):
    model, processor, prompts = adapted(checkpoint, dtype=dtype)
    captured, eager = engine(model, processor), engine(model, processor, graphs=False)
    for n, sampling in ((1, GREEDY), (3, SAMPLED), (3, TRUNCATED)):
        groups = captured.generate(prompts, n, sampling)
        assert_same(groups, eager.generate(prompts, n, sampling), atol=1e-5)
    assert captured._runner.steps.why_plain is None, captured._runner.steps.why_plain
    assert captured.captures > 0 and eager.captures == 0, (captured.captures, eager.captures)


@half_types
@pytest.mark.parametrize("fused", [True, False], ids=["fused", "plain"])
def test_each_step_gives_the_trainers_logprobs(checkpoint, dtype, fused):
    """36 rows: several buckets, padding rows, and prompts read in chunks."""
    model, processor, prompts = adapted(checkpoint, dtype=dtype)
    sampler = engine(model, processor, fused=fused)
    groups = sampler.generate(prompts, 12, SAMPLED)
    assert (sampler._runner.steps.why_plain is None) is fused and sampler.captures > 0
    gap = mean_gap(model, groups)
    assert gap < 0.02, f"mean |trainer - sampler| is {gap:.3g} nats a token"


@pytest.mark.parametrize("r", [4, 16, 64])
def test_adapters_of_any_rank_are_applied(checkpoint, r):
    model, processor, prompts = adapted(checkpoint, r=r)
    move(model, std=0.1 / r**0.5)  # as much in all for any rank: rounding grows with it
    groups = engine(model, processor).generate(prompts, 4, SAMPLED)
    gap = mean_gap(model, groups)
    with model.disable_adapter():
        without = mean_gap(model, groups)
    assert gap < 0.02 and without > 2 * gap, f"{gap:.3g} nats a token, {without:.3g} without it"


@pytest.mark.usefixtures("without_tf32")
def test_float32_equals_the_cpu_also_where_rows_step_back(tiny_model):
    model, processor = tiny_model
    prompts = ragged_prompts(model, processor)
    greedy = engine(model, processor).generate(prompts, 1, GREEDY)
    sampled = engine(model, processor).generate(prompts, 4, SAMPLED)
    model.cuda()
    sampler = engine(model, processor)
    assert_same(sampler.generate(prompts, 1, GREEDY), greedy, atol=1e-4)
    assert_same(sampler.generate(prompts, 4, SAMPLED), sampled, atol=1e-4)
    small = engine(model, processor, cache_bytes=cache_of(model, 15))
    assert_same(small.generate(prompts, 4, SAMPLED), sampled, atol=1e-4)
    assert small._scheduler.counters.recomputed_tokens > 0, small._scheduler.counters


def cache_of(model, pages):
    """Bytes of a cache with ``pages`` pages, beside the scratch page."""
    return (pages + 1) * Decoder(model).page_elements * PAGE * model.dtype.itemsize


def test_an_8_bit_cache_costs_no_more_than_its_rounding(checkpoint):
    if torch.cuda.get_device_capability() < (8, 9):
        pytest.skip("8-bit floats need sm_89 or later")
    model, processor, prompts = adapted(checkpoint)
    sampler = engine(model, processor, cache_dtype=torch.float8_e4m3fn)
    groups = sampler.generate(prompts, 4, SAMPLED)
    assert sampler._runner.arena.dtype == torch.float8_e4m3fn
    gap = mean_gap(model, groups)
    # Keys and values of another prompt would be 0.3 and more away.
    assert gap < 0.08, f"mean |trainer - sampler| is {gap:.3g} nats a token"


@pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed"
)
def test_packed_weights_are_rolled_out_through_their_own_layers(checkpoint):
    model, processor, prompts = adapted(checkpoint, load_in_4bit=True)
    sampler = engine(model, processor)
    groups = sampler.generate(prompts, 4, SAMPLED)
    assert "Linear4bit" in str(sampler._runner.steps.why_plain)
    gap = mean_gap(model, groups)
    assert gap < 0.05, f"mean |trainer - sampler| is {gap:.3g} nats a token"


# -- what happens between rollouts


@pytest.mark.parametrize("fused", [True, False], ids=["fused", "plain"])
def test_a_graph_writes_nowhere_but_into_what_is_kept_for_it(checkpoint, fused):
    """A workspace that only the capture held would be somebody else's memory by now."""
    model, processor, prompts = adapted(checkpoint)
    sampler = engine(model, processor, fused=fused)
    sampler.generate(prompts, 12, SAMPLED)
    captures = sampler.captures
    # Small and large blocks, so that whatever has been freed is taken.
    sizes = [512 * (i + 1) for i in range(64)] * 16 + [1 << 20, 3 << 20, 20 << 20] * 8
    taken = [torch.full((size,), 90, dtype=torch.uint8, device="cuda") for size in sizes]
    sampler.generate(prompts, 12, SAMPLED)
    assert sampler.captures == captures
    changed = [len(block) for block in taken if not bool((block == 90).all())]
    assert not changed, f"blocks of {changed} bytes were written to"


def test_a_second_rollout_captures_nothing(checkpoint):
    model, processor, prompts = adapted(checkpoint)
    sampler = engine(model, processor)
    first = sampler.generate(prompts, 3, SAMPLED)
    captures = sampler.captures
    move(model, seed=1)
    sampler.generate(prompts, 2, SAMPLED)
    move(model, seed=0)
    assert_same(sampler.generate(prompts, 3, SAMPLED), first, atol=1e-5)
    assert sampler.captures == captures, (sampler.captures, captures)


@pytest.mark.parametrize("fused", [True, False], ids=["fused", "plain"])
def test_graphs_follow_the_cache_to_another_address(checkpoint, fused):
    model, processor, prompts = adapted(checkpoint)
    sampler = engine(model, processor, fused=fused)
    first = sampler.generate(prompts, 3, SAMPLED)
    captures, arena = sampler.captures, sampler._runner.arena
    address, size = arena.data_ptr(), arena.nbytes
    del arena
    sampler.standby()
    assert sampler._runner.arena is None
    # Somebody else takes the memory and writes what would be noticed: 255 is NaN in any type.
    taken = []
    while len(taken) < 256 and not any(0 <= address - t.data_ptr() < size for t in taken):
        taken.append(torch.full((size,), 255, dtype=torch.uint8, device="cuda"))
    again = sampler.generate(prompts, 3, SAMPLED)
    assert sampler._runner.arena.data_ptr() != address, "the cache was to move"
    assert_same(again, first, atol=1e-5)
    assert sampler.captures == captures, (sampler.captures, captures)
    assert all(bool((t == 255).all()) for t in taken), "a graph wrote to the old address"


@pytest.mark.parametrize("fused", [True, False], ids=["fused", "plain"])
def test_an_update_acts_at_once_under_graphs(checkpoint, fused):
    model, processor, prompts = adapted(checkpoint)
    sampler = engine(model, processor, fused=fused)
    known = [sampler.generate(prompts, 2, SAMPLED)]
    captures = sampler.captures
    move(model, seed=1)
    known.append(sampler.generate(prompts, 2, SAMPLED))
    assert sampler.captures == captures, (sampler.captures, captures)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.mul_(2.0)
    known.append(sampler.generate(prompts, 2, SAMPLED))
    fresh = engine(model, processor, fused=fused)
    assert_same(known[-1], fresh.generate(prompts, 2, SAMPLED), atol=1e-5)
    with model.disable_adapter():
        known.append(sampler.generate(prompts, 2, SAMPLED))
        fresh = engine(model, processor, fused=fused)
        assert_same(known[-1], fresh.generate(prompts, 2, SAMPLED), atol=1e-5)
    assert_same(sampler.generate(prompts, 2, SAMPLED), known[2], atol=1e-5)
    firsts = {groups[0].completions[0].rollout_logprob for groups in known}
    assert len(firsts) == len(known), f"{len(firsts)} of {len(known)} policies can be told apart"


def test_two_hundred_rollouts_leak_no_memory():
    """Each has a pass over the prompts, because the adapter moves; some take a new cache."""
    model, processor = tiny("qwen3_vl")
    model = FastVisionModel.get_peft_model(model.to("cuda", torch.bfloat16), r=4)
    prompts = ragged_prompts(stock_model(model), processor)
    sampler = engine(model, processor)
    allocated = []
    for i in range(200):
        move(model, seed=i)
        if i % 10 == 5:
            sampler.standby()
        sampler.generate(prompts, 2, SamplingParams(max_tokens=4, seed=i, ignore_eos=True))
        torch.cuda.synchronize()
        allocated.append(torch.cuda.memory_allocated())
    grown = {i: bytes_ - allocated[1] for i, bytes_ in enumerate(allocated[1:], 1)}
    assert not any(grown.values()), {i: more for i, more in grown.items() if more}
