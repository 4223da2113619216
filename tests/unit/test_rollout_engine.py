"""The engine's own mechanisms, each against a plain answer: pages, stepping back, seeds, prompts
that stay in the cache, updates. What it owes as a backend is in test_rollout_backends.py."""

from __future__ import annotations

import gc
from types import SimpleNamespace

import pytest
import torch

from foveal import FastVisionModel
from foveal.models.decoder import Decoder
from foveal.models.family import placeholder_ids, stock_model, vision_modules
from foveal.models.forward import FeatureCache, completion_logprobs
from foveal.rollout import TransformersBackend
from foveal.rollout.engine import Engine, engine_of
from foveal.rollout.runner import Ahead, _description
from foveal.rollout.sampler import Sampler
from foveal.testing import tiny
from foveal.testing.tiny_models import SLIDING_WINDOW
from foveal.types import PAGE, SamplingParams
from tests.samples import build, picture, ragged_prompts, row, stock_inputs

SAMPLED = SamplingParams(max_tokens=10, seed=3)


def engine(model, processor, **options):
    return Engine(model, processor.tokenizer, **options)


def some_prompts(model, processor):
    """One picture, two pictures, none; and a prompt of several pages."""
    return build(
        model,
        processor,
        row("How many red things?", picture(0, 70, 90)),
        row("Which is larger, the first or the second?", picture(1, 100, 60), picture(2, 64, 64)),
        row("One and one?"),
        row("Look at this: " + " ".join(map(str, range(50))), picture(3, 64, 64)),
    )


def ids_of(groups):
    return [completion.ids for group in groups for completion in group.completions]


def logprobs_of(groups):
    return torch.tensor([x for g in groups for c in g.completions for x in c.rollout_logprob])


def assert_same(groups, expected):
    assert ids_of(groups) == ids_of(expected)
    torch.testing.assert_close(logprobs_of(groups), logprobs_of(expected), atol=1e-5, rtol=1e-5)


def cache_of(model, pages):
    """Bytes of a cache with ``pages`` pages, beside the scratch page."""
    return (pages + 1) * Decoder(model).page_elements * PAGE * model.dtype.itemsize


# -- pages


# A penalty keeps the random models from saying one token for ever, which would hide a wrong cache.
@pytest.mark.parametrize(("penalty", "tokens"), [(1.0, 44), (3.0, 2 * PAGE + 6)])
def test_greedy_over_several_pages_equals_transformers(tiny_model, penalty, tokens):
    """A page table read one off, or a window counted from the wrong end, shows after PAGE."""
    model, processor = tiny_model
    prompts = some_prompts(model, processor)
    lengths = [len(prompt.ids) for prompt in prompts]
    assert max(lengths) > 2 * PAGE and min(lengths) > SLIDING_WINDOW
    sampling = SamplingParams(
        max_tokens=tokens, temperature=0.0, ignore_eos=True, repetition_penalty=penalty
    )
    # One row at a time: in a padded batch a penalty would also hit the padding token.
    stock = TransformersBackend(model, processor.tokenizer, max_rows=1)
    expected = stock.generate(prompts, 1, sampling)
    assert penalty == 1.0 or all(len(set(ids)) > 40 for ids in ids_of(expected))
    assert_same(engine(model, processor).generate(prompts, 1, sampling), expected)


@pytest.mark.parametrize(("temperature", "n", "pages"), [(0.0, 1, 9), (1.0, 5, 18)])
def test_rows_that_step_back_end_up_the_same(tiny_model, temperature, n, pages):
    model, processor = tiny_model
    prompts = some_prompts(model, processor)
    sampling = SamplingParams(
        max_tokens=PAGE + 20, temperature=temperature, seed=0, ignore_eos=True
    )
    expected = engine(model, processor).generate(prompts, n, sampling)
    small = engine(model, processor, cache_bytes=cache_of(model, pages))
    shown = {}

    def on_tokens(place, sample, ids):
        shown.setdefault((place, sample), []).extend(ids)

    assert_same(small.generate(prompts, n, sampling, on_tokens), expected)
    counters = small._scheduler.counters
    assert counters.preemptions > 0 and counters.recomputed_tokens > 0, counters
    assert [tuple(shown[key]) for key in sorted(shown)] == ids_of(expected), "shown once each"


