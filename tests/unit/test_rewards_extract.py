"""Where the answer of a completion and the reference of a row are found."""

import pytest

from foveal.rewards import completion_text, exact_answer, extract_answer
from foveal.rewards.extract import completion_texts, last_boxed, reference_texts


def test_text_of_strings_messages_and_parts():
    assert completion_text("cat") == "cat"
    assert completion_text([{"role": "assistant", "content": "cat"}]) == "cat"
    parts = [{"type": "text", "text": "a "}, {"type": "image"}, {"type": "text", "text": "cat"}]
    assert completion_text([{"role": "assistant", "content": parts}]) == "a cat"


def test_a_tool_call_without_text_is_empty_and_the_last_assistant_message_counts():
    assert completion_text([{"role": "assistant", "content": None}]) == ""
    turns = [
        {"role": "assistant", "content": "first"},
        {"role": "tool", "content": "zoomed"},
        {"role": "assistant", "content": "second"},
    ]
    assert completion_text(turns) == "second"
    assert completion_text(turns[1:2]) == ""


def test_what_is_no_completion_is_named_with_its_row():
    with pytest.raises(TypeError, match=r"row 1: a completion is int 3; expected a string or"):
        completion_texts(["fine", 3])
    with pytest.raises(TypeError, match="the content of a message is int 7"):
        completion_text([{"role": "assistant", "content": 7}])


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("<answer>1</answer> no: <answer> 2 </answer>", "2"),
        ("<answer>1</answer><answer>2", "1"),
        (r"so \boxed{1}, or \boxed{2}", "2"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{a \} b}", r"a \} b"),
        (r"\boxed{\boxed{3}}", "3"),
        (r"<answer>\boxed{4}</answer>", "4"),
        (r"\boxed{9} <answer>5</answer>", "5"),
        ("<think><answer>1</answer></think><answer>2</answer>", "2"),
        ("thought</think> 3", "3"),
        ("It has legs. The answer is **4**", "4"),
        ("Answer:\n\n12", "12"),
        ("the answer is 12. So the final answer is: 12", "12"),
        ("  12 ", "12"),
    ],
)
def test_the_rule(text, answer):
    assert extract_answer(text).text == answer


def test_only_tags_boxes_and_statements_mark_an_answer():
    marked = ["<answer>3</answer>", r"\boxed{3}", "the answer is 3"]
    assert [extract_answer(text).marked for text in [*marked, "3"]] == [True, True, True, False]


@pytest.mark.parametrize(
    "text",
    [
        "<answer>3",  # truncated
        r"\boxed{3",
        r"<answer>\boxed{3</answer>",
        "<think>it is 3, the answer is 3",  # never stopped thinking
        "<think><answer>3</answer>",
        "</answer>3<answer>",
        "the answer is 3. The answer is 4",  # a hedge
        "the answer is 3\nthe answer is 4",
    ],
)
def test_half_an_answer_or_two_are_none(text):
    assert extract_answer(text).text == ""


def test_thousands_of_open_boxes_do_not_take_quadratic_time():
    # Scanning to the end from each box would visit 10^10 characters here.
    inside = last_boxed(r"\boxed{" * 100_000 + "3}")
    assert inside is not None
    assert len(inside) == len("3")


def test_solution_is_used_where_answer_is_missing():
    columns = {"answer": [None, " ", "c"], "solution": ["<answer> a </answer>", r"\boxed{b}", "x"]}
    assert reference_texts(columns, 3) == ["a", "b", "c"]
    assert reference_texts({"answer": [3, 2.5]}, 2) == ["3", "2.5"]


def test_a_row_without_reference_is_named_with_the_columns():
    with pytest.raises(ValueError, match=r"row 1 has neither.*columns present: \['answer', 'hint'"):
        exact_answer(["a", "b"], answer=["a", ""], hint=["h", "h"], prompts=["p", "p"])


def test_a_reference_that_holds_no_answer_is_named():
    with pytest.raises(ValueError, match="row 0: the reference '<answer>3' holds no answer"):
        exact_answer(["3"], answer=["<answer>3"])
    with pytest.raises(TypeError, match=r"row 1: the reference is list \['a'\]; expected a string"):
        exact_answer(["a", "a"], answer=["a", ["a"]])
