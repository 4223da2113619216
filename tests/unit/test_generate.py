"""``fast_generate``: every form of a prompt, sampling settings of every origin, streaming, and
what is refused."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from foveal import FastVisionModel, SamplingParams, generate
from foveal.generate import bind_generation, fast_generate
from foveal.models.state import state_of
from foveal.rollout import ScriptedBackend
from foveal.rollout.requests import sampling_from
from foveal.testing import save_tiny, tiny
from tests.samples import build, picture, row

ASK = "What is it?"
SHORT = {"max_tokens": 1}


def prompt_ids(model, processor, prompts) -> list[list[int]]:
    return [g.prompt_token_ids for g in fast_generate(model, processor, prompts, SHORT)]


def finished(model, processor, *parts) -> str:
    """The chat template's text."""
    message = {"role": "user", "content": list(parts)}
    return processor.apply_chat_template([message], tokenize=False, add_generation_prompt=True)


def text_part(text):
    return {"type": "text", "text": text}


# -- prompts


def test_every_form_of_a_question_is_the_same_prompt(tiny_model):
    model, processor = tiny_model
    forms = [
        ASK,
        finished(model, processor, text_part(ASK)),
        [{"role": "user", "content": ASK}],
        [{"from": "human", "value": ASK}],
        {"prompt": ASK},
        {"prompt": finished(model, processor, text_part(ASK))},
        {"prompt": finished(model, processor, text_part(ASK)), "multi_modal_data": None},
        {"prompt": [{"role": "user", "content": [text_part(ASK)]}]},
        {"problem": ASK, "answer": "a fovea"},
    ]
    (expected,) = build(model, processor, row(ASK))
    assert prompt_ids(model, processor, forms) == [list(expected.ids)] * len(forms)
    for form in forms:
        assert prompt_ids(model, processor, form) == [list(expected.ids)], "one prompt, no list"


def test_every_form_of_a_question_about_pictures_is_the_same_prompt(tiny_model):
    """Ids alone would not show a picture in another's place; log-probabilities do."""
    model, processor = tiny_model
    one, two = picture(1, 70, 90), picture(2, 90, 70)
    images = [{"type": "image", "image": one}, {"type": "image", "image": two}]
    rendered = finished(model, processor, {"type": "image"}, {"type": "image"}, text_part(ASK))
    forms = [
        [{"role": "user", "content": [*images, text_part(ASK)]}],
        {"prompt": rendered, "multi_modal_data": {"image": [one, two]}},
        {"problem": "<image><image>" + ASK, "images": [one, two]},
        {"prompt": ASK, "image": [one, two]},
    ]
    (expected,) = build(model, processor, row(ASK, one, two))
    score = {"max_tokens": 1, "top_k": 1}
    found = fast_generate(model, processor, forms, score)
    assert [g.prompt_token_ids for g in found] == [list(expected.ids)] * 4
    np.testing.assert_allclose(
        [g.outputs[0].logprobs for g in found], [found[0].outputs[0].logprobs] * 4, atol=1e-5
    )
    swapped = {**forms[1], "multi_modal_data": {"image": [two, one]}}
    (other,) = fast_generate(model, processor, swapped, score)
    assert abs(other.outputs[0].logprobs[0] - found[0].outputs[0].logprobs[0]) > 1e-4
    single = {
        "prompt": finished(model, processor, {"type": "image"}, text_part(ASK)),
        "multi_modal_data": {"image": one},
    }
    assert prompt_ids(model, processor, single) == [
        list(prompt.ids) for prompt in build(model, processor, row(ASK, one))
    ]


def test_nothing_to_answer_is_answered_by_nothing(tiny_model):
    assert fast_generate(*tiny_model, []) == []


QWEN = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"


@pytest.mark.parametrize(
    ("prompts", "error", "message"),
    [
        ([ASK, 3], TypeError, "prompt 1 is of type int"),
        ([[1, 2]], TypeError, "prompt 0 is of type list"),
        (QWEN.format(IMAGE), ValueError, r"has 1 picture placeholder\(s\).* for 0 picture"),
        (QWEN.format("<|video_pad|>"), ValueError, "only pictures are supported"),
        (IMAGE, ValueError, "would read as part of a picture"),
        ({"prompt": QWEN, "image": picture(0, 64, 64)}, ValueError, "the chat template already"),
        ({"prompt": QWEN, "multi_modal_data": {"image": picture(0, 64, 64)}}, ValueError, "has 0 "),
        ({"prompt": QWEN, "multi_modal_data": {"video": 1}}, ValueError, r"data\['video'\]"),
        (
            {"prompt": QWEN, "multi_modal_data": {}, "mm_processor_kwargs": {}},
            ValueError,
            "0: mm_processor_kwargs is not",
        ),
        ({"prompt": [1], "multi_modal_data": {}}, ValueError, "a prompt that is no text"),
        ({"prompt_token_ids": [1]}, ValueError, "none is a filled question"),
        ([{"role": "user", "content": "<image>?"}], ValueError, "1 <image> marker"),
        ([{"role": "assistant", "content": "I"}], ValueError, "ends with an assistant message"),
    ],
)
def test_a_prompt_that_cannot_be_used_is_named(prompts, error, message):
    with pytest.raises(error, match=message):
        fast_generate(*tiny("qwen2_5_vl"), prompts, SHORT)