def test_recorded_logprobs_are_the_trainers_with_everything_on_and_after_stepping_back(tiny_model):
    model, processor = tiny_model
    prompts = some_prompts(model, processor)
    sampling = SamplingParams(
        max_tokens=PAGE + 8,
        temperature=0.7,
        top_p=0.95,
        top_k=60,
        min_p=0.01,
        repetition_penalty=1.3,
        suppress_token_ids=tuple(range(0, 256, 3)),
        ignore_eos=True,
        seed=1,
    )
    small = engine(model, processor, cache_bytes=cache_of(model, 12))
    groups = small.generate(prompts, 4, sampling)
    assert small._scheduler.counters.recomputed_tokens > 0
    rows = [(group.prompt, completion) for group in groups for completion in group.completions]
    trainer = completion_logprobs(
        model, [prompt for prompt, _ in rows], [c.ids for _, c in rows], temperature=0.7
    )
    torch.testing.assert_close(
        trainer.logprob_BT[trainer.mask_BT], logprobs_of(groups), atol=1e-5, rtol=1e-5
    )
    assert not {*sampling.suppress_token_ids} & {i for ids in ids_of(groups) for i in ids}


# -- random numbers


def test_an_8_bit_cache_costs_its_rounding_and_no_more(tiny_model):
    model, processor = tiny_model
    prompts = some_prompts(model, processor)
    sampler = engine(model, processor, cache_dtype=torch.float8_e4m3fn)
    groups = sampler.generate(prompts, 4, SAMPLED)

    def gap(others):
        """Mean |trainer - sampler| in nats, scored behind these prompts."""
        found = []
        for group, prompt in zip(groups, others, strict=True):
            for c in group.completions:
                with torch.no_grad():
                    scored = completion_logprobs(model, [prompt], [c.ids], temperature=1.0)
                found.append(scored.logprob_BT[0] - torch.tensor(c.rollout_logprob))
        return torch.cat(found).abs().mean().item()

    rounding, elsewhere = gap(prompts), gap([*prompts[1:], prompts[0]])
    assert 1e-5 < rounding < 0.04, rounding
    assert elsewhere > 4 * rounding, "a cache of wrong keys would pass as well"


def test_a_draw_depends_on_seed_prompt_and_sample_alone(tiny_model):
    """On what else is in the batch it would depend if noise were drawn for the batch at once."""
    model, processor = tiny_model
    prompts = some_prompts(model, processor)
    sampling = SamplingParams(max_tokens=20, seed=5)
    expected = engine(model, processor).generate(prompts, 8, sampling)
    assert len(set(ids_of(expected))) == 8 * len(prompts), "samples are drawn apart"
    backwards = engine(model, processor, max_rows=5).generate(prompts[::-1], 8, sampling)
    assert_same(backwards[::-1], expected)
    fewer = engine(model, processor).generate(prompts[1:2], 4, sampling)
    assert ids_of(fewer) == [completion.ids for completion in expected[1].completions[:4]]
    other = SamplingParams(max_tokens=20, seed=6)
    assert not {*ids_of(engine(model, processor).generate(prompts, 8, other))} & {*ids_of(expected)}


def test_the_global_random_state_moves_when_it_is_drawn_from_and_only_then():
    model, processor = tiny("qwen2_5_vl")
    prompts = some_prompts(model, processor)
    sampler = engine(model, processor)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    sampler.generate(prompts, 1, SamplingParams(max_tokens=4, temperature=0.0))
    assert torch.equal(torch.get_rng_state(), before), "greedy draws nothing"
    first, second = (
        ids_of(sampler.generate(prompts, 2, SamplingParams(max_tokens=12))) for _ in range(2)
    )
    assert not {*first} & {*second}
    torch.manual_seed(0)
    assert ids_of(sampler.generate(prompts, 2, SamplingParams(max_tokens=12))) == first


def test_first_and_second_tokens_are_as_frequent_as_softmax_says():
    """The first comes from the prompt's pass, the second from a decode step, each with a random
    number of its own: one number used twice would bend the second's frequencies."""
    model, processor = tiny("qwen3_vl")
    model.requires_grad_(False)
    (prompt,) = build(model, processor, row("Say anything.", picture(0, 64, 64)))
    count, sampling = 2000, SamplingParams(max_tokens=2, seed=11, ignore_eos=True, temperature=1.3)
    (group,) = engine(model, processor).generate([prompt], count, sampling)
    drawn = torch.tensor([completion.ids for completion in group.completions])

    def probabilities(*ids):
        logits_V = model(**stock_inputs(model, prompt, [*ids])).logits[0, -1] / 1.3
        logits_V[list(placeholder_ids(model))] = -torch.inf
        return logits_V.double().softmax(-1)

    first_V = probabilities()
    second_V = sum(first_V[i] * probabilities(i) for i in range(len(first_V)) if first_V[i] > 1e-5)
    for step, expected_V in enumerate((first_V, second_V)):
        p = chi_square_p(torch.bincount(drawn[:, step], minlength=len(expected_V)), expected_V)
        assert p > 1e-4, f"token {step}: p is {p:.2g}"


