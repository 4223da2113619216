"""What every backend that samples from a model owes: stock answers, the trainer's
log-probabilities, and nothing of a checkpoint's own generation settings."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from transformers import GenerationConfig

from foveal import FastVisionModel
from foveal.models.family import placeholder_ids
from foveal.models.forward import completion_logprobs
from foveal.rollout import TransformersBackend
from foveal.rollout.engine import Engine
from foveal.testing import tiny
from foveal.types import SamplingParams
from tests.samples import build, picture, ragged_prompts, row, stock_inputs

GREEDY = SamplingParams(max_tokens=8, temperature=0.0)


@pytest.fixture(params=[TransformersBackend, Engine], ids=["transformers", "engine"])
def backend(request):
    """``backend(model, processor, **options)`` makes one."""
    return partial(make, request.param)


def make(backend_class, model, processor, **options):
    return backend_class(model, processor.tokenizer, **options)


@pytest.fixture
def draw(backend):
    """``draw(model, processor, prompts, n, **sampling)``: groups of a fresh backend."""

    def draw(model, processor, prompts, n=1, **sampling):
        settings = SamplingParams(**{"max_tokens": 6, "seed": 0, **sampling})
        return backend(model, processor).generate(prompts, n, settings)

    return draw


def ids_of(groups):
    return [completion.ids for group in groups for completion in group.completions]


def head_of(model):
    """The output layer as a stock float32 copy of its own, so that it can be bent."""
    head = model.get_output_embeddings()
    head.weight = torch.nn.Parameter(head.weight.detach().clone())
    return head


def love(model, token, by=50.0):
    """Make ``model`` give one token by far the highest logit everywhere."""
    head = head_of(model)
    head.bias = torch.nn.Parameter(torch.zeros(head.out_features))
    with torch.no_grad():
        head.bias[token] = by


# -- greedy


def stock_greedy(model, prompt, penalty):
    output = model.generate(
        **stock_inputs(model, prompt, []),
        max_new_tokens=8,
        do_sample=False,
        repetition_penalty=penalty,
        suppress_tokens=list(placeholder_ids(model)),
    )
    return tuple(output[0, len(prompt.ids) :].tolist())


# A penalty keeps the random models from saying one token for ever, which would hide a wrong cache.
@pytest.mark.parametrize("penalty", [1.0, 3.0])
def test_greedy_equals_stock_generate_alone_and_in_a_ragged_batch(backend, tiny_model, penalty):
    model, processor = tiny_model
    prompts = ragged_prompts(model, processor)
    expected = [stock_greedy(model, prompt, penalty) for prompt in prompts]
    assert len(set(expected)) > 1
    assert penalty == 1.0 or all(len(set(ids)) > 4 for ids in expected)
    sampling = SamplingParams(max_tokens=8, temperature=0.0, repetition_penalty=penalty)
    together = backend(model, processor).generate(prompts, 1, sampling)
    assert ids_of(together) == expected
    alone = backend(model, processor, max_rows=1).generate(prompts, 1, sampling)
    assert ids_of(alone) == expected
    assert [group.prompt for group in together] == prompts


def test_several_greedy_completions_of_one_prompt_are_refused(backend, tiny_model):
    model, processor = tiny_model
    prompts = ragged_prompts(model, processor)
    with pytest.raises(ValueError, match="n is 2 at temperature 0"):
        backend(model, processor).generate(prompts, 2, GREEDY)
    with pytest.raises(ValueError, match="n is 0"):
        backend(model, processor).generate(prompts, 0, SamplingParams(max_tokens=2))


# -- log-probabilities

TRUNCATIONS = [
    {},
    {"top_p": 0.8},
    {"top_k": 12},
    {"min_p": 0.3},
    {"repetition_penalty": 1.5},
    {"top_p": 0.9, "top_k": 40, "min_p": 0.05, "repetition_penalty": 1.2},
]


def test_recorded_logprobs_are_the_trainers_whatever_cuts_the_distribution(draw, tiny_model):
    """Before temperature was part of it, or after truncation, they would be another policy's."""
    model, processor = tiny_model
    prompts = ragged_prompts(model, processor)
    for settings in TRUNCATIONS:
        groups = draw(model, processor, prompts, n=2, temperature=0.7, **settings)
        completions = [completion for group in groups for completion in group.completions]
        trainer = completion_logprobs(
            model,
            [group.prompt for group in groups for _ in group.completions],
            [completion.ids for completion in completions],
            temperature=0.7,
        ).logprob_BT
        for logprob_T, completion in zip(trainer, completions, strict=True):
            torch.testing.assert_close(
                logprob_T[: len(completion.ids)],
                torch.tensor(completion.rollout_logprob),
                atol=1e-5,
                rtol=1e-5,
                msg=str(settings),
            )


