"""How often a model is right: rewards of its answers on a data set, without training.

evaluation = evaluate(model, processor, "questions.parquet", ["exact_answer"],
                      num_generations=8, temperature=1.0)
evaluation.accuracy
evaluation.result({"model": "after"}).summary()      # pass@k, majority, intervals, by task
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import nn

from foveal.data import NormalRow, PromptBuilder, RowSource, load_rows, row_key
from foveal.eval_result import LABELS, EvalResult, PromptResult, Sample, numbered
from foveal.eval_sources import EvalSource
from foveal.generate import backend_of
from foveal.models.family import family_of, stock_model
from foveal.rewards import RewardFunction, resolve
from foveal.rewards.call import RewardCaller
from foveal.rewards.vote import answer_vote
from foveal.rollout import RolloutBackend
from foveal.train.window import reward_groups
from foveal.types import Group, SamplingParams

Known = Mapping[tuple[str, int], PromptResult]
"""Answered rows by source and row number, their keys as ``foveal.data.row_key`` gives them."""
OnBatch = Callable[[list[PromptResult]], None]


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Answers to the rows of a data set, and their mean rewards."""

    rewards: dict[str, float]
    """Mean of each reward function over all answers that it says something about."""
    prompts: int
    completions: int
    results: tuple[PromptResult, ...] = ()
    """Each row with its answers, in the order of the data."""

    @property
    def accuracy(self) -> float:
        """Mean of the reward that says whether an answer is right: a row's first one."""
        return _mean([s.rewards[p.judge] for p in self.results for s in p.samples])

    def result(
        self,
        settings: Mapping[str, Any],
        versions: Mapping[str, str] | None = None,
        right_from: float = 1.0,
    ) -> EvalResult:
        """What can be summarised, written and compared.

        Args:
            settings: what was asked for, for the file.
            versions: of the packages, such as ``foveal.report.versions()``.
            right_from: the first reward's value from which an answer is right.
        """
        return EvalResult(
            prompts=self.results,
            rewards=tuple(self.rewards),
            right_from=right_from,
            settings=dict(settings),
            versions=dict(versions or {}),
        )


def evaluate(
    model: nn.Module,
    processor: Any,
    dataset: Any,
    reward_funcs: Any,
    **settings: Any,
) -> Evaluation:
    """Answer every row of a data set and reward the answers.

    Args:
        model: from ``FastVisionModel``, or any supported transformers or PEFT model.
        processor: the model's.
        dataset: a ``RowSource``, or anything that ``foveal.data.load_rows`` opens.
        reward_funcs: one or several, functions or names; the first one counts as accuracy.
        settings: those of ``evaluate_sources``.
    """
    rows = dataset if isinstance(dataset, RowSource) else load_rows(dataset)
    several = reward_funcs if isinstance(reward_funcs, list | tuple) else [reward_funcs]
    source = EvalSource("", rows, tuple(resolve(reward) for reward in several))
    return evaluate_sources(model, processor, [source], **settings)


def evaluate_sources(
    model: nn.Module,
    processor: Any,
    sources: Sequence[EvalSource],
    *,
    num_generations: int = 1,
    temperature: float = 0.0,
    max_completion_length: int = 512,
    batch_size: int = 32,
    seed: int = 0,
    backend: RolloutBackend | None = None,
    show_progress: bool = False,
    answer_coordinates: str | None = None,
    known: Known | None = None,
    on_batch: OnBatch | None = None,
) -> Evaluation:
    """Answer every row of several sources and reward the answers.

    An answer depends on the seed, its row's number and the rows of its batch, and batches begin
    at multiples of ``batch_size`` in each source. So neither the order of sources nor a stop
    between two batches changes anything.

    Args:
        model: from ``FastVisionModel``, or any supported transformers or PEFT model.
        processor: the model's.
        sources: rows and their rewards, each under a name of its own.
        num_generations: answers to each prompt.
        temperature: 0 is greedy, and then ``num_generations`` must be 1.
        max_completion_length: tokens of an answer.
        batch_size: prompts answered at once.
        seed: of the sampling; the global random state is left as it was.
        backend: where answers come from; ``foveal.generate.backend_of`` if None.
        show_progress: draw a bar.
        answer_coordinates: as in ``GRPOConfig``.
        known: rows that need no answer; a batch that is not known as a whole is answered anew.
        on_batch: shown the results of each batch that was answered.
    """
    builder = PromptBuilder(
        processor,
        image_token_id=stock_model(model).config.image_token_id,
        answer_coordinates=answer_coordinates or family_of(model).FAMILY.answer_coordinates,
    )
    answers = backend or backend_of(model, processor)
    sampling = SamplingParams(max_tokens=max_completion_length, temperature=temperature, seed=seed)
    judges = _Judges()
    results: list[PromptResult] = []
    with _progress(sources, show_progress) as advance:
        for source in sources:
            for start in range(0, len(source.rows), batch_size):
                numbers = range(start, min(start + batch_size, len(source.rows)))
                part = _known(source, numbers, known or {})
                if part is None:
                    read = [source.rows[number] for number in numbers]
                    prompts = [builder.build(*row) for row in zip(read, numbers, strict=True)]
                    groups = answers.generate(prompts, num_generations, sampling)
                    part = judges.results(source, read, groups)
                    if on_batch is not None:
                        on_batch(part)
                results += part
                advance(source.name, len(part))
    answers.standby()
    return evaluation_of(results)