def chi_square_p(count_V, probability_V):
    """Pearson's test; words expected fewer than five times are counted together."""
    expected_V = probability_V * count_V.sum()
    rare_V = expected_V < 5
    assert (~rare_V).sum() > 10, "the distribution is too narrow to say anything"
    parts = [(count_V[~rare_V], expected_V[~rare_V])]
    if expected_V[rare_V].sum() >= 5:
        parts.append((count_V[rare_V].sum()[None], expected_V[rare_V].sum()[None]))
    found, expected = (torch.cat(list(x)).double() for x in zip(*parts, strict=True))
    statistic = ((found - expected) ** 2 / expected).sum()
    return torch.special.gammaincc(torch.tensor((len(found) - 1) / 2.0).double(), statistic / 2)


# -- prompts that stay in the cache


def test_a_prompt_is_computed_once_and_found_again(tiny_model):
    model, processor = tiny_model
    prompts = some_prompts(model, processor)
    kept = engine(model, processor)
    first = kept.generate(prompts, 3, SAMPLED)
    scheduler, tower_calls = kept._scheduler, kept.features.tower_calls
    assert scheduler.counters.prefills == len(prompts) and tower_calls > 0
    assert kept.generate(prompts, 3, SAMPLED) == first
    assert kept._scheduler is scheduler and scheduler.counters.prefills == len(prompts)
    assert scheduler.counters.prefix_hits == len(prompts)
    assert kept.features.tower_calls == tower_calls
    # A longer rollout needs a larger cache, which begins empty.
    longer = SamplingParams(max_tokens=PAGE + 6, seed=3)
    assert_same(
        kept.generate(prompts, 3, longer), engine(model, processor).generate(prompts, 3, longer)
    )


def test_two_pictures_behind_equal_ids_are_two_prompts():
    model, processor = tiny("gemma3")
    first, second = build(
        model, processor, *(row("Which?", picture(seed, 64, 64)) for seed in (1, 2))
    )
    assert first.ids == second.ids
    both = engine(model, processor).generate([first, second], 1, SAMPLED)
    alone = engine(model, processor).generate([second], 1, SAMPLED)
    assert_same(both[1:], alone)
    assert not torch.equal(logprobs_of(both[:1])[:1], logprobs_of(both[1:])[:1])


def test_standby_frees_the_cache_and_the_next_rollout_takes_it_anew():
    model, processor = tiny("qwen2_5_vl")
    prompts = some_prompts(model, processor)
    sampler = engine(model, processor)
    sampler.standby()
    first = sampler.generate(prompts, 2, SAMPLED)
    assert sampler._runner.arena is not None
    sampler.standby()
    assert sampler._runner.arena is None
    assert_same(sampler.generate(prompts, 2, SAMPLED), first)


# -- updates


def adapted(family, **flags):
    model, processor = tiny(family)
    model = FastVisionModel.get_peft_model(model, r=4, **flags)
    move(model)
    return model, processor


def move(model, seed=0):
    """Give the adapter other values, in place, as an optimizer does."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1, generator=generator)


def write_data(model):
    """As bitsandbytes' optimizers do: torch does not notice such a write."""
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.mul_(1.5)


def check_update(sampler, processor, prompts, before):
    """A fresh engine knows nothing of the past."""
    after = sampler.generate(prompts, 2, SAMPLED)
    assert_same(after, engine(sampler.model, processor).generate(prompts, 2, SAMPLED))
    for group, old in zip(after, before, strict=True):
        new_first, old_first = (g.completions[0].rollout_logprob[0] for g in (group, old))
        assert new_first != old_first, f"prompt {group.prompt.index} is as before the update"
    return after


def test_any_update_of_an_adapter_acts_at_once_on_cached_prompts_too(family):
    model, processor = adapted(family, finetune_vision_layers=False)
    prompts = some_prompts(stock_model(model), processor)
    sampler = engine(model, processor)
    groups = sampler.generate(prompts, 2, SAMPLED)
    with model.disable_adapter():
        groups = check_update(sampler, processor, prompts, groups)
    groups = check_update(sampler, processor, prompts, groups)
    for update in (lambda m: move(m, seed=1), write_data):
        update(model)
        groups = check_update(sampler, processor, prompts, groups)


