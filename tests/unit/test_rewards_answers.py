"""Exact answers, choices, numbers, formats, lengths; and what a lazy policy might try."""

import pickle

import pytest

from foveal.rewards import (
    boxed_format,
    chart_relaxed,
    choice_letter,
    exact_answer,
    number_answer,
    number_within,
    soft_overlong,
    think_answer_format,
)


def only(rewards):
    (reward,) = rewards
    return reward


# exact_answer


@pytest.mark.parametrize(
    "text", ["New York", "new  york.", "<answer>\nNew York </answer>", "The answer is New York."]
)
def test_case_space_and_period_do_not_matter(text):
    assert only(exact_answer([text], answer=["new york"])) == 1.0


@pytest.mark.parametrize(
    "text",
    [
        "",
        "<answer></answer>",
        "york",
        "It is New York or Paris",
        "<answer>New York or Paris</answer>",
        "<answer>New York</answer><answer>Paris</answer>",
        "answer is Paris. answer is New York",
        "<think>New York</think>",
        "new york " * 2,
    ],
)
def test_naming_the_answer_among_others_earns_nothing(text):
    assert only(exact_answer([text], answer=["New York"])) == 0.0


@pytest.mark.parametrize("reward", [exact_answer, chart_relaxed()])
def test_no_answer_does_not_equal_a_reference_of_periods(reward):
    assert reward(["", "<answer></answer>", "..."], answer=["..."] * 3) == [0.0, 0.0, 1.0]


def test_messages_are_scored_like_strings():
    message = [{"role": "assistant", "content": [{"type": "text", "text": "<answer>3</answer>"}]}]
    assert only(exact_answer([message], solution=["<answer> 3 </answer>"])) == 1.0


# choice_letter


@pytest.mark.parametrize(
    "text",
    [
        "B",
        "b",
        "(B)",
        "B.",
        "B)",
        "**B**",
        r"$\boxed{\text{(B)}}$",
        "<answer>option B</answer>",
        "B. a dog",
        "(B) 12 cm",
        "B. A dog",
        "B. Vitamin C",
        "The answer is B.",
        "Answer: (B)",
        "The answer is B because A has no tail",
        "It barks, so it must be (B).",
    ],
)
def test_the_ways_to_write_a_choice(text):
    assert only(choice_letter([text], answer=["B"])) == 1.0
    assert only(choice_letter([text], answer=["C"])) == 0.0


@pytest.mark.parametrize("reference", ["B", "(b)", "B. a dog", r"\boxed{B}", "<answer>B</answer>"])
def test_the_ways_to_write_a_reference(reference):
    assert choice_letter(["B", "A"], answer=[reference] * 2) == [1.0, 0.0]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "A, B, C, D",
        "A B C D",
        "ABCD",
        "A. B. C. D.",
        "(A) (B) (C) (D)",
        "A) a cat B) a dog",
        "<answer>A, B, C, D</answer>",
        "<answer>A|B</answer>",
        "The answer is A B C D",
        "The answer is B, C or D",
        "The answer is B or (C)",
        "The answer is A. The answer is B.",
        "(B) or (C)",
        "B. or C.",
        "It is either (A) or (B)",
        "<answer>A</answer>" + "<answer>B</answer>" + "<answer>C</answer>",
        "A dog and a ball",
    ],
)
@pytest.mark.parametrize("reference", ["A", "B"])
def test_listing_the_choices_earns_nothing(text, reference):
    assert only(choice_letter([text], answer=[reference])) == 0.0


def test_a_reference_that_is_no_choice_is_skipped():
    assert choice_letter(["B", "B"], answer=["a dog", "B"]) == [None, 1.0]


# number_answer


@pytest.mark.parametrize(
    ("text", "reference"),
    [
        ("1,234.5", "1234.5"),
        ("1{,}234", "1234"),
        ("-3", "−3"),
        (".5", "1/2"),
        (r"<answer>-\dfrac{1}{2}</answer>", "-0.5"),
        ("2e3", r"2 \times 10^{3}"),
        ("10^-3", "0.001"),
        ("12 cm^2", "12"),
        ("12 cm²", "12"),
        (r"12^\circ", "12"),
        (r"12^{\circ}", "12°"),
        ("12 m s^-1", "12"),
        ("12 m s^{-1}", "12"),
        ("CO2: 12 t", "12"),
        ("$12", r"\$12"),
        ("x = 12.", "12"),
        ("12%", "0.12"),
        ("12%", "12"),
        ("12", "12 %"),
        ("I count 3 legs. The answer is 12", "12"),
        ("3 of them, so <answer>12</answer>", "12"),
        ("There are 12; yes, 12.0", "12"),
    ],
)
def test_the_ways_to_write_a_number(text, reference):
    assert only(number_answer([text], answer=[reference])) == 1.0


@pytest.mark.parametrize(
    "text",
    [
        "",
        "many",
        "1 2 3 4 5 6 7 8 9 10 11 12",
        "11 or 12",
        "<answer>11, 12, 13</answer>",
        "<answer>11-13</answer>",
        "10 + 2 = 12",
        "The answer is 11. The answer is 12.",
        "<answer>12",
        "12^2",
        "12²",
        "12½",
        "12 ¾",
        r"12\pi",
        r"\sqrt{12}",
        "12/0",
        "12/1/2020",
        "12:12:13",
        "-12",
        "1e999",
        "nan",
        "inf",
    ],
)
def test_several_numbers_or_none_earn_nothing(text):
    assert only(number_within(rel_tol=0.05)([text], answer=["12"])) == 0.0