# -- results


def test_results_have_vllms_shape():
    model, processor = tiny("qwen2_5_vl")
    end = processor.tokenizer.eos_token_id
    found = fast_generate(model, processor, [ASK, "And?"], {"max_tokens": 5, "seed": 1}, n=3)
    assert [[output.index for output in g.outputs] for g in found] == [[0, 1, 2]] * 2
    for output in (output for g in found for output in g.outputs):
        assert output.text == processor.tokenizer.decode(output.token_ids, skip_special_tokens=True)
        assert len(output.logprobs) == len(output.token_ids) <= 5
        assert output.cumulative_logprob == pytest.approx(sum(output.logprobs)) and (
            output.cumulative_logprob < 0
        )
        assert output.finish_reason == ("stop" if output.token_ids[-1] == end else "length")


def test_a_seed_repeats_its_draw():
    model, processor = tiny("qwen2_5_vl")
    first, again, other = (
        fast_generate(model, processor, ASK, {"max_tokens": 6, "seed": seed}) for seed in (1, 1, 2)
    )
    assert first == again != other


def test_completions_without_logprobs_say_so(monkeypatch):
    model, processor = tiny("qwen2_5_vl")
    scripted = ScriptedBackend(lambda *_: ["yes"], processor.tokenizer)
    monkeypatch.setattr(generate, "backend_of", lambda *_: scripted)
    (output,) = fast_generate(model, processor, ASK)[0].outputs
    assert output.text == "yes" and output.finish_reason == "stop"
    assert output.logprobs is None and output.cumulative_logprob is None


# -- settings


VLLM_DEFAULTS = {
    **{"n": 1, "presence_penalty": 0.0, "frequency_penalty": 0.0, "repetition_penalty": 1.0},
    **{"temperature": 1.0, "top_p": 1.0, "top_k": -1, "min_p": 0.0, "seed": None, "stop": []},
    **{"stop_token_ids": [], "ignore_eos": False, "max_tokens": 16, "min_tokens": 0},
    **{"logprobs": None, "prompt_logprobs": None, "detokenize": True, "bad_words": None},
    **{"skip_special_tokens": True, "spaces_between_special_tokens": True},
    **{"include_stop_str_in_output": False, "structured_outputs": None, "logit_bias": None},
    **{"output_kind": object(), "output_text_buffer_length": 3, "_all_stop_token_ids": {1}},
}


class VllmSampling:
    """The fields of ``vllm.SamplingParams``, listed as msgspec lists them."""

    __struct_fields__ = (*VLLM_DEFAULTS,)

    def __init__(self, **given):
        vars(self).update({**VLLM_DEFAULTS, **given})


def test_settings_of_every_origin_are_the_same():
    fields = {"max_tokens": 7, "temperature": 0.5, "top_k": 3, "stop": ["a"], "seed": 3}
    ours = SamplingParams(**{**fields, "stop": ("a",)})
    assert sampling_from(ours) == (ours, None)
    assert sampling_from(fields) == (ours, None)
    assert sampling_from({**fields, "stop": "a", "n": 2, "top_p": None, "logprobs": None}) == (
        ours,
        2,
    )
    assert sampling_from(VllmSampling(**fields, n=4)) == (ours, 4)
    assert sampling_from(SimpleNamespace(**fields, logprobs=None)) == (ours, None)
    record = dataclass(type("Other", (), {"__annotations__": {"top_k": int}, "top_k": -1}))()
    assert sampling_from(record, 9) == (SamplingParams(max_tokens=9), None)
    assert sampling_from() == (SamplingParams(max_tokens=512, temperature=1.0), None)
    assert sampling_from(VllmSampling()) == (SamplingParams(max_tokens=16), 1)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"temprature": 1}, TypeError, "no field 'temprature'; did you mean 'temperature'"),
        ({"zzz": 1}, TypeError, "no field 'zzz'; known are max_tokens, .*, n"),
        ({"max_new_tokens": 9}, ValueError, "max_new_tokens=9 .* it is called max_tokens"),
        ({"logprobs": 0}, ValueError, "logprobs=0 is not supported"),
        (SimpleNamespace(top_k=1, do_sample=False), ValueError, "temperature=0 is greedy"),
        (VllmSampling(presence_penalty=0.5), ValueError, "=0.5 .* use repetition_penalty"),
        (VllmSampling(logprobs=1), ValueError, "Output.logprobs always"),
        (VllmSampling(skip_special_tokens=False), ValueError, "leave it at its default"),
        (VllmSampling(logit_bias={1: 2.0}), ValueError, r"logit_bias=\{1: 2.0\}"),
        (SimpleNamespace(top_k=1, best_of=3), ValueError, "best_of=3 .* choose among them"),
        (SimpleNamespace(width=3), TypeError, "is a SimpleNamespace; give foveal.SamplingParams"),
        (0.7, TypeError, "is a float"),
        ({"temperature": -1}, ValueError, "temperature is -1"),
    ],
)
def test_a_setting_that_cannot_be_used_is_named_with_its_remedy(settings, error, message):
    with pytest.raises(error, match=message):
        sampling_from(settings)


