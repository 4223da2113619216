"""Reward functions of other trainers, as their users write them, run unchanged."""

import asyncio
import pickle
import re

import pytest

from foveal.rewards import (
    RewardCaller,
    RewardError,
    from_easyr1,
    from_ms_swift,
    from_verl,
    from_vlm_r1,
)

RIGHT, WRONG = "<think>2 + 1</think><answer>3</answer>", "<think>?</think><answer>4</answer>"


def run(function, completions=(RIGHT, WRONG), **columns):
    """Rewards by the caller, as in a run, and the metrics."""
    ids = [[0] * len(text) for text in completions]
    table = RewardCaller([function]).score([""] * len(ids), list(completions), ids, columns)
    return [reward for (reward,) in table.rewards_BF], table.metrics


def last_answer(text):
    found = re.findall(r"<answer>(.*?)</answer>", text, re.DOTALL)
    return found[-1].strip() if found else None


# verl: one row at a call


def compute_score(data_source, solution_str, ground_truth, extra_info=None, bonus=0.0):
    if data_source != "clevr":
        raise NotImplementedError(data_source)
    right = last_answer(solution_str) == ground_truth
    return {"score": right + bonus * extra_info["level"], "acc": right, "pred": "text"}


async def slow_score(data_source, solution_str, ground_truth, extra_info=None):
    await asyncio.sleep(0.01)
    return float(last_answer(solution_str) == ground_truth)


def test_verl_gets_source_reference_extra_info_and_settings():
    columns = {"data_source": ["clevr"] * 2, "extra_info": [{"level": 1}, {"level": 2}]}
    rewards, metrics = run(from_verl(compute_score, bonus=0.25), answer=["3", "3"], **columns)
    assert rewards == [1.25, 0.5]
    assert metrics == {"compute_score/acc": 0.5}


def test_verl_plain_numbers_async_and_without_optional_columns():
    assert run(from_verl(slow_score), answer=["3", "3"]) == ([1.0, 0.0], {})
    with pytest.raises(RewardError, match="'compute_score' raised NotImplementedError"):
        run(from_verl(compute_score), answer=["3", "3"])


def test_verl_a_dict_without_score_is_an_error_and_not_zero():
    def overall(solution_str, **_):
        return {"overall": 1.0}

    with pytest.raises(RewardError, match=r"row 0: 'overall' returned a dict without 'score'"):
        run(from_verl(overall), answer=["3", "3"])


# EasyR1: all rows at once


def batch_score(reward_inputs, format_weight=0.1):
    scores = []
    for one in reward_inputs:
        form = float(re.fullmatch(r"<think>.*</think><answer>.*", one["response"]) is not None)
        right = float(last_answer(one["response"]) == one["ground_truth"])
        overall = (1 - format_weight) * right + format_weight * form
        scores.append({"overall": overall, "format": form, "accuracy": right})
    return scores


def single_score(reward_input):
    assert set(reward_input) == {"response", "response_length", "ground_truth", "answer", "level"}
    return {"overall": reward_input["response_length"] + reward_input["level"]}


def test_easyr1_batch_takes_all_rows_and_logs_its_parts():
    rewards, metrics = run(from_easyr1(batch_score, format_weight=0.5), answer=["3", "3"])
    assert rewards == [1.0, 0.5]
    assert metrics == {"batch_score/format": 1.0, "batch_score/accuracy": 0.5}


def test_easyr1_sequential_takes_one_row_with_its_columns():
    reward = from_easyr1(single_score, kind="sequential")
    assert run(reward, answer=["3", "3"], level=[1, 2])[0] == [len(RIGHT) + 1, len(WRONG) + 2]
    with pytest.raises(ValueError, match="kind is 'rows'; EasyR1's REWARD_TYPE is"):
        from_easyr1(single_score, kind="rows")
    with pytest.raises(RewardError, match="returned 1 rewards for 2 completions"):
        run(from_easyr1(lambda inputs: batch_score(inputs[:1])), answer=["3", "3"])


# VLM-R1: messages, and a solution with tags of its own


def accuracy_reward(completions, solution, **kwargs):
    contents = [completion[0]["content"] for completion in completions]
    assert not {"log_metric", "log_extra"} & set(kwargs)
    return [
        float(last_answer(content) == last_answer(sol)) * weight
        for content, sol, weight in zip(contents, solution, kwargs["weight"], strict=True)
    ]


def format_reward(completions):
    return [float(completion[0]["content"].startswith("<think>")) for completion in completions]


def test_vlm_r1_gets_messages_the_raw_solution_and_its_columns():
    columns = {"answer": ["3", "3"], "solution": ["<answer> 3 </answer>"] * 2, "weight": [2, 2]}
    assert run(from_vlm_r1(accuracy_reward), **columns)[0] == [2.0, 0.0]
    assert run(from_vlm_r1(format_reward), **columns)[0] == [1.0, 1.0]


def test_vlm_r1_takes_the_answer_where_there_is_no_solution():
    columns = {"answer": ["<answer>3</answer>"] * 2, "weight": [1, 1]}
    assert run(from_vlm_r1(accuracy_reward), **columns)[0] == [1.0, 0.0]


# ms-swift: an object, and texts


class CountORM:
    def __init__(self, most=1.0):
        self.most = most

    def __call__(self, completions, solution, **kwargs):
        return [
            self.most * (last_answer(text) == last_answer(sol))
            for text, sol in zip(completions, solution, strict=True)
        ]


class AsyncORM:
    async def __call__(self, completions, solution):
        await asyncio.sleep(0.01)
        return CountORM()(completions, solution)


@pytest.mark.parametrize("orm", [CountORM, CountORM(1.0), AsyncORM()])
def test_ms_swift_gets_texts_and_the_raw_solution(orm):
    reward = from_ms_swift(orm)
    assert run(reward, solution=["<answer>3</answer>"] * 2)[0] == [1.0, 0.0]
    assert reward.__name__ in ("CountORM", "AsyncORM")


def test_adapted_functions_can_be_pickled():
    for reward in (from_verl(compute_score, bonus=1.0), from_easyr1(batch_score)):
        assert pickle.loads(pickle.dumps(reward)) == reward


@pytest.mark.parametrize(
    "reward",
    [from_verl(slow_score), from_easyr1(batch_score), from_vlm_r1(accuracy_reward)],
)
def test_a_row_without_a_reference_is_named(reward):
    with pytest.raises(RewardError, match="row 1 has neither 'answer' nor 'solution'"):
        run(reward, answer=["3", None], weight=[1, 1])


def test_a_recipe_names_the_file_and_function_of_another_trainer(tmp_path):
    path = tmp_path / "theirs.py"
    path.write_text("class Length:\n def __call__(self, completions):\n  return [1.0, 2.0]\n")
    assert run(f"from_ms_swift({str(path) + ':Length'!r})", answer=["3", "3"])[0] == [1.0, 2.0]
    with pytest.raises(ValueError, match=r"could not be made: .*has no 'Lenght'; did you mean"):
        run(f"from_ms_swift({str(path) + ':Lenght'!r})", answer=["3", "3"])
