"""Calling the reward functions: arguments, async, names, and every error message."""

import asyncio
import functools
import math
import threading

import numpy as np
import pytest

from foveal.rewards import RewardCaller, RewardError, weighted_sum


def score(functions, completions=("a", "bb", "ccc"), weights=None, state=None, **columns):
    caller = RewardCaller(functions, weights)
    ids = [[0] * len(completion) for completion in completions]
    return caller.score(["p"] * len(ids), list(completions), ids, columns, trainer_state=state)


def length(completions, **columns):
    return [float(len(c)) for c in completions]


def test_rewards_are_rows_by_functions_and_none_is_nan():
    def skip_second(completions, **columns):
        return [1, None, np.float32(0.5)]

    table = score([length, skip_second])
    assert [row[0] for row in table.rewards_BF] == [1.0, 2.0, 3.0]
    assert table.rewards_BF[0][1] == 1.0
    assert math.isnan(table.rewards_BF[1][1])
    assert table.rewards_BF[2][1] == 0.5
    assert all(type(value) is float for row in table.rewards_BF for value in row)
    assert set(table.seconds) == {"length", "skip_second"}


def test_a_row_that_every_function_skips_is_allowed():
    table = score(lambda completions: [None] * 3)
    assert all(math.isnan(row[0]) for row in table.rewards_BF)


def test_numpy_results_and_booleans_are_numbers():
    assert score(lambda completions: np.array([1.0, 2.0, 3.0])).rewards_BF == [[1.0], [2.0], [3.0]]
    assert score(lambda completions: [True, False, np.bool_(True)]).rewards_BF == [[1], [0], [1]]


def test_only_the_arguments_in_the_signature_are_given():
    seen = {}

    def narrow(completion_ids, colour):
        seen["narrow"] = colour
        return [0] * 3

    def wide(prompts, completions, completion_ids, trainer_state, log_extra, log_metric, **columns):
        seen["wide"] = (trainer_state, sorted(columns))
        return [0] * 3

    def optional(completions, shape="none"):
        seen["optional"] = shape
        return [0] * 3

    score([narrow, wide, optional], state="state", colour=["r", "g", "b"], size=[1, 2, 3])
    assert seen == {
        "narrow": ["r", "g", "b"],
        "wide": ("state", ["colour", "size"]),
        "optional": "none",
    }


def test_a_value_bound_by_partial_is_not_overwritten_by_a_column():
    def compare(completions, level, **columns):
        return [float(level)] * 3

    assert score(functools.partial(compare, level=7), level=[1, 2, 3]).rewards_BF == [[7.0]] * 3


def test_names_of_partials_objects_and_duplicates():
    class Judge:
        def __call__(self, completions):
            return [0] * 3

    def length_2(completions):
        return [0] * 3

    functions = [length, length, functools.partial(length), Judge(), length_2, "exact_answer"]
    caller = RewardCaller(functions)
    assert caller.names == [
        "length",
        "length_2",
        "length_3",
        "Judge",
        "length_2_2",
        "exact_answer",
    ]


def test_async_functions_run_at_the_same_time_as_each_other_and_as_sync_ones():
    # Each of the three can only end once the others have begun.
    together = threading.Barrier(2)
    first_began, second_began = asyncio.Event(), asyncio.Event()

    async def first(completions):
        first_began.set()
        await asyncio.wait_for(second_began.wait(), 20)
        return [1] * 3

    async def second(completions):
        second_began.set()
        await asyncio.wait_for(first_began.wait(), 20)
        await asyncio.to_thread(together.wait, 20)
        return [2] * 3

    def sync(completions):
        together.wait(20)
        return [3] * 3

    assert score([first, sync, second]).rewards_BF == [[1.0, 3.0, 2.0]] * 3


def test_async_functions_work_inside_a_running_loop():
    async def judge(completions):
        await asyncio.sleep(0)
        return [1] * 3

    async def notebook():
        return score(judge)

    assert asyncio.run(notebook()).rewards_BF == [[1.0]] * 3


def test_one_loop_serves_all_calls_so_that_clients_can_be_kept():
    loops = set()

    async def judge(completions):
        loops.add(asyncio.get_running_loop())
        return [1] * len(completions)

    caller = RewardCaller(judge)
    for _ in range(2):
        caller.score(["p"], ["a"], [[0]], {})
    assert len(loops) == 1


def test_async_hidden_in_partials_objects_and_lambdas():
    async def judge(completions, level=1):
        return [level] * 3

    class Judge:
        async def __call__(self, completions):
            return [3] * 3

    hidden = [functools.partial(judge, level=2), Judge(), lambda completions: judge(completions, 4)]
    assert score(hidden).rewards_BF == [[2.0, 3.0, 4.0]] * 3


