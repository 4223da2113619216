"""Completions written down beforehand come out as they were written."""

from __future__ import annotations

import pytest

from foveal.rollout import ScriptedBackend
from foveal.testing.tokenizer import qwen_tokenizer
from foveal.types import Prompt, SamplingParams

TOKENIZER = qwen_tokenizer()
END = TOKENIZER.eos_token_id
PROMPTS = [Prompt(index=i, ids=(1, 2), images=(), messages=[]) for i in (7, 9)]


def answers(script, n=2, max_tokens=8, **options):
    backend = ScriptedBackend(script, TOKENIZER, **options)
    return backend.generate(PROMPTS, n, SamplingParams(max_tokens=max_tokens))


def test_each_prompt_gets_what_the_script_says_for_it():
    groups = answers(lambda prompt, n: [f"{prompt.index}.{i}" for i in range(n)])
    assert [group.prompt.index for group in groups] == [7, 9]
    assert [[c.text for c in group.completions] for group in groups] == [
        ["7.0", "7.1"],
        ["9.0", "9.1"],
    ]


def test_a_text_ends_with_the_stop_token_unless_the_budget_cuts_it():
    short, long = answers(lambda *_: ["ab", "abcdefgh"])[0].completions
    assert short.ids == (*TOKENIZER.encode("ab"), END) and short.stop_reason == "stop"
    assert long.ids == tuple(TOKENIZER.encode("abcdefgh")) and long.stop_reason == "length"


def test_a_text_of_exactly_the_budget_with_its_stop_token_is_whole():
    exact, _ = answers(lambda *_: ["abcdefg", "a"])[0].completions
    assert len(exact.ids) == 8 and exact.stop_reason == "stop"


def test_ids_are_taken_as_they_stand():
    open_end, ended = answers(lambda *_: [[65, 66], [65, END]])[0].completions
    assert open_end.ids == (65, 66) and open_end.truncated
    assert ended.ids == (65, END) and not ended.truncated
    assert open_end.rollout_logprob is None, "nothing was sampled"


def test_another_stop_token_may_be_named():
    first, second = answers(lambda *_: ["a", [END]], eos_token_id=0)[0].completions
    assert first.ids[-1] == 0 and first.stop_reason == "stop"
    assert second.stop_reason == "length"


def test_special_tokens_are_left_out_of_the_text():
    first, _ = answers(lambda *_: [[65, END], "b"])[0].completions
    assert first.text == TOKENIZER.decode([65]) and first.ids == (65, END)


def test_a_script_of_the_wrong_length_is_named_with_its_prompt():
    with pytest.raises(ValueError, match="gave 1 completions for prompt 7, but 2 were asked for"):
        answers(lambda *_: ["only one"])


def test_a_completion_without_tokens_is_refused():
    with pytest.raises(ValueError, match="a completion without tokens"):
        answers(lambda *_: ["a", []])


def test_tokens_are_shown_with_the_place_of_their_prompt_not_its_row_number():
    seen = []
    backend = ScriptedBackend(lambda prompt, n: [f"{prompt.index}", "b"], TOKENIZER)
    show = lambda *event: seen.append(event)  # noqa: E731
    groups = backend.generate(PROMPTS, 2, SamplingParams(max_tokens=8), on_tokens=show)
    assert seen == [
        (place, sample, list(groups[place].completions[sample].ids))
        for place in (0, 1)
        for sample in (0, 1)
    ]
