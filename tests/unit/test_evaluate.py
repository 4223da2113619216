"""Evaluation: exact numbers from scripted answers, and the file and the comparison of two."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from foveal.data import load_rows, row_key
from foveal.eval_result import compare, numbered, read_result, write_result
from foveal.evaluate import evaluate
from foveal.report import versions
from foveal.report.evaluation import comparison_table, interval, result_table
from foveal.rewards.vote import answer_vote
from foveal.rollout import ScriptedBackend, TransformersBackend
from foveal.testing import tiny
from tests.samples import picture, row

ANSWERS = {
    "one?": ["1", "1", "2", "1"],  # 3 of 4 right
    "two?": ["2", "2", "3", "3"],  # a tie
    "letter?": ["<answer>(A)</answer>", "B", "C", "C"],  # the wrong one wins
    "none?": ["5", "6", "7", "8"],
}


@pytest.fixture(scope="module")
def policy():
    return tiny("qwen2_5_vl")


@pytest.fixture
def rows():
    looks = picture(0, 56, 56)
    return [
        row("one?", looks, answer="1", task="count", difficulty=1),
        row("two?", looks, answer="2", task="count", difficulty=2),
        row("letter?", looks, answer="A", task="choice"),
        row("none?", looks, answer="4", task="count", difficulty=1),
    ]


def scripted(processor, answers=ANSWERS):
    return ScriptedBackend(
        lambda prompt, n: answers[prompt.messages[0]["content"][-1]["text"]][:n],
        processor.tokenizer,
    )


def judged(policy, rows, answers=ANSWERS, rewards=("exact_answer", "number_answer"), n=4):
    done = evaluate(
        *policy,
        dataset=rows,
        reward_funcs=list(rewards),
        num_generations=n,
        temperature=1.0,
        batch_size=3,  # the last batch is a rest
        backend=scripted(policy[1], answers),
    )
    return done, done.result({"samples": n}, versions())


def test_scripted_answers_give_the_numbers_worked_out_by_hand(policy, rows):
    # "(A)" is no exact "A", so let the letters be judged as such.
    answers = {**ANSWERS, "letter?": ["<answer>A</answer>", "B", "C", "C"]}
    done, result = judged(policy, rows, answers)
    assert done.accuracy == (3 + 2 + 1 + 0) / 16
    assert done.rewards["number_answer"] == 5 / 12  # it says nothing about the letter
    values = result.metric_values()
    keys = [prompt.key for prompt in result.prompts]
    assert [values["pass@1"][key] for key in keys] == [3 / 4, 2 / 4, 1 / 4, 0]
    assert [values["pass@2"][key] for key in keys] == pytest.approx([1, 5 / 6, 1 / 2, 0])
    assert [values["pass@4"][key] for key in keys] == [1, 1, 1, 0]
    assert [values["majority"][key] for key in keys] == [1, 0.5, 0, 0]
    assert set(values["reward/number_answer"]) == {keys[0], keys[1], keys[3]}
    summary = result.summary()
    assert summary["overall"]["metrics"]["pass@2"]["mean"] == pytest.approx((1 + 5 / 6 + 0.5) / 4)
    assert summary["overall"]["metrics"]["pass@1"]["method"] == "bootstrap"
    assert summary["by_task"]["count"]["metrics"]["pass@1"]["mean"] == pytest.approx(1.25 / 3)
    assert {d: g["prompts"] for d, g in summary["by_difficulty"].items()} == {"1": 2, "2": 1}
    _, greedy = judged(policy, rows, n=1)
    assert greedy.summary()["overall"]["metrics"]["pass@1"]["method"] == "wilson"
    assert "majority" not in greedy.metric_values()


def test_a_row_that_the_first_reward_skips_is_no_wrong_answer(policy, rows):
    _, result = judged(policy, rows, rewards=("number_answer",))
    overall = result.summary()["overall"]
    assert (overall["unscored"], overall["metrics"]["pass@1"]["prompts"]) == (1, 3)
    assert "1 not scored" in str(result_table(result.summary(), "x").caption)


def test_right_from_decides_what_is_right(policy, rows):
    _, result = judged(policy, rows)
    everything = replace(result, right_from=0.0)
    assert everything.summary()["overall"]["metrics"]["pass@1"]["mean"] == 1.0
    with pytest.raises(ValueError, match="right_from"):
        compare(result, everything)


def test_a_result_comes_back_from_its_file_as_it_was(policy, rows, tmp_path):
    _, result = judged(policy, rows)
    path = tmp_path / "new" / "result.json"
    write_result(path, result)
    assert read_result(path) == result
    assert [entry.name for entry in path.parent.iterdir()] == ["result.json"]
    written = json.loads(path.read_text())
    assert written["versions"]["foveal"] and list(written)[-1] == "prompts"
    assert written["prompts"][0]["samples"][2]["text"] == "2"
    for text in ("{", "[]", '{"format": "other"}'):
        path.write_text(text)
        with pytest.raises(ValueError, match=r"result\.json .*foveal eval --out"):
            read_result(path)


def test_two_results_are_compared_prompt_by_prompt_whatever_the_order(policy, rows):
    better = {**ANSWERS, "none?": ["4", "4", "6", "7"]}
    _, first = judged(policy, rows)
    _, second = judged(policy, [rows[3], rows[0], rows[1]], better)
    found = compare(first, second)
    assert (found.common, found.only_first, found.only_second) == (3, 1, 0)
    test = found.metrics["pass@1"].test
    assert test.difference == pytest.approx(0.5 / 3) and test.prompts == 3
    assert test.p_value == 1.0  # one prompt that moved says nothing
    assert "3 common prompts (1 only in the first" in str(comparison_table(found, "a", "b").caption)
    changed = [{**rows[0], "answer": "9"}]
    _, other = judged(policy, changed)
    with pytest.raises(ValueError, match="share no prompt"):
        compare(first, other)
    with pytest.raises(ValueError, match="same --reward"):
        compare(first, judged(policy, rows, rewards=("number_answer",))[1])
    hotter = replace(second, settings={"samples": 8})
    assert compare(first, hotter).differing == {"samples": (4, 8)}


def test_rows_differ_by_text_pixels_place_of_the_picture_and_answer():
    look, other = picture(0, 56, 56), picture(1, 56, 56)
    base = row("ab", look)
    variants = [
        base,
        row("ac", look),
        row("ab", other),
        {**base, "problem": "a<image>b"},
        {**base, "answer": "4"},
        row("ab", look, look),
    ]
    keys = [row_key(normal) for normal in load_rows(variants)]
    assert len(set(keys)) == len(keys)
    assert row_key(load_rows([{**base, "id": "elsewhere"}])[0]) == keys[0]
    assert numbered(["a", "b", "a", "a"]) == ["a", "b", "a#2", "a#3"]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("<answer>12.0</answer>", "the answer is 12"),
        ("(B)", "B. a dog"),
        ("Top  Left.", "top left"),
        ("$-0$", "0"),
    ],
)
def test_equal_answers_are_one_vote(one, other):
    assert answer_vote(one) == answer_vote(other) != ""


def test_what_differs_or_is_cut_off_is_no_common_vote():
    assert len({answer_vote(text) for text in ("12%", "12", "A", "a cat", "1, 2")}) == 5
    assert answer_vote("<answer>3") == answer_vote("<think>3") == ""


def test_every_backend_gives_a_whole_result(policy, rows):
    model, processor = policy
    for backend in (None, TransformersBackend(model, processor.tokenizer)):
        done = evaluate(
            *policy,
            dataset=rows[:3],
            reward_funcs="exact_answer",
            num_generations=2,
            temperature=1.0,
            max_completion_length=3,
            backend=backend,
        )
        assert [len(prompt.samples) for prompt in done.results] == [2, 2, 2]
        assert all(1 <= s.tokens <= 3 for prompt in done.results for s in prompt.samples)
        assert {"pass@1", "pass@2", "majority"} <= set(done.result({}).metric_values())


def test_equal_questions_in_two_batches_are_drawn_anew(policy, rows):
    model, processor = policy
    for backend in (None, TransformersBackend(model, processor.tokenizer)):
        settings = {"num_generations": 2, "temperature": 1.0, "max_completion_length": 8}
        done = evaluate(
            *policy,
            dataset=[rows[0]] * 4,
            reward_funcs="exact_answer",
            batch_size=2,
            backend=backend,
            **settings,
        )
        drawn = [tuple(sample.text for sample in prompt.samples) for prompt in done.results]
        assert len(set(drawn)) == 4


def test_shares_are_shown_in_percent_and_rewards_as_they_are():
    assert interval("pass@1", 0.5, 0.25, 0.75) == "50.0%\n25-75"
    assert interval("reward/x", -0.5, -1, 0.25) == "-0.500\n-1.00 to 0.25"
    assert interval("reward/x", 0.5, 0.25, 0.75) == "0.500\n0.25-0.75"