def test_logged_columns_and_metrics_are_kept():
    def logs(completions, log_extra, log_metric):
        log_extra("seen", completions)
        log_metric("level", 1)
        log_metric("level", 2)
        return [0] * 3

    async def logs_too(completions, log_extra, log_metric):
        for completion in completions:
            log_extra("seen", [completion.upper()])
        log_metric("level", 6)
        return [0] * 3

    table = score([logs, logs_too])
    assert table.extra == {"seen": ["a", "bb", "ccc"], "logs_too/seen": ["A", "BB", "CCC"]}
    assert table.metrics == {"level": 3.0}


def test_a_raising_function_is_named_with_the_first_row_that_fails():
    def picky(completions, **columns):
        return [1 / (len(c) - 2) for c in completions]

    with pytest.raises(RewardError) as caught:
        score([length, picky])
    assert "'picky' raised ZeroDivisionError: " in str(caught.value)
    assert "(first failing row 1 of 3, completion 'bb')" in str(caught.value)
    assert (caught.value.function, caught.value.row) == ("picky", 1)
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


def test_a_raising_async_function_is_named_with_the_row():
    async def picky(completions, colour):
        await asyncio.sleep(0)
        if "g" in colour:
            raise KeyError("g")
        return [0] * len(completions)

    with pytest.raises(RewardError, match=r"'picky' raised KeyError: 'g' \(first failing row 1 of"):
        score([picky], colour=["r", "g", "g"])


def test_no_row_is_blamed_for_a_failure_of_the_whole_batch():
    def spread(completions):
        if len(completions) == 1:
            raise TypeError("needs two rows")
        raise ValueError("no spread")

    with pytest.raises(RewardError, match=r"no spread \(on all 3 rows; no single row fails\)"):
        score(spread)


def test_a_failing_sync_function_does_not_wait_for_a_slow_judge():
    cancelled = threading.Event()
    began = threading.Event()

    async def slow(completions):
        began.set()
        try:
            await asyncio.sleep(60)
        finally:
            cancelled.set()

    def broken(completions):
        began.wait(20)
        raise ValueError("broken")

    with pytest.raises(RewardError, match="'broken' raised ValueError"):
        score([slow, broken])
    assert cancelled.wait(20)


def test_wrong_length_is_named_with_the_function():
    def short(completions):
        return [1.0]

    with pytest.raises(RewardError, match="'short' returned 1 rewards for 3 completions"):
        score([length, short])


@pytest.mark.parametrize("result", [None, 1.0])
def test_a_result_that_is_no_list_is_named(result):
    def scalar(completions):
        return result

    with pytest.raises(
        RewardError, match=f"'scalar' returned {result}; it must return a list of 3"
    ):
        score(scalar)


@pytest.mark.parametrize(
    "value", [float("nan"), float("inf"), "1.0", [1.0], {"score": 1}, 1j, np.zeros(2)]
)
def test_a_value_that_is_no_finite_number_is_named_with_its_row(value):
    def odd(completions):
        return [1.0, 0.0, value]

    with pytest.raises(
        RewardError, match=r"'odd' returned .* for row 2 of 3; a reward is a finite"
    ):
        score(odd)


def test_a_missing_column_is_named_before_anything_runs():
    def needs(completions, label):
        return [0] * 3

    def never(completions):
        raise AssertionError("must not run")

    with pytest.raises(ValueError, match=r"'needs' needs \['label'\], .*'colour'.*rename the col"):
        score([never, needs], colour=["r", "g", "b"])


def test_a_column_of_another_length_is_named():
    with pytest.raises(ValueError, match="'colour' has 2 values for 3 completions"):
        score(length, colour=["r", "g"])


def test_a_column_that_would_hide_an_argument_is_named():
    with pytest.raises(ValueError, match=r"columns \['log_extra'\] have names"):
        score(length, log_extra=[1, 2, 3])


def test_an_extra_column_of_another_length_is_named():
    def logs(completions, log_extra):
        log_extra("seen", ["one"])
        return [0] * 3

    with pytest.raises(
        RewardError, match="'logs' logged 1 values for the extra column 'seen' of 3"
    ):
        score(logs)


def test_arguments_by_position_only_are_refused():
    def positional(completions, /):
        return [0] * 3

    with pytest.raises(TypeError, match=r"'positional' takes \['completions'\] by position only"):
        RewardCaller(positional)


def test_weights_must_match_the_functions():
    with pytest.raises(ValueError, match=r"1 reward weights \[0.5\] for 2 reward functions"):
        RewardCaller([length, length], weights=[0.5])
    with pytest.raises(ValueError, match=r"weights \[nan\] must be finite"):
        RewardCaller(length, weights=[math.nan])
    with pytest.raises(ValueError, match="reward_funcs is empty"):
        RewardCaller([])


def test_weights_default_to_one_each():
    assert RewardCaller([length, length]).weights == [1.0, 1.0]


def test_weighted_sum_leaves_out_skipped_functions_only():
    nan = math.nan
    sums = weighted_sum([[1.0, 2.0], [nan, 2.0], [nan, nan]], [0.5, 10.0])
    assert sums[:2] == [20.5, 20.0]
    assert math.isnan(sums[2])


def test_no_rows_give_an_empty_table():
    assert score(lambda completions: [], completions=()).rewards_BF == []
