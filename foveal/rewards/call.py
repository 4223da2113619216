"""Calls the reward functions on a batch of rows and checks what they return.

    caller = RewardCaller([exact_answer, my_async_judge], weights=[0.9, 0.1])
    table = caller.score(prompts, completions, completion_ids, {"answer": ["3", "7"]})
    weighted_sum(table.rewards_BF, caller.weights)

A function that raises, or returns something else than one finite number or None a row, stops the
run with a ``RewardError`` that names it and the row: training on rewards that are not what the
user meant wastes more than it saves.
"""

from __future__ import annotations

import asyncio
import inspect
import math
import time
from collections.abc import Awaitable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from foveal.rewards.extract import NOT_COLUMNS
from foveal.rewards.loop_thread import LoopThread
from foveal.rewards.registry import RewardFunction, resolve
from foveal.rewards.signature import RewardSpec, describe


class RewardError(RuntimeError):
    """A reward function failed; ``function`` is its name, ``row`` the first bad row if known."""

    def __init__(self, message: str, function: str, row: int | None = None) -> None:
        super().__init__(message)
        self.function = function
        self.row = row


@dataclass(frozen=True, slots=True)
class RewardTable:
    """What the reward functions said about B rows."""

    rewards_BF: list[list[float]]
    """NaN where a function returned None: it has nothing to say about that row."""
    extra: dict[str, list[Any]]
    """Columns of B values, logged by the functions with ``log_extra(column, values)``."""
    metrics: dict[str, float]
    """Logged by the functions with ``log_metric(name, value)``; several values are averaged."""
    seconds: dict[str, float]
    """Wall-clock seconds by function; async ones overlap, so the sum may exceed the time."""


@dataclass(slots=True)
class _Batch:
    arguments: dict[str, Any]
    """prompts, completions, completion_ids and the columns: B values each."""
    trainer_state: Any
    count: int

    def row(self, row: int) -> _Batch:
        one = {name: values[row : row + 1] for name, values in self.arguments.items()}
        return _Batch(one, self.trainer_state, 1)


@dataclass(slots=True)
class _Call:
    """One call of one function: its arguments, and afterwards what came of it."""

    spec: RewardSpec
    batch: _Batch
    result: Any = None
    error: Exception | None = None
    seconds: float = 0.0
    extra: dict[str, list[Any]] = field(default_factory=dict)
    metrics: dict[str, list[float]] = field(default_factory=dict)

    def begin(self) -> Any:
        """Call the function: its result, or the awaitable of it."""
        offered = {
            **self.batch.arguments,
            "trainer_state": self.batch.trainer_state,
            "log_extra": lambda column, values: self.extra.setdefault(column, []).extend(values),
            "log_metric": lambda name, value: self.metrics.setdefault(name, []).append(
                float(value)
            ),
        }
        return self.spec.function(**self.spec.choose(offered))

    def finish(self, began: float, result: Any = None, error: Exception | None = None) -> None:
        self.result, self.error, self.seconds = result, error, time.perf_counter() - began


class RewardCaller:
    """The reward functions of a run, called by name with the arguments that each accepts.

    ``reward_funcs`` is one function or several, each a callable or a name for ``resolve``.
    ``weights`` is one finite number a function, 1.0 each if None. Raises ValueError if there is
    no function or the number of weights differs.
    """

    def __init__(
        self,
        reward_funcs: str | RewardFunction | list[Any] | tuple[Any, ...],
        weights: Sequence[float] | None = None,
    ) -> None:
        several = reward_funcs if isinstance(reward_funcs, list | tuple) else [reward_funcs]
        functions = [resolve(reward) for reward in several]
        if not functions:
            raise ValueError("reward_funcs is empty; give at least one reward function")
        self._specs = describe(functions)
        self.names = [spec.name for spec in self._specs]
        self.weights = [1.0] * len(functions) if weights is None else [float(w) for w in weights]
        if len(self.weights) != len(functions):
            raise ValueError(
                f"{len(self.weights)} reward weights {self.weights} for {len(functions)} reward "
                f"functions {self.names}; give one weight each"
            )
        if not all(math.isfinite(weight) for weight in self.weights):
            raise ValueError(f"the reward weights {self.weights} must be finite")
        self._loop = LoopThread()

    def check_columns(self, columns: Iterable[str]) -> None:
        """Raise ValueError if a function needs an argument that data with ``columns`` lacks."""
        always = ("prompts", "completions", "completion_ids")
        for spec in self._specs:
            spec.choose(dict.fromkeys([*always, *columns, *NOT_COLUMNS]))

    def score(
        self,
        prompts: Sequence[Any],
        completions: Sequence[Any],
        completion_ids: Sequence[Sequence[int]],
        columns: Mapping[str, Sequence[Any]],
        trainer_state: Any = None,
    ) -> RewardTable:
        """Rewards of B rows by each function; ``columns`` holds B values a name.

        Async functions run concurrently with each other and with the sync ones. Raises
        ``RewardError`` naming the function and the row, and ValueError for columns that do not
        fit.
        """
        batch = _batch(prompts, completions, completion_ids, columns, trainer_state)
        calls = [_Call(spec, batch) for spec in self._specs]
        for spec in self._specs:
            spec.choose({**batch.arguments, **dict.fromkeys(NOT_COLUMNS)})
        self._run(calls)
        for call in calls:
            if call.error is not None:
                raise self._failure(call) from call.error
        rewards_FB = [self._checked(call) for call in calls]
        return RewardTable(
            rewards_BF=[list(row) for row in zip(*rewards_FB, strict=True)],
            extra=_merged_extra(calls),
            metrics=_merged_metrics(calls),
            seconds={call.spec.name: call.seconds for call in calls},
        )

    def _run(self, calls: Sequence[_Call]) -> None:
        """Run the calls; an exception of a function ends up in its call."""
        waiting = [call for call in calls if call.spec.is_async]
        future = self._loop.start(_gather(waiting)) if waiting else None
        try:
            succeeded = all(self._run_sync(call) for call in calls if not call.spec.is_async)
            if future is not None and succeeded:
                future.result()
        finally:
            if future is not None:
                future.cancel()  # no effect once it is done

    def _run_sync(self, call: _Call) -> bool:
        """Run one call; whether it did not raise."""
        began = time.perf_counter()
        try:
            result = call.begin()
            # A lambda around an async function does not look like one.
            if inspect.isawaitable(result):
                result = self._loop.run(_awaited(result))
            call.finish(began, result)
        except Exception as error:
            call.finish(began, error=error)
        return call.error is None

    @staticmethod
    def _checked(call: _Call) -> list[float]:
        """One float a row; raises ``RewardError`` for anything else."""
        name, count = call.spec.name, call.batch.count
        values = _listed(call.result, name, count)
        for column, logged in call.extra.items():
            if len(logged) != count:
                raise RewardError(
                    f"the reward function '{name}' logged {len(logged)} values for the extra "
                    f"column '{column}' of {count} rows; log one value a row",
                    name,
                )
        return [_number(value, name, row, count) for row, value in enumerate(values)]

    def _failure(self, call: _Call) -> RewardError:
        """The error to raise for a call that raised: it looks for the row by single rows."""
        name, batch = call.spec.name, call.batch
        what = f"the reward function '{name}' raised {type(call.error).__name__}: {call.error}"
        row = next((row for row in range(batch.count) if self._fails_alone(call, row)), None)
        if row is None:
            return RewardError(f"{what} (on all {batch.count} rows; no single row fails)", name)
        completion = batch.arguments["completions"][row]
        return RewardError(
            f"{what} (first failing row {row} of {batch.count}, completion {completion!r:.200})",
            name,
            row,
        )

    def _fails_alone(self, call: _Call, row: int) -> bool:
        # Another exception on a single row is about the batch size, not about the row.
        alone = _Call(call.spec, call.batch.row(row))
        self._run([alone])
        return type(alone.error) is type(call.error)