def test_truncation_is_applied_to_the_draw(backend, draw):
    """The equality above would also hold if top_k and its like were ignored."""
    model, processor = tiny("qwen2_5_vl")
    (prompt,) = build(model, processor, row("Say anything."))
    greedy = backend(model, processor).generate([prompt], 1, GREEDY)
    for settings in ({"top_k": 1}, {"top_p": 1e-6}, {"min_p": 0.999999}):
        (group,) = draw(model, processor, [prompt], n=2, max_tokens=8, **settings)
        assert ids_of([group]) == ids_of(greedy) * 2, settings
    repeated = draw(model, processor, [prompt], n=4, max_tokens=24, top_k=1)
    fresh = draw(model, processor, [prompt], n=4, max_tokens=24, top_k=1, repetition_penalty=100.0)
    assert len(set(ids_of(fresh)[0])) > len(set(ids_of(repeated)[0]))


# -- a checkpoint's own settings


def test_a_checkpoints_generation_config_does_not_leak_in(draw):
    """Also not where a request leaves a setting open, which generate fills from the checkpoint."""
    model, processor = tiny("qwen2_5_vl")
    prompts = ragged_prompts(model, processor)
    expected = draw(model, processor, prompts, n=2)
    own = GenerationConfig(
        eos_token_id=model.generation_config.eos_token_id,
        do_sample=False,
        repetition_penalty=1.3,
        temperature=0.01,
        top_k=1,
        top_p=0.1,
        min_p=0.9,
        typical_p=0.1,
        no_repeat_ngram_size=1,
        bad_words_ids=[[token] for token in range(0, 256, 2)],
        suppress_tokens=list(range(100)),
        min_new_tokens=4,
        num_beams=2,
        max_length=4096,
    )
    model.generation_config = own
    groups = draw(model, processor, prompts, n=2)
    assert groups == expected
    assert model.generation_config is own, "what the checkpoint says is put back"


# -- placeholders


def test_placeholders_are_never_sampled_even_if_the_model_would_love_to(draw, tiny_model):
    model, processor = tiny_model
    prompts = ragged_prompts(model, processor)
    for token in placeholder_ids(model):
        love(model, token)
        for temperature in (0.0, 1.0):
            groups = draw(model, processor, prompts, temperature=temperature)
            assert not any(token in ids for ids in ids_of(groups))


def test_tokens_suppressed_on_request_are_not_sampled_either(draw):
    model, processor = tiny("qwen2_5_vl")
    prompts = ragged_prompts(model, processor)
    love(model, 65)
    assert set(ids_of(draw(model, processor, prompts))[0]) == {65}
    groups = draw(model, processor, prompts, suppress_token_ids=(65,))
    assert not any(65 in ids for ids in ids_of(groups))


# -- stopping


def test_every_stop_token_ends_a_completion_and_belongs_to_it(draw, tiny_model):
    model, processor = tiny_model
    prompts = ragged_prompts(model, processor)
    stops = {*model.generation_config.eos_token_id, processor.tokenizer.eos_token_id}
    assert len(stops) == 2
    for token in sorted(stops):
        love(model, token)
        for group in draw(model, processor, prompts):
            (completion,) = group.completions
            assert completion.ids == (token,) and completion.stop_reason == "stop"
            assert completion.text == "" and len(completion.rollout_logprob) == 1


