"""Reward functions written for other trainers, unchanged.

    from foveal.rewards import from_verl
    GRPOTrainer(reward_funcs=[from_verl(compute_score), number_answer], ...)

Each adapter takes a function of the other trainer and returns one of ours: it hands completions
over in the form that the other trainer gives, the reference from ``answer`` or ``solution`` (where
``foveal.data`` puts it whatever the format of the row), and turns the result into rewards. Further
numbers that a function returns become metrics. Functions may be ``async def``, and may be named as
for ``resolve``: ``"path/file.py:compute_score"``.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from foveal.rewards.extract import NOT_COLUMNS, completion_texts, reference_values

_Function = Callable[..., Any]
_LogMetric = Callable[[str, float], None]


@dataclass(frozen=True)
class _Adapter:
    """A class, so that what the adapters return can be pickled if the function can."""

    function: _Function
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def __name__(self) -> str:
        """What the metrics call it: the name of the other trainer's function or class."""
        return getattr(self.function, "__name__", None) or type(self.function).__name__


class VerlReward(_Adapter):
    """The reward function that ``from_verl`` returns."""

    def __call__(
        self, completions: Sequence[Any], log_metric: _LogMetric | None = None, **columns: Any
    ) -> Any:
        texts = completion_texts(completions)
        references = reference_values(columns, len(texts))
        sources = columns.get("data_source") or [""] * len(texts)
        extras = columns.get("extra_info") or [None] * len(texts)
        results = [
            self.function(
                data_source=source,
                solution_str=text,
                ground_truth=reference,
                extra_info=extra,
                **self.settings,
            )
            for source, text, reference, extra in zip(
                sources, texts, references, extras, strict=True
            )
        ]
        return _then(results, lambda done: _scores(done, "score", self.__name__, log_metric))


def from_verl(compute_score: str | _Function, **settings: Any) -> VerlReward:
    """Reward function from verl's ``compute_score(data_source, solution_str, ground_truth, ..)``.

    It is called once a row, by name, with ``extra_info`` (None without that column),
    ``data_source`` ("" without it) and ``settings`` (verl's ``reward_kwargs``). It returns a
    number, or a dict whose ``"score"`` is the reward; other numbers in it are logged as metrics,
    ``name/key``.

    Called, it raises ValueError for a row without a reference and for a dict without ``"score"``.
    """
    return VerlReward(_resolved(compute_score), settings)


@dataclass(frozen=True)
class EasyR1Reward(_Adapter):
    """The reward function that ``from_easyr1`` returns."""

    kind: str = "batch"

    def __call__(
        self,
        completions: Sequence[Any],
        completion_ids: Sequence[Sequence[int]],
        log_metric: _LogMetric | None = None,
        **columns: Any,
    ) -> Any:
        texts = completion_texts(completions)
        references = reference_values(columns, len(texts))
        data = {name: values for name, values in columns.items() if name not in NOT_COLUMNS}
        inputs = [
            {
                **{name: values[row] for name, values in data.items()},
                "response": text,
                "response_length": len(completion_ids[row]),
                "ground_truth": references[row],
            }
            for row, text in enumerate(texts)
        ]
        if self.kind == "batch":
            results = self.function(inputs, **self.settings)
        else:
            results = [self.function(one, **self.settings) for one in inputs]
        return _then(results, lambda done: _scores(done, "overall", self.__name__, log_metric))


def from_easyr1(
    compute_score: str | _Function, kind: str = "batch", **settings: Any
) -> EasyR1Reward:
    """Reward function from EasyR1's ``compute_score(reward_inputs) -> [{"overall": .., ..}, ..]``.

    A reward input is ``{"response": text, "response_length": tokens, "ground_truth": reference}``
    and the row's other columns. ``"overall"`` is the reward; ``"format"``, ``"accuracy"`` and
    other numbers are logged as metrics, ``name/key``. ``kind`` is EasyR1's ``REWARD_TYPE``:
    "batch", or "sequential" for a function of one input. ``settings`` are passed on (EasyR1's
    ``reward_function_kwargs``).

    Raises ValueError for another kind and, called, for a row without a reference and for a result
    without ``"overall"``.
    """
    if kind not in ("batch", "sequential"):
        raise ValueError(f"kind is {kind!r}; EasyR1's REWARD_TYPE is 'batch' or 'sequential'")
    return EasyR1Reward(_resolved(compute_score), settings, kind)