def test_pictures_are_encoded_anew_when_the_tower_has_changed(family):
    """Features are shared with the trainer here, so the engine does not drop them by itself."""
    model, processor = adapted(family, finetune_language_layers=False)
    prompts = [p for p in some_prompts(stock_model(model), processor) if p.images]
    sampler = engine(model, processor, features=FeatureCache())
    groups = sampler.generate(prompts, 2, SAMPLED)
    for update in (lambda m: move(m, seed=1), write_data):
        update(model)
        groups = check_update(sampler, processor, prompts, groups)
    with model.disable_adapter():
        groups = check_update(sampler, processor, prompts, groups)
    check_update(sampler, processor, prompts, groups)


def test_features_of_a_frozen_tower_survive_an_update_of_the_decoder():
    model, processor = adapted("qwen2_5_vl", finetune_vision_layers=False)
    prompts = some_prompts(stock_model(model), processor)
    features = FeatureCache()
    sampler = engine(model, processor, features=features)
    groups = sampler.generate(prompts, 2, SAMPLED)
    calls = features.tower_calls
    move(model, seed=1)
    check_update(sampler, processor, prompts, groups)
    assert features.tower_calls == calls


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("assign", [False, True])
def test_other_base_weights_in_the_same_model_act_at_once(family, frozen, assign):
    """Frozen weights change as well, when a checkpoint is loaded into a living model."""
    model, processor = tiny(family)
    model.requires_grad_(not frozen)
    prompts = some_prompts(model, processor)
    sampler = engine(model, processor, features=FeatureCache())
    groups = sampler.generate(prompts, 2, SAMPLED)
    model.load_state_dict(tiny(family, seed=1)[0].state_dict(), assign=assign)
    model.requires_grad_(not frozen)
    groups = check_update(sampler, processor, prompts, groups)
    with torch.no_grad():
        next(vision_modules(model)[0].parameters()).mul_(1.5)
    with_pictures = [place for place, prompt in enumerate(prompts) if prompt.images]
    check_update(
        sampler,
        processor,
        [prompts[place] for place in with_pictures],
        [groups[place] for place in with_pictures],
    )


# -- what is left behind


def test_flags_and_gradients_are_as_before():
    model, processor = adapted("gemma3")
    model.train()
    for place, parameter in enumerate(model.parameters()):
        if parameter.requires_grad and place % 2:
            parameter.requires_grad_(False)
        if parameter.requires_grad:
            parameter.grad = torch.full_like(parameter, 2.0)
    flags = [p.requires_grad for p in model.parameters()]
    grads = [p.grad for p in model.parameters()]
    engine(model, processor).generate(some_prompts(stock_model(model), processor), 2, SAMPLED)
    assert [p.requires_grad for p in model.parameters()] == flags and any(flags)
    for parameter, grad in zip(model.parameters(), grads, strict=True):
        assert parameter.grad is grad and (grad is None or bool((grad == 2.0).all()))
    assert all(module.training for module in model.modules()) and torch.is_grad_enabled()


def fail_at_call(number, function):
    calls = []

    def wrapped(*args, **kwargs):
        calls.append(1)
        if len(calls) == number:
            raise KeyboardInterrupt
        return function(*args, **kwargs)

    return wrapped


@pytest.mark.parametrize("number", [1, 4])
def test_after_an_interrupt_in_the_middle_the_next_rollout_is_whole(number, monkeypatch):
    """Rows left in the queue, or prompts booked but never computed, would spoil it."""
    model, processor = tiny("qwen2_5_vl")
    model.train()
    prompts = some_prompts(model, processor)
    expected = engine(model, processor).generate(prompts, 2, SAMPLED)
    sampler = engine(model, processor)
    with monkeypatch.context() as patch:
        patch.setattr(Sampler, "__call__", fail_at_call(number, Sampler.__call__))
        with pytest.raises(KeyboardInterrupt):
            sampler.generate(prompts, 2, SAMPLED)
    assert model.training and sampler._runner.arena is None
    assert_same(sampler.generate(prompts, 2, SAMPLED), expected)
    with pytest.raises(KeyboardInterrupt):
        sampler.generate(prompts, 2, SAMPLED, fail_at_call(number, lambda *_: None))
    assert_same(sampler.generate(prompts, 2, SAMPLED), expected)


