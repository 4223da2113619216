"""Where a window's prompts come from: numbered rows by a schedule, or a feed.

Numbered rows are the rule: the schedule names them before training, and a checkpoint needs no more
than their numbers. A feed (a stream, a task, a mixture, a curriculum) decides as it goes; its state
lies in the checkpoint, and with it the prompts of a window that is still in use.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from foveal.data import PromptBuilder, PromptTooLong, RowSource
from foveal.data.feeds import Fed, Feed, FeedSettings
from foveal.data.mixtures import open_feed, open_source
from foveal.models.state import say
from foveal.rewards.call import RewardCaller
from foveal.train.config import GRPOConfig
from foveal.train.schedule import MicroStep, OpenSchedule, Schedule
from foveal.train.setup import dataset_prompts
from foveal.train.window import Redraw, Window
from foveal.train.window_file import load_window, save_window
from foveal.types import Prompt

FILE = "data.pt"
MOST_TOO_LONG = 1000
"""Rows in a row that do not fit ``max_prompt_length`` before a feed is given up."""


class PromptSource(ABC):
    """Training prompts, window by window."""

    schedule: Schedule

    @abstractmethod
    def window(self, micro: MicroStep) -> list[Prompt]:
        """The prompts of the window that a micro-step is the first of."""

    @abstractmethod
    def redraw(self, micro: MicroStep) -> Redraw:
        """Other prompts for groups without spread."""

    def learn(self, window: Window) -> dict[str, float]:
        """Note how a window went; what is worth a line in the log."""
        return {}

    def restart(self) -> None:
        """A run begins anew."""
        return

    @abstractmethod
    def save(self, window: Window | None, folder: Path) -> None:
        """Write into a checkpoint what goes on from here; ``window`` is still in use."""

    @abstractmethod
    def load(self, folder: Path, device: torch.device) -> Window | None:
        """Go on from a checkpoint; the window that was in use, if one was."""


class NumberedPrompts(PromptSource):
    """Rows by number, as the schedule says."""

    def __init__(
        self, rows: RowSource, schedule: Schedule, builder: PromptBuilder, seed: int
    ) -> None:
        self.rows, self.schedule, self.builder, self.seed = rows, schedule, builder, seed

    def prompts(self, indices: Sequence[int]) -> list[Prompt]:
        return [self.builder.build(self.rows[index], index) for index in indices]

    def window(self, micro: MicroStep) -> list[Prompt]:
        return self.prompts(micro.prompt_indices)

    def redraw(self, micro: MicroStep) -> Redraw:
        known = self.schedule.prompt_indices

        def draw(attempt: int, count: int) -> list[Prompt]:
            # By seed, window and attempt alone, so resume is exact.
            generator = torch.Generator().manual_seed(
                hash((self.seed, *micro.window_id, attempt)) % (1 << 63)
            )
            picks = torch.randint(len(known), (count,), generator=generator).tolist()
            return self.prompts([known[pick] for pick in picks])

        return draw

    def save(self, window: Window | None, folder: Path) -> None:
        if window is not None:
            save_window(window, folder)

    def load(self, folder: Path, device: torch.device) -> Window | None:
        return load_window(folder, self.prompts, device)


class FedPrompts(PromptSource):
    """Rows as a feed draws them; a prompt's index is the number of its draw.

    The first row is drawn at once, so that what does not fit the model or the rewards fails early.
    """

    def __init__(
        self, feed: Feed, schedule: Schedule, builder: PromptBuilder, rewards: RewardCaller
    ) -> None:
        self.feed, self.schedule, self.builder = feed, schedule, builder
        self._drawn = self._dropped = 0
        self._fed: dict[int, Fed] = {}
        """What the prompts since the window began were made of."""
        self._start = feed.state_dict()
        self._ahead: list[Prompt] = [self._next()]
        rewards.check_columns(self._ahead[0].columns)

    def window(self, micro: MicroStep) -> list[Prompt]:
        if not self._ahead:
            self._fed.clear()
        return self._take(self.schedule.prompts_per_window)

    def redraw(self, micro: MicroStep) -> Redraw:
        return lambda attempt, count: self._take(count)

    def _take(self, count: int) -> list[Prompt]:
        taken = self._ahead[:count]
        self._ahead = self._ahead[count:]
        return taken + [self._next() for _ in range(count - len(taken))]

    def _next(self) -> Prompt:
        for _ in range(MOST_TOO_LONG):
            fed, number = self.feed.draw(), self._drawn
            self._drawn += 1
            try:
                prompt = self.builder.build(fed.row, number)
            except PromptTooLong as error:
                self._drop(fed, error)
                continue
            self._fed[number] = fed
            return prompt
        raise ValueError(
            f"{MOST_TOO_LONG} rows of {self.feed.name} one after the other have prompts longer "
            f"than max_prompt_length={self.builder.max_prompt_length}. Raise it, or lower the "
            "processor's max_pixels"
        )

    def _drop(self, fed: Fed, error: PromptTooLong) -> None:
        self.feed.drop(fed.key)
        self._dropped += 1
        if self._dropped == 1:
            say(f"{fed.source}: {error} It is dropped; the log counts all as data/dropped_rows")

    def learn(self, window: Window) -> dict[str, float]:
        for number, fed in self._fed.items():
            self.feed.learn(fed.key, window.pass_rates.get(number))
        found = {f"source/{name}": value for name, value in self._by_source(window).items()}
        found |= {f"curriculum/{name}": value for name, value in self.feed.metrics().items()}
        return found | ({"data/dropped_rows": float(self._dropped)} if self._dropped else {})

    def _by_source(self, window: Window) -> dict[str, float]:
        """Mean reward of each source, and its share of the window."""
        rewards: dict[str, list[float]] = {}
        means = window.advantages.reward_PG.nanmean(dim=1).tolist()
        for group, mean in zip(window.groups, means, strict=True):
            rewards.setdefault(self._fed[group.prompt.index].source, []).append(mean)
        found = {}
        for name, values in rewards.items():
            finite = [value for value in values if value == value]
            found[f"{name}/share"] = len(values) / len(means)
            if finite:
                found[f"{name}/reward"] = sum(finite) / len(finite)
        return found

    def restart(self) -> None:
        if self._ahead:
            return  # nothing was used yet
        self.feed.load_state_dict(self._start)
        self._drawn = self._dropped = 0
        self._ahead.clear()
        self._fed.clear()

    def save(self, window: Window | None, folder: Path) -> None:
        state = {"feed": self.feed.state_dict(), "drawn": self._drawn, "dropped": self._dropped}
        if self._ahead:  # before the first rollout: the row that was tried is drawn again
            state = {"feed": self._start, "drawn": 0, "dropped": 0}
        torch.save(state, folder / FILE)
        if window is not None:
            save_window(window, folder, with_prompts=True)

    def load(self, folder: Path, device: torch.device) -> Window | None:
        if not (folder / FILE).is_file():
            raise ValueError(
                f"{folder} holds no {FILE}: its run drew numbered rows. Resume with the data and "
                "the curriculum that the run began with"
            )
        state = torch.load(folder / FILE, weights_only=True)
        self.feed.load_state_dict(state["feed"])
        self._drawn, self._dropped = state["drawn"], state["dropped"]
        self._ahead.clear()
        self._fed.clear()
        return load_window(folder, None, device)


def prompt_source(
    dataset: Any, config: GRPOConfig, builder: PromptBuilder, rewards: RewardCaller
) -> PromptSource:
    """The source that a data set and the run's settings ask for.

    Raises:
        ValueError: as ``dataset_prompts``; for a feed without an end and no ``max_steps``.
    """
    seed = config.seed if config.data_seed is None else config.data_seed
    per_window = {
        "prompts_per_slot": config.prompts_per_micro_step,
        "slots": config.slots,
        "iterations": config.num_iterations,
    }
    source = open_source(dataset)
    numbered = isinstance(source, RowSource) and not source.is_streamed
    curriculum = config.curriculum_settings()
    if numbered and not curriculum.steers:
        rows, indices = dataset_prompts(source, builder, rewards, "training")
        schedule = Schedule(indices, shuffle=config.shuffle_dataset, seed=seed, **per_window)
        return NumberedPrompts(rows, schedule, builder, config.seed)
    settings = FeedSettings(
        seed=seed,
        shuffle=config.shuffle_dataset,
        buffer=config.stream_buffer,
        curriculum=curriculum,
    )
    feed = open_feed(source, settings)
    schedule = OpenSchedule(_windows(feed, config), rows=feed.size, **per_window)
    return FedPrompts(feed, schedule, builder, rewards)


def _windows(feed: Feed, config: GRPOConfig) -> int:
    """Rollouts of an epoch; of the whole run where a feed has no end."""
    per_window = config.prompts_per_micro_step * config.slots
    if feed.size is not None:
        return feed.size // per_window
    if config.max_steps <= 0:
        raise ValueError(
            f"{feed.name} has no known number of rows, so an epoch has no end; set max_steps"
        )
    return -(-config.max_steps // (config.optimizer_steps_per_pass * config.num_iterations))