def test_the_number_of_completions_is_taken_from_one_place():
    model, processor = tiny("qwen2_5_vl")

    def count(*given, **options):
        return len(fast_generate(model, processor, ASK, *given, **options)[0].outputs)

    assert count(SHORT) == 1 and count(SHORT, n=2) == 2
    assert count({**SHORT, "n": 3}) == 3 and count({**SHORT, "n": 3}, n=3) == 3
    with pytest.raises(ValueError, match="n is 2, and 3 in sampling_params"):
        count({**SHORT, "n": 3}, n=2)
    with pytest.raises(ValueError, match="n is 0"):
        count(SHORT, n=0)


def test_max_seq_length_bounds_prompt_and_completion():
    model, processor = tiny("qwen2_5_vl")
    (prompt,) = build(model, processor, row(ASK))
    length = len(prompt.ids)
    state_of(model).max_seq_length = length + 3
    (found,) = fast_generate(model, processor, ASK, {"ignore_eos": True})
    assert len(found.outputs[0].token_ids) == 3, "the default gives way"
    with pytest.raises(ValueError, match=f"prompt 1 has {length} tokens.* max_tokens to 3"):
        fast_generate(model, processor, ["?", ASK], {"max_tokens": 4})
    state_of(model).max_seq_length = length
    with pytest.raises(ValueError, match=f"has {length} tokens and .* max_seq_length is {length}"):
        fast_generate(model, processor, ASK)


def test_vllms_lora_request_is_refused_because_the_adapter_is_on_the_model():
    with pytest.raises(ValueError, match=r"lora_request is not supported.*load_adapter"):
        fast_generate(*tiny("qwen2_5_vl"), ASK, lora_request=object())


# -- streaming


@dataclass
class Pieces:
    found: dict[tuple[int, int], list[str]] = field(default_factory=dict)

    def __call__(self, prompt: int, sample: int, text: str) -> None:
        assert text
        self.found.setdefault((prompt, sample), []).append(text)


@pytest.mark.parametrize("bar", [False, True])
def test_streamed_pieces_join_to_the_texts(bar, capsys):
    model, processor = tiny("qwen2_5_vl")
    settings = {"max_tokens": 30, "seed": 0, "stop": ["e", "a"]}
    pieces = Pieces()
    found = fast_generate(
        model, processor, [ASK, "And?"], settings, n=3, stream=pieces, use_tqdm=bar
    )
    texts = {(p, o.index): o.text for p, g in enumerate(found) for o in g.outputs if o.text}
    assert {key: "".join(parts) for key, parts in pieces.found.items()} == texts
    assert any(len(parts) > 1 for parts in pieces.found.values())
    assert ("tokens" in capsys.readouterr().out) == bar
    assert fast_generate(model, processor, [ASK, "And?"], settings, n=3) == found


# -- bound to models


def test_models_have_fast_generate_and_their_adapters_do_not_hide_it(tmp_path):
    folder = save_tiny(tmp_path, "qwen2_5_vl")
    model, processor = FastVisionModel.from_pretrained(folder, device="cpu")
    greedy = {"max_tokens": 6, "temperature": 0}
    stock = model.fast_generate(ASK, greedy)
    assert stock == fast_generate(model, processor, ASK, greedy)
    adapted = FastVisionModel.get_peft_model(model, r=2)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_(generator=torch.Generator().manual_seed(0))
    changed = adapted.fast_generate(ASK, greedy)
    assert changed != stock, "the adapter takes part"
    with adapted.disable_adapter():
        assert adapted.fast_generate(ASK, greedy) == stock
    adapted.save_pretrained(tmp_path / "adapter")
    loaded, _ = FastVisionModel.from_pretrained(tmp_path / "adapter", device="cpu")
    assert loaded.fast_generate(ASK, greedy) == changed


def test_a_model_of_other_origin_can_be_bound():
    model, processor = tiny("qwen2_5_vl")
    assert not hasattr(model, "fast_generate")
    bind_generation(model, processor)
    assert len(model.fast_generate([ASK, ASK], SHORT)) == 2
