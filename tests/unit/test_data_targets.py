"""What a row wants written, and what is said where it does not say so."""

from __future__ import annotations

import json

import pytest

from foveal.data import check_template, join_rows, load_rows, target_text, turn_end
from foveal.testing import tiny
from tests.samples import picture, row

ASSISTANT = {"role": "assistant", "content": "<think>two reds</think><answer>2</answer>"}
QUESTION = {"role": "user", "content": "How many?"}
TEMPLATE = "<answer>{answer}</answer>"


@pytest.mark.parametrize(
    ("given", "template", "text"),
    [
        ({"messages": [QUESTION, ASSISTANT]}, None, ASSISTANT["content"]),
        (
            {"conversations": [{"from": "human", "value": "?"}, {"from": "gpt", "value": "A cat"}]},
            TEMPLATE,
            "A cat",
        ),
        ({"prompt": "?", "completion": " keeps its space"}, TEMPLATE, " keeps its space"),
        ({"prompt": [QUESTION], "completion": [ASSISTANT]}, None, ASSISTANT["content"]),
        ({"problem": "?", "solution": "<answer>2</answer>"}, None, "<answer>2</answer>"),
        ({"problem": "?", "answer": 2}, TEMPLATE, "<answer>2</answer>"),
        ({"problem": "?", "solution": "so <answer>2</answer>"}, "It is {answer}.", "It is 2."),
        ({"prompt": "?", "reward_model": {"ground_truth": "7"}}, TEMPLATE, "<answer>7</answer>"),
        ({"messages": [QUESTION], "answer": "3"}, TEMPLATE, "<answer>3</answer>"),
        (
            {"problem": "?", "answer": "3", "why": "{as} is"},
            "{why}: {answer}",
            "{as} is: 3",
        ),
    ],
)
def test_the_completion_of_every_format_is_the_text_as_it_was_written(given, template, text):
    # The tags and the reasoning that an answer is freed of for rewards are what is to be learnt.
    assert target_text(given, 0, template) == text


@pytest.mark.parametrize(
    ("given", "template", "message"),
    [
        ({"problem": "?", "answer": "2"}, None, "row 4: it has no completion.*completion_template"),
        ({"messages": [QUESTION]}, None, "row 4: it has no completion"),
        ({"prompt": "?", "completion": "  "}, None, "row 4: its completion is empty"),
        (
            {"prompt": "?", "completion": [QUESTION]},
            None,
            "row 4: column 'completion'.*one message",
        ),
        ({"prompt": "?", "completion": [ASSISTANT] * 2}, None, "row 4: column 'completion'"),
        ({"problem": "?", "answer": "2"}, "{reason} {answer}", "row 4: .*column 'reason'"),
        (
            {"messages": [QUESTION, {**ASSISTANT, "content": [{"type": "image"}]}]},
            None,
            "row 4: .* holds a picture",
        ),
    ],
)
def test_a_row_without_a_completion_is_named_with_the_remedy(given, template, message):
    with pytest.raises(ValueError, match=message):
        target_text(given, 4, template)


@pytest.mark.parametrize("template", ["no column", "{answer", "{0}", "{answer.real}"])
def test_a_template_without_a_column_is_refused(template):
    with pytest.raises(ValueError, match="completion_template"):
        check_template(template)
    check_template(None), check_template("{{{answer}}}")


def test_the_end_of_a_turn_is_where_rollouts_stop(family):
    model, processor = tiny(family)
    end = turn_end(processor)
    token = processor.tokenizer.convert_ids_to_tokens(end)
    assert token == ("<end_of_turn>" if family == "gemma3" else "<|im_end|>")
    assert end in model.generation_config.eos_token_id


def test_a_template_that_ends_no_turn_is_refused():
    _, processor = tiny("qwen2_5_vl")
    processor.chat_template = "{% for m in messages %}{{ m.content[0].text }}{% endfor %}"
    with pytest.raises(ValueError, match="no token behind"):
        turn_end(processor)


def test_joined_sources_keep_their_rows_their_folders_and_their_names(tmp_path):
    for name in ("red", "blue"):
        (tmp_path / name).mkdir()
        picture(0, 56, 56 if name == "red" else 84).save(tmp_path / name / "it.png")
        line = {"problem": f"<image>{name}?", "answer": "1", "image": "it.png"}
        (tmp_path / name / "rows.jsonl").write_text(json.dumps(line))
    parts = [load_rows(tmp_path / name / "rows.jsonl") for name in ("red", "blue")]
    broken = load_rows([row("fine?"), {"problem": "", "answer": "2"}])
    joined = join_rows([*parts, broken])
    assert len(joined) == 4
    assert [joined[i].images[0].height for i in (0, 1)] == [56, 84]
    assert joined.rows[1]["problem"] == "<image>blue?"
    with pytest.raises(ValueError, match="the data set: row 1: "):
        joined[3]
    with pytest.raises(IndexError):
        joined[4]
