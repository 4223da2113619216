"""How often a model is right: rewards of its answers on a data set, without training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rich.progress import track
from torch import nn

from foveal.data import PromptBuilder, RowSource, load_rows
from foveal.generate import backend_of
from foveal.models.family import stock_model
from foveal.rewards.call import RewardCaller
from foveal.rollout import RolloutBackend
from foveal.train.window import reward_groups
from foveal.types import SamplingParams


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Mean rewards over a data set."""

    rewards: dict[str, float]
    """Mean of each reward function over all answers."""
    prompts: int
    completions: int

    @property
    def accuracy(self) -> float:
        """Mean of the first reward function: the one that says whether an answer is right."""
        return next(iter(self.rewards.values()))


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
    """
    rows = dataset if isinstance(dataset, RowSource) else load_rows(dataset)
    builder = PromptBuilder(processor, image_token_id=stock_model(model).config.image_token_id)
    caller = RewardCaller(reward_funcs)
    answers = backend or backend_of(model, processor)
    rewards_BF: list[list[float]] = []
    starts: Any = range(0, len(rows), batch_size)
    for start in track(starts, description="evaluating", disable=not show_progress):
        prompts = [
            builder.build(rows[index], index)
            for index in range(start, min(start + batch_size, len(rows)))
        ]
        sampling = SamplingParams(
            max_tokens=max_completion_length, temperature=temperature, seed=seed + start
        )
        groups = answers.generate(prompts, num_generations, sampling)
        rewards_BF += reward_groups(caller, groups).rewards_BF
    answers.standby()
    means = {}
    for column, name in enumerate(caller.names):
        given = [row[column] for row in rewards_BF if row[column] == row[column]]
        means[name] = sum(given) / len(given) if given else float("nan")
    return Evaluation(means, prompts=len(rows), completions=len(rewards_BF))