def test_a_stop_token_of_the_request_counts_too(draw):
    model, processor = tiny("qwen2_5_vl")
    prompts = ragged_prompts(model, processor)
    love(model, 65)
    (completion,) = draw(model, processor, prompts, stop_token_ids=(65,))[0].completions
    assert completion.ids == (65,) and completion.stop_reason == "stop"


def test_a_completion_cut_at_the_budget_says_so_and_has_no_padding(draw):
    model, processor = tiny("qwen2_5_vl")
    prompts = ragged_prompts(model, processor)
    love(model, 65)
    (completion,) = draw(model, processor, prompts, max_tokens=5)[0].completions
    assert completion.ids == (65,) * 5 and completion.truncated
    assert len(completion.rollout_logprob) == 5


def test_rows_that_stop_early_are_not_filled_up_with_padding(draw):
    """Qwen's padding token is also a stop token: what follows the first stop is no completion."""
    model, processor = tiny("qwen2_5_vl")
    (prompt,) = build(model, processor, row("Say anything."))
    love(model, processor.tokenizer.eos_token_id, by=4.0)
    completions = draw(model, processor, [prompt], n=16, max_tokens=12)[0].completions
    lengths = {len(completion.ids) for completion in completions}
    assert len(lengths) > 2
    stops = set(model.generation_config.eos_token_id)
    for completion in completions:
        assert not stops & set(completion.ids[:-1])
        assert (completion.ids[-1] in stops) == (completion.stop_reason == "stop")
        assert completion.truncated == (completion.stop_reason == "length")


# -- random state, mode, weights


def test_a_seed_repeats_its_draw_and_leaves_the_global_random_state_alone(draw):
    model, processor = tiny("qwen2_5_vl")
    prompts = ragged_prompts(model, processor)
    before = torch.get_rng_state()
    first = draw(model, processor, prompts, n=2, seed=7)
    assert torch.equal(torch.get_rng_state(), before)
    assert draw(model, processor, prompts, n=2, seed=7) == first
    assert draw(model, processor, prompts, n=2, seed=8) != first
    assert ids_of(first)[0] != ids_of(first)[1], "completions of a group are drawn apart"


def test_without_a_seed_the_global_random_state_decides(draw):
    model, processor = tiny("qwen2_5_vl")
    prompts = ragged_prompts(model, processor)
    draws = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        draws.append(draw(model, processor, prompts, seed=None))
    assert draws[0] == draws[1] != draws[2]


@pytest.mark.parametrize("training", [True, False])
def test_the_models_mode_and_gradients_are_as_before(draw, training):
    model, processor = tiny("qwen2_5_vl")
    model.train(training)
    draw(model, processor, ragged_prompts(model, processor))
    assert all(module.training is training for module in model.modules())
    assert torch.is_grad_enabled() and all(p.requires_grad for p in model.parameters())


def test_an_error_while_generating_puts_mode_and_settings_back(draw):
    model, processor = tiny("qwen2_5_vl")
    model.train()
    own = model.generation_config

    def fail(*_):
        raise OSError("out of memory")

    model.get_output_embeddings().register_forward_hook(fail)
    with pytest.raises(OSError, match="out of memory"):
        draw(model, processor, ragged_prompts(model, processor))
    assert model.training and model.generation_config is own


def test_an_update_of_the_adapter_is_seen_by_the_next_call(backend, tiny_model):
    model, processor = tiny_model
    prompts = ragged_prompts(model, processor)
    adapted = FastVisionModel.get_peft_model(model, r=2)
    sampler = backend(adapted, processor)
    before = sampler.generate(prompts, 1, GREEDY)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_(generator=torch.Generator().manual_seed(0))
    after = sampler.generate(prompts, 1, GREEDY)
    assert ids_of(after) != ids_of(before)
    with adapted.disable_adapter():
        assert ids_of(sampler.generate(prompts, 1, GREEDY)) == ids_of(before)


# -- rows at once


