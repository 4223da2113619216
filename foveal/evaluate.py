"""How often a model is right: rewards of its answers on a data set, without training.

evaluation = evaluate(model, processor, "questions.parquet", ["exact_answer"],
                      num_generations=8, temperature=1.0)
evaluation.accuracy
evaluation.result({"model": "after"}).summary()      # pass@k, majority, intervals, by task
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from rich.progress import track
from torch import nn

from foveal.data import NormalRow, PromptBuilder, RowSource, load_rows, row_key
from foveal.eval_result import LABELS, EvalResult, PromptResult, Sample, numbered
from foveal.generate import backend_of
from foveal.models.family import family_of, stock_model
from foveal.rewards.call import RewardCaller
from foveal.rewards.vote import answer_vote
from foveal.rollout import RolloutBackend
from foveal.train.window import reward_groups
from foveal.types import Group, SamplingParams


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Answers to the rows of a data set, and their mean rewards."""

    rewards: dict[str, float]
    """Mean of each reward function over all answers."""
    prompts: int
    completions: int
    results: tuple[PromptResult, ...] = ()
    """Each row with its answers, in the order of the data."""

    @property
    def accuracy(self) -> float:
        """Mean of the first reward function: the one that says whether an answer is right."""
        return next(iter(self.rewards.values()))

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
    *,
    num_generations: int = 1,
    temperature: float = 0.0,
    max_completion_length: int = 512,
    batch_size: int = 32,
    seed: int = 0,
    backend: RolloutBackend | None = None,
    show_progress: bool = False,
    answer_coordinates: str | None = None,
) -> Evaluation:
    """Answer every row of a data set and reward the answers.

    Args:
        model: from ``FastVisionModel``, or any supported transformers or PEFT model.
        processor: the model's.
        dataset: a ``RowSource``, or anything that ``foveal.data.load_rows`` opens.
        reward_funcs: one or several, functions or names; the first one counts as accuracy.
        num_generations: answers to each prompt.
        temperature: 0 is greedy, and then ``num_generations`` must be 1.
        max_completion_length: tokens of an answer.
        batch_size: prompts answered at once.
        seed: of the sampling; the global random state is left as it was.
        backend: where answers come from; ``foveal.generate.backend_of`` if None.
        show_progress: draw a bar.
        answer_coordinates: as in ``GRPOConfig``.
    """
    rows = dataset if isinstance(dataset, RowSource) else load_rows(dataset)
    builder = PromptBuilder(
        processor,
        image_token_id=stock_model(model).config.image_token_id,
        answer_coordinates=answer_coordinates or family_of(model).FAMILY.answer_coordinates,
    )
    caller = RewardCaller(reward_funcs)
    answers = backend or backend_of(model, processor)
    rewards_BF: list[list[float]] = []
    results: list[PromptResult] = []
    starts: Any = range(0, len(rows), batch_size)
    for start in track(starts, description="evaluating", disable=not show_progress):
        indices = range(start, min(start + batch_size, len(rows)))
        read = [rows[index] for index in indices]
        prompts = [builder.build(row, index) for row, index in zip(read, indices, strict=True)]
        sampling = SamplingParams(
            max_tokens=max_completion_length, temperature=temperature, seed=seed + start
        )
        groups = answers.generate(prompts, num_generations, sampling)
        part_BF = reward_groups(caller, groups).rewards_BF
        rewards_BF += part_BF
        for place, (row, group) in enumerate(zip(read, groups, strict=True)):
            judged = part_BF[place * num_generations : (place + 1) * num_generations]
            results.append(_prompt_result(row, group, judged, caller.names))
    answers.standby()
    return Evaluation(
        {name: _mean([row_F[f] for row_F in rewards_BF]) for f, name in enumerate(caller.names)},
        prompts=len(rows),
        completions=len(rewards_BF),
        results=_with_own_keys(results),
    )


def _prompt_result(
    row: NormalRow, group: Group, rewards_GF: list[list[float]], names: list[str]
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
    )


def _with_own_keys(results: list[PromptResult]) -> tuple[PromptResult, ...]:
    keys = numbered(result.key for result in results)
    return tuple(replace(result, key=key) for result, key in zip(results, keys, strict=True))


def _mean(rewards: list[float]) -> float:
    given = [reward for reward in rewards if not math.isnan(reward)]
    return sum(given) / len(given) if given else math.nan
