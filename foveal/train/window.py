"""What one rollout gives: groups, rewards, advantages, and log-probabilities to compare with."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from foveal.rewards.call import RewardCaller, RewardTable
from foveal.rl import Advantages, advantages_from_rewards
from foveal.rollout import RolloutBackend
from foveal.train.plain_pass import Row, counted_tokens
from foveal.types import Completion, Group, Prompt, SamplingParams

Redraw = Callable[[int, int], list[Prompt]]
"""``(attempt, count) -> prompts`` to take the place of groups without spread."""


@dataclass(slots=True)
class Window:
    """P groups of G completions with everything that the training passes need."""

    window_id: tuple[int, int]
    groups: list[Group]
    rewards: RewardTable
    """B rows, group by group."""
    advantages: Advantages
    rows: list[Row]
    entropy_threshold: Tensor | None = None
    redrawn_groups: int = 0
    pass_tokens: int | None = None
    """Completion tokens of one forward and backward, where memory asks for fewer than the run's
    settings do (``foveal.train.planning``)."""
    counters: dict[str, float] = field(default_factory=dict)
    pass_rates: dict[int, float] = field(default_factory=dict)
    """By prompt index, of every group that was answered, redrawn ones included: the share of
    completions whose first reward reaches ``Collector.solved_from``."""

    @property
    def completions(self) -> list[Completion]:
        return [c for group in self.groups for c in group.completions]

    def forget_layer_inputs(self) -> None:
        """Let go of what the rollout has kept for a training pass that is done."""
        self.rows = [
            replace(row, completion=replace(row.completion, layer_inputs=None)) for row in self.rows
        ]
        self.groups = [
            replace(g, completions=tuple(replace(c, layer_inputs=None) for c in g.completions))
            for g in self.groups
        ]

    def part(self, number: int, parts: int) -> list[Row]:
        """Rows of one of so many equal parts."""
        size = len(self.rows) // parts
        return self.rows[number * size : (number + 1) * size]


@dataclass(frozen=True, slots=True)
class Collector:
    """Rolls out, rewards, and compares within groups."""

    backend: RolloutBackend
    rewards: RewardCaller
    num_generations: int
    sampling: SamplingParams
    scale: str
    aggregation: str
    mask_truncated: bool
    never_sampled: frozenset[int]
    max_resample_times: int = 0
    solved_from: float = 1.0
    """From which value of the first reward a completion counts as right."""

    def collect(
        self,
        prompts: Sequence[Prompt],
        window_id: tuple[int, int],
        *,
        meter: Any,
        trainer_state: Any = None,
        redraw: Redraw | None = None,
    ) -> Window:
        """Answer ``prompts`` and judge the answers.

        Args:
            prompts: P unique prompts.
            window_id: name of the result.
            meter: ``PhaseMeter`` for the phases "rollout" and "reward".
            trainer_state: handed to reward functions.
            redraw: gives other prompts for groups without spread; None keeps all groups.
        """
        groups, table = self._answer(list(prompts), meter, trainer_state)
        advantages = self._compare(table, len(groups))
        rates = pass_rates(groups, table, self.solved_from)
        redrawn = 0
        for attempt in range(self.max_resample_times if redraw is not None else 0):
            flat = [p for p, zero in enumerate(advantages.zero_std_P.tolist()) if zero]
            if not flat:
                break
            assert redraw is not None
            others, other_table = self._answer(redraw(attempt, len(flat)), meter, trainer_state)
            rates |= pass_rates(others, other_table, self.solved_from)
            table = _replace(table, other_table, flat, self.num_generations)
            for place, group in zip(flat, others, strict=True):
                groups[place] = group
            advantages = self._compare(table, len(groups))
            redrawn += len(flat)
        return Window(
            window_id=window_id,
            groups=groups,
            rewards=table,
            advantages=advantages,
            rows=self._rows(groups, advantages),
            redrawn_groups=redrawn,
            pass_rates=rates,
        )

    def _answer(
        self, prompts: list[Prompt], meter: Any, trainer_state: Any
    ) -> tuple[list[Group], RewardTable]:
        with meter("rollout"):
            groups = self.backend.generate(prompts, self.num_generations, self.sampling)
        # Not every backend knows where its time goes.
        meter.add_parts("rollout", getattr(self.backend, "timings", {}))
        with meter("reward"):
            return groups, reward_groups(self.rewards, groups, trainer_state)

    def _compare(self, table: RewardTable, groups: int) -> Advantages:
        reward_PGF = torch.tensor(table.rewards_BF).view(groups, self.num_generations, -1)
        return advantages_from_rewards(
            reward_PGF, self.rewards.weights, aggregation=self.aggregation, scale=self.scale
        )

    def _rows(self, groups: list[Group], advantages: Advantages) -> list[Row]:
        return [
            Row(
                prompt=group.prompt,
                completion=completion,
                advantage=advantage,
                counts=counted_tokens(completion, self.never_sampled, self.mask_truncated),
            )
            for group, row in zip(groups, advantages.advantage_PG.tolist(), strict=True)
            for completion, advantage in zip(group.completions, row, strict=True)
        ]


def reward_groups(
    caller: RewardCaller, groups: Sequence[Group], trainer_state: Any = None
) -> RewardTable:
    """Rewards of every completion: TRL's signature, each column repeated for each completion."""
    rows = [(group.prompt, c) for group in groups for c in group.completions]
    # Rows of a mixed set may lack a column that others have.
    names = dict.fromkeys(name for group in groups for name in group.prompt.columns)
    return caller.score(
        prompts=[prompt.messages for prompt, _ in rows],
        completions=[[{"role": "assistant", "content": c.text}] for _, c in rows],
        completion_ids=[list(c.ids) for _, c in rows],
        columns={name: [prompt.columns.get(name) for prompt, _ in rows] for name in names},
        trainer_state=trainer_state,
    )


def pass_rates(groups: Sequence[Group], table: RewardTable, solved_from: float) -> dict[int, float]:
    """By prompt index: the share of completions that are right.

    What counts is the first reward that says anything about a completion; a group without any
    is left out.
    """
    rates: dict[int, float] = {}
    rows = iter(table.rewards_BF)
    for group in groups:
        said = [next((r for r in next(rows) if not math.isnan(r)), None) for _ in group.completions]
        known = [reward >= solved_from for reward in said if reward is not None]
        if known:
            rates[group.prompt.index] = sum(known) / len(known)
    return rates


def _replace(
    table: RewardTable, other: RewardTable, places: Sequence[int], size: int
) -> RewardTable:
    """``table`` with the rows of some groups taken from ``other``, in order."""
    rewards = list(table.rewards_BF)
    extra = {name: list(values) for name, values in table.extra.items()}
    for at, place in enumerate(places):
        here, there = slice(place * size, (place + 1) * size), slice(at * size, (at + 1) * size)
        rewards[here] = other.rewards_BF[there]
        for name, values in extra.items():
            values[here] = other.extra.get(name, [None] * len(other.rewards_BF))[there]
    seconds = {name: table.seconds[name] + other.seconds[name] for name in table.seconds}
    return RewardTable(rewards, extra, other.metrics or table.metrics, seconds)