@pytest.mark.parametrize("max_rows", [1, 3, 4, 5])
def test_no_more_rows_than_asked_for_are_decoded_at_once(backend, max_rows):
    model, processor = tiny("qwen2_5_vl")
    prompts = ragged_prompts(model, processor)
    seen = []
    model.get_output_embeddings().register_forward_pre_hook(
        lambda _, inputs: seen.append(len(inputs[0]))
    )
    sampling = SamplingParams(max_tokens=2, seed=0)
    groups = backend(model, processor, max_rows=max_rows).generate(prompts, 4, sampling)
    assert [group.prompt for group in groups] == prompts
    assert all(len(group.completions) == 4 for group in groups)
    assert max(seen) <= max_rows
    assert len(set(ids_of(groups))) > 4, "each part is drawn anew"


def test_prompts_without_any_picture_need_none(draw, tiny_model):
    model, processor = tiny_model
    prompts = build(model, processor, row("What is one and one?"), row("And two?"))
    assert len(ids_of(draw(model, processor, prompts, n=2))) == 4


def test_a_picture_is_seen_by_every_completion_of_its_group(draw, tiny_model):
    model, processor = tiny_model
    first, second = (
        build(model, processor, row("Which?", picture(seed, 64, 64))) for seed in (1, 2)
    )
    assert first[0].ids == second[0].ids
    one, other = (draw(model, processor, prompts, n=2, max_tokens=1) for prompts in (first, second))
    for a, b in zip(one[0].completions, other[0].completions, strict=True):
        assert a.rollout_logprob != b.rollout_logprob


# -- stop strings, fixed lengths, streaming


def test_a_stop_string_ends_its_row_alone_and_is_left_out_of_the_text(draw):
    model, processor = tiny("qwen2_5_vl")
    prompts = ragged_prompts(model, processor)
    free = draw(model, processor, prompts, n=2, max_tokens=12)
    texts = [completion.text for group in free for completion in group.completions]
    stop = next(
        text[i]
        for text in texts
        for i in range(3, len(text))
        if text[i].isascii() and text[i] not in text[:i]
    )
    for group, before in zip(
        draw(model, processor, prompts, n=2, max_tokens=12, stop=(stop,)), free, strict=True
    ):
        for cut, whole in zip(group.completions, before.completions, strict=True):
            assert cut.ids == whole.ids[: len(cut.ids)]
            assert cut.text == whole.text.split(stop)[0]
            assert (len(cut.ids) < len(whole.ids)) <= (cut.stop_reason == "stop")
            assert len(cut.rollout_logprob) == len(cut.ids)
            assert (stop in processor.tokenizer.decode(cut.ids)) == (stop in whole.text)


def test_ignoring_the_end_gives_exactly_the_budget(draw):
    model, processor = tiny("qwen2_5_vl")
    prompts = ragged_prompts(model, processor)
    end = processor.tokenizer.eos_token_id
    love(model, end, by=4.0)
    groups = draw(model, processor, prompts, n=4, max_tokens=12, ignore_eos=True)
    assert {len(ids) for ids in ids_of(groups)} == {12}
    assert any(end in ids[:-1] for ids in ids_of(groups))
    assert all(c.truncated for group in groups for c in group.completions)


@pytest.mark.parametrize("max_rows", [12, 3, 4])
def test_tokens_are_shown_as_they_arrive_each_at_its_own_place(backend, max_rows):
    model, processor = tiny("qwen2_5_vl")
    love(model, processor.tokenizer.eos_token_id, by=3.0)
    seen, order = {}, []

    def on_tokens(place, sample, ids):
        order.append((place, sample))
        seen.setdefault((place, sample), []).extend(ids)

    sampling = SamplingParams(max_tokens=6, seed=0)
    prompts = ragged_prompts(model, processor)
    groups = backend(model, processor, max_rows=max_rows).generate(prompts, 4, sampling, on_tokens)
    assert seen == {
        (place, sample): list(completion.ids)
        for place, group in enumerate(groups)
        for sample, completion in enumerate(group.completions)
    }
    assert order != sorted(order), "rows grow side by side"