def test_fifty_rollouts_leave_no_tensor_behind():
    model, processor = adapted("qwen3_vl")
    prompts = some_prompts(stock_model(model), processor)
    sampler = engine(model, processor)
    alive = []
    for seed in range(52):
        sampling = SamplingParams(max_tokens=3, seed=seed, ignore_eos=True, top_p=0.9)
        sampler.generate(prompts[:2], 2, sampling)
        if seed in (1, 51):
            gc.collect()
            alive.append(sum(issubclass(type(x), torch.Tensor) for x in gc.get_objects()))
    assert alive[0] == alive[1]


# -- bad input


@pytest.mark.parametrize(
    ("options", "n", "sampling", "message"),
    [
        ({}, 0, {}, r"n is 0 at temperature 1.0; n must be at least 1"),
        ({}, 2, {"temperature": 0.0}, r"n is 2 at temperature 0.0; .* exactly 1"),
        ({"max_tokens": 200}, 1, {"max_tokens": 201}, r"max_tokens is 201, .* most 200 .*; lower"),
        ({"max_tokens": 90}, 1, {}, r"prompt 3 has \d\d\d tokens, .* most 90; leave it out"),
        ({"pages": 3}, 1, {}, r"prompt 3 with \d+ tokens and a completion of 4 needs .*; lower"),
        ({}, 1, {"suppress_token_ids": (9999,)}, r"ids \[9999\] lie outside the vocabulary"),
    ],
)
def test_bad_input_is_refused_before_any_work(options, n, sampling, message, monkeypatch):
    model, processor = tiny("qwen2_5_vl")
    prompts = some_prompts(model, processor)
    if "pages" in options:
        options = {"cache_bytes": cache_of(model, options["pages"])}
    sampler = engine(model, processor, **options)
    state = torch.get_rng_state()
    monkeypatch.setattr("foveal.rollout.runner.prefill", lambda *_: pytest.fail("prompts ran"))
    with pytest.raises(ValueError, match=message):
        sampler.generate(prompts, n, SamplingParams(**{"max_tokens": 4, "seed": 0, **sampling}))
    assert sampler.features.tower_calls == 0
    monkeypatch.undo()
    fine = SamplingParams(max_tokens=1, temperature=0.0)
    assert len(ids_of(sampler.generate(prompts[2:3], 1, fine))[0]) == 1
    assert torch.equal(torch.get_rng_state(), state)
    assert sampler.generate([], 1, fine) == []


def test_a_row_back_on_as_many_other_pages_is_described_anew():
    request = SimpleNamespace(prefix_pages=[1])
    mine = SimpleNamespace(request=request, pages=[2, 3], cached=70)
    before = _description(mine, mine.cached)
    assert _description(mine, mine.cached) == before
    mine.pages = [4, 5]
    assert _description(mine, mine.cached) != before
    mine.pages, request.prefix_pages = [2, 3], [6]
    assert _description(mine, mine.cached) != before


def test_numbers_drawn_ahead_are_those_of_the_rows_that_are_left():
    def some_row(seed, tokens):
        request = SimpleNamespace(payload=SimpleNamespace(seeds=[0, seed]))
        return SimpleNamespace(request=request, sample=1, ids=[5] * tokens)

    def longer(row, tokens):
        return some_row(row.request.payload.seeds[1], len(row.ids) + tokens)

    sampler = Sampler(SamplingParams(max_tokens=9), (), 8, "cpu")
    rows = [some_row(11, 3), some_row(12, 70), some_row(13, 1)]
    ahead = Ahead.of(rows, 4, 6, sampler)
    later = [longer(row, 4) for row in rows]
    for left in (later, later[1:], [later[2], later[0]]):
        seeds, firsts = [r.request.payload.seeds[1] for r in left], [len(r.ids) for r in left]
        found_SB = ahead.take(left, 5)
        assert found_SB is not None
        assert torch.equal(found_SB, sampler.uniforms(seeds, firsts, 5))
    assert ahead.take([*later, some_row(14, 1)], 5) is None, "a row that came in since"
    assert ahead.take([longer(rows[0], 3)], 5) is None, "a row that ended early and came back"
    assert ahead.take(later, 7) is None, "more steps than were drawn for"


def test_pictures_are_kept_only_for_whoever_shares_their_place():
    model, processor = tiny("qwen2_5_vl")
    prompts = ragged_prompts(model, processor)
    kept = FeatureCache()
    engine_of(model, processor.tokenizer, features=kept).generate(
        prompts, 1, SamplingParams(max_tokens=2)
    )
    assert len(kept._features) == 3
    sampler = engine_of(model, processor.tokenizer)
    sampler.standby()
    sampler.generate(prompts, 1, SamplingParams(max_tokens=2))
    assert not sampler.features._features and sampler.features is not kept