class VlmR1Reward(_Adapter):
    """The reward function that ``from_vlm_r1`` returns."""

    def __call__(self, completions: Sequence[Any], **columns: Any) -> Any:
        texts = completion_texts(completions)
        messages = [[{"role": "assistant", "content": text}] for text in texts]
        return self.function(messages, **_by_name(self.function, columns, len(texts)))


def from_vlm_r1(function: str | _Function) -> VlmR1Reward:
    """Reward function from VLM-R1's (and R1-V's) ``f(completions, solution, **kwargs)``.

    Each completion becomes ``[{"role": "assistant", "content": text}]``. ``solution`` is the column
    of that name as it is (else ``answer``), and the other columns arrive by name as far as the
    function takes them. It returns one number a completion.
    """
    return VlmR1Reward(_resolved(function))


class MsSwiftReward(_Adapter):
    """The reward function that ``from_ms_swift`` returns."""

    def __call__(self, completions: Sequence[Any], **columns: Any) -> Any:
        texts = completion_texts(completions)
        return self.function(texts, **_by_name(self.function, columns, len(texts)))


def from_ms_swift(orm: Any) -> MsSwiftReward:
    """Reward function from ms-swift's outcome rewards, ``orm(completions, **columns)``.

    ``orm`` is an object of an ``ORM`` class, or the class itself if it needs no arguments.
    ``completions`` are plain texts, ``solution`` the column of that name as it is (else
    ``answer``), and the other columns arrive by name as far as it takes them. It returns one
    number a completion.
    """
    orm = _resolved(orm)
    return MsSwiftReward(orm() if isinstance(orm, type) else orm)


def _resolved(function: Any) -> Any:
    from foveal.rewards.registry import resolve  # which imports this module

    return resolve(function)


def _by_name(function: _Function, columns: Mapping[str, Any], count: int) -> dict[str, Any]:
    """What ``function`` takes of the columns, beside its first argument, the completions."""
    # Such functions look into the raw solution for tags of their own.
    swapped = {"answer": columns.get("solution"), "solution": columns.get("answer")}
    offered = {**columns, "solution": reference_values({**columns, **swapped}, count)}
    parameters = list(inspect.signature(function).parameters.values())[1:]
    takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters)
    names = set(offered) - {"log_metric", "log_extra"} if takes_all else set()
    names |= {p.name for p in parameters}
    return {name: values for name, values in offered.items() if name in names}


def _then(results: Any, finish: Callable[[Any], list[Any]]) -> Any:
    """``finish(results)``; where the results have to be awaited, an awaitable of it."""
    if inspect.isawaitable(results):
        return _awaited(results, finish)
    if results and all(map(inspect.isawaitable, results)):
        return _awaited(_gathered(results), finish)
    return finish(results)


async def _awaited(results: Awaitable[Any], finish: Callable[[Any], list[Any]]) -> list[Any]:
    return finish(await results)


async def _gathered(results: Sequence[Awaitable[Any]]) -> list[Any]:
    return await asyncio.gather(*results)


def _scores(
    results: Sequence[Any], key: str, name: str, log_metric: _LogMetric | None
) -> list[Any]:
    """The rewards out of numbers or dicts; further numbers of the dicts are logged."""
    scores = []
    for row, result in enumerate(results):
        if not isinstance(result, Mapping):
            scores.append(result)
            continue
        if key not in result:
            raise ValueError(
                f"row {row}: '{name}' returned a dict without {key!r}, which is its reward (keys: "
                f"{sorted(map(str, result))}); return it, or a number"
            )
        scores.append(result[key])
        for other, value in result.items():
            if log_metric is not None and other != key and isinstance(value, int | float):
                log_metric(f"{name}/{other}", value)
    return scores