def test_tolerances_by_hand():
    five_percent = number_within(rel_tol=0.05)
    assert five_percent(["105", "105.1", "95"], answer=["100"] * 3) == [1.0, 0.0, 1.0]
    # A tolerance relative to the answer would accept 10.5 for 10 from 1,000,000 as well.
    assert five_percent(["1000000"], answer=["10"]) == [0.0]
    half = number_within(abs_tol=0.5)
    assert half(["0.5", "0.6", "-0.5"], answer=["0"] * 3) == [1.0, 0.0, 1.0]


def test_whole_numbers_are_not_rounded_by_default():
    assert number_answer(["2020", "2021"], answer=["2020"] * 2) == [1.0, 0.0]
    assert number_answer(["0.33333", "0.33"], answer=["1/3"] * 2) == [1.0, 0.0]


def test_percent_only_bridges_a_missing_sign():
    # Both have the sign: 1200 % is not 12 %, and 0.12 % is not 12 %.
    assert number_answer(["1200%", "0.12%", "12%"], answer=["12%"] * 3) == [0.0, 0.0, 1.0]


def test_a_reference_that_is_no_number_is_skipped():
    assert number_answer(["3", "3"], answer=["three or 4 and 5", "3"]) == [None, 1.0]


@pytest.mark.parametrize("tolerance", [{"rel_tol": -0.1}, {"abs_tol": float("nan")}])
def test_a_bad_tolerance_is_named(tolerance):
    with pytest.raises(ValueError, match=f"{next(iter(tolerance))} is .*at least 0"):
        number_within(**tolerance)


def test_factories_give_names_for_metrics_and_survive_pickling():
    assert number_answer.__name__ == "number_answer"
    assert number_within(rel_tol=0.05).__name__ == "number_within_0.05_0"
    assert number_within(abs_tol=2).__name__ != number_within(abs_tol=3).__name__
    assert soft_overlong(10, 5).__name__ == "soft_overlong"
    assert pickle.loads(pickle.dumps(soft_overlong(10, 5)))(completion_ids=[[0] * 10]) == [-1.0]


# formats

GOOD_THINK = "<think>\nIt has legs.\n</think>\n<answer>4</answer>"


def test_think_answer_format_accepts_the_form_with_white_space_around():
    assert think_answer_format([GOOD_THINK, f"\n{GOOD_THINK}\n"]) == [1.0, 1.0]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "4",
        "<answer>4</answer>",
        "<think></think><answer></answer>",
        "<think> </think><answer>4</answer>",
        "<think>\u200b</think><answer>\u2060\u3164</answer>",
        "<think>a</think><answer> </answer>",
        GOOD_THINK + " and more",
        "Sure! " + GOOD_THINK,
        GOOD_THINK * 2,
        GOOD_THINK + "<answer>5</answer>",
        "<think>" + GOOD_THINK,
        "<answer>4</answer><think>a</think>",
        "<think>a</think> so <answer>4</answer>",
        "<think>a<answer>4</answer></think>",
        GOOD_THINK.removesuffix("</answer>"),
    ],
)
def test_repeated_empty_or_misplaced_tags_earn_nothing(text):
    assert only(think_answer_format([text])) == 0.0


@pytest.mark.parametrize(
    "text",
    [
        r"so \boxed{4}",
        r"<think>a</think> $\boxed{\frac{1}{2}}$.",
        r"a</think>\boxed{4}",
        r"so <answer>\boxed{4}</answer>",
    ],
)
def test_boxed_format_accepts_one_box_after_the_thinking(text):
    assert only(boxed_format([text])) == 1.0


@pytest.mark.parametrize(
    "text",
    [
        "",
        "4",
        r"\boxed{}",
        r"\boxed{ }",
        "\\boxed{\u200b}",
        r"\boxed{4",
        r"\boxed{3} \boxed{4}",
        r"\boxed{\boxed{4}}",
        r"\boxed 4",
        r"\boxed{4}<answer>5</answer>",
        r"<think>\boxed{4}</think>",
        r"<think>\boxed{3}</think>\boxed{4}",
        r"<think>\boxed{4}",
        r"<think>a</think><think>b</think>\boxed{4}",
        r"<think><think>a</think>\boxed{4}",
        r"</think><think>\boxed{4}",
    ],
)
def test_repeated_empty_or_hidden_boxes_earn_nothing(text):
    assert only(boxed_format([text])) == 0.0


# soft_overlong


def test_soft_overlong_follows_equation_13():
    penalty = soft_overlong(max_completion_length=100, cache=20)
    rows = [[0] * length for length in (0, 80, 85, 90, 100, 101)]
    # (80 - 85) / 20 = -0.25, (80 - 90) / 20 = -0.5, (80 - 100) / 20 = -1
    assert penalty(completion_ids=rows) == [0.0, 0.0, -0.25, -0.5, -1.0, -1.0]


def test_soft_overlong_without_a_cache_is_a_step():
    rows = [[0] * length for length in (10, 11)]
    assert soft_overlong(10, 0)(completion_ids=rows) == [0.0, -1.0]


def test_soft_overlong_refuses_a_cache_beyond_the_length():
    with pytest.raises(ValueError, match="cache is 11; it must lie between 0 and"):
        soft_overlong(10, 11)
    with pytest.raises(ValueError, match="max_completion_length is 0"):
        soft_overlong(0, 0)