async def _gather(calls: Sequence[_Call]) -> None:
    await asyncio.gather(*(_run_async(call) for call in calls))


async def _run_async(call: _Call) -> None:
    began = time.perf_counter()
    try:
        call.finish(began, await call.begin())
    except Exception as error:
        call.finish(began, error=error)


async def _awaited(awaitable: Awaitable[Any]) -> Any:
    return await awaitable


def _batch(
    prompts: Sequence[Any],
    completions: Sequence[Any],
    completion_ids: Sequence[Sequence[int]],
    columns: Mapping[str, Sequence[Any]],
    trainer_state: Any,
) -> _Batch:
    if clash := sorted(NOT_COLUMNS & set(columns)):
        raise ValueError(
            f"the data set's columns {clash} have names that reward functions are given for "
            "other things; rename them"
        )
    arguments = {
        "prompts": prompts,
        "completions": completions,
        "completion_ids": completion_ids,
        **columns,
    }
    for name, values in arguments.items():
        if len(values) != len(completions):
            raise ValueError(
                f"'{name}' has {len(values)} values for {len(completions)} completions; reward "
                "functions need one value a completion"
            )
    return _Batch(arguments, trainer_state, len(completions))


def _listed(result: Any, name: str, count: int) -> list[Any]:
    try:
        values = list(result)
    except TypeError as error:
        raise RewardError(
            f"the reward function '{name}' returned {result!r:.80}; it must return a list of "
            f"{count} numbers, one a completion",
            name,
        ) from error
    if len(values) != count:
        raise RewardError(
            f"the reward function '{name}' returned {len(values)} rewards for {count} "
            "completions; it must return one a completion, None to skip one",
            name,
        )
    return values


def _number(value: Any, name: str, row: int, count: int) -> float:
    """``value`` as a float, None as NaN."""
    if value is None:
        return math.nan
    try:
        # float() would also read the text "3".
        number = float(value) if hasattr(value, "__float__") else math.nan
    except (TypeError, ValueError, OverflowError, RuntimeError):
        number = math.nan
    if math.isfinite(number):
        return number
    raise RewardError(
        f"the reward function '{name}' returned {value!r:.80} for row {row} of {count}; a reward "
        "is a finite number, or None to skip the row",
        name,
        row,
    )


def _merged_extra(calls: Sequence[_Call]) -> dict[str, list[Any]]:
    """Columns by name; the second function to log a name has its own put before it."""
    merged: dict[str, list[Any]] = {}
    for call in calls:
        for column, values in call.extra.items():
            merged[f"{call.spec.name}/{column}" if column in merged else column] = values
    return merged


def _merged_metrics(calls: Sequence[_Call]) -> dict[str, float]:
    logged: dict[str, list[float]] = {}
    for call in calls:
        for name, values in call.metrics.items():
            logged.setdefault(name, []).extend(values)
    return {name: math.fsum(values) / len(values) for name, values in logged.items()}


def weighted_sum(rewards_BF: Sequence[Sequence[float]], weights: Sequence[float]) -> list[float]:
    """Sum over functions of weight * reward, B values; NaNs are left out, all NaN stays NaN."""
    return [_weighted(row_F, weights) for row_F in rewards_BF]


def _weighted(row_F: Sequence[float], weights: Sequence[float]) -> float:
    terms = [w * r for w, r in zip(weights, row_F, strict=True) if not math.isnan(r)]
    return math.fsum(terms) if terms else math.nan


__all__ = ["RewardCaller", "RewardError", "RewardTable", "weighted_sum"]