def evaluation_of(results: Sequence[PromptResult]) -> Evaluation:
    """The evaluation of rows that have been answered, in the order of their sources."""
    samples = [sample for result in results for sample in result.samples]
    # A row's first reward is its judge: those come first, in the order of the rows.
    names = dict.fromkeys(result.judge for result in results)
    names |= dict.fromkeys(name for sample in samples for name in sample.rewards)
    keys = numbered(result.key for result in results)
    return Evaluation(
        {name: _mean([sample.rewards.get(name) for sample in samples]) for name in names},
        prompts=len(results),
        completions=len(samples),
        results=tuple(replace(r, key=key) for r, key in zip(results, keys, strict=True)),
    )


def whole_batches(
    known: Known, sources: Sequence[EvalSource], batch_size: int
) -> tuple[dict[tuple[str, int], PromptResult], int]:
    """The known rows of batches of which every row is known, and how many rows are left."""
    kept: dict[tuple[str, int], PromptResult] = {}
    for source in sources:
        for start in range(0, len(source.rows), batch_size):
            numbers = range(start, min(start + batch_size, len(source.rows)))
            for result in _known(source, numbers, known) or ():
                kept[source.name, result.index] = result
    return kept, sum(len(source.rows) for source in sources) - len(kept)


def _known(source: EvalSource, numbers: range, known: Known) -> list[PromptResult] | None:
    """The results of a batch, if all of them are there."""
    found = [known.get((source.name, number)) for number in numbers]
    whole = [result for result in found if result is not None]
    return whole if len(whole) == len(found) else None


class _Judges:
    """The rewards of all sources; rows of a batch that are judged alike are judged together."""

    def __init__(self) -> None:
        # By identity: an object with settings of its own need not be hashable.
        self._callers: dict[tuple[int, ...], RewardCaller] = {}

    def results(
        self, source: EvalSource, rows: Sequence[NormalRow], groups: Sequence[Group]
    ) -> list[PromptResult]:
        """A result for each row of a batch, in their order."""
        alike: dict[tuple[int, ...], list[int]] = {}
        for place, row in enumerate(rows):
            alike.setdefault(self._key_of(source.rewards_of(row)), []).append(place)
        found: dict[int, PromptResult] = {}
        for key, places in alike.items():
            caller = self._callers[key]
            rewards_BF = reward_groups(caller, [groups[place] for place in places]).rewards_BF
            row = 0
            for place in places:
                size = len(groups[place].completions)
                judged = rewards_BF[row : row + size]
                found[place] = _result(source, rows[place], groups[place], judged, caller.names)
                row += size
        return [found[place] for place in range(len(rows))]

    def _key_of(self, functions: tuple[RewardFunction, ...]) -> tuple[int, ...]:
        key = tuple(map(id, functions))
        if key not in self._callers:
            self._callers[key] = RewardCaller(list(functions))
        return key


def _result(
    source: EvalSource,
    row: NormalRow,
    group: Group,
    rewards_GF: list[list[float]],
    names: list[str],
) -> PromptResult:
    samples = tuple(
        Sample(
            text=completion.text,
            vote=answer_vote(completion.text),
            stop_reason=completion.stop_reason,
            tokens=len(completion.ids),
            rewards={
                name: None if math.isnan(reward) else reward
                for name, reward in zip(names, rewards_F, strict=True)
            },
        )
        for completion, rewards_F in zip(group.completions, rewards_GF, strict=True)
    )
    labels = {name: str(row.columns[name]) for name in LABELS if row.columns.get(name) is not None}
    return PromptResult(
        index=group.prompt.index,
        key=row_key(row),
        answer=row.answer,
        labels=labels,
        samples=samples,
        source=source.name,
        judge=names[0],
    )


@contextlib.contextmanager
def _progress(
    sources: Sequence[EvalSource], is_shown: bool
) -> Iterator[Callable[[str, int], None]]:
    """A bar of rows; yields what is told a source's name and a number of finished rows."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeRemainingColumn(), disable=not is_shown) as bar:
        task = bar.add_task("evaluating", total=sum(len(source.rows) for source in sources))

        def advance(name: str, count: int) -> None:
            bar.update(task, advance=count, description=f"evaluating {name}".strip())

        yield advance


def _mean(rewards: Sequence[float | None]) -> float:
    given = [reward for reward in rewards if reward is not None]
    return sum(given) / len(given) if given else math.nan
