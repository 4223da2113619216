"""Rows one after the other, from a set, a stream, a task or a mixture of them.

A ``Feed`` draws rows for as long as they are asked for. It is fully determined by its settings and
by what was drawn and learned before, and that can be saved: a run that is resumed draws the rows
that it would have drawn. ``open_feed`` makes one of whatever a user calls training data.
"""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from foveal.data.columns import NormalRow, normalise_row
from foveal.data.datasets import RowSource
from foveal.data.difficulty import CurriculumSettings, Ladder, PassRates

__all__ = ["Fed", "Feed", "FeedSettings", "MixtureFeed", "SetFeed", "TaskFeed"]

_ROWS_PER_SEED = 2**32


@dataclass(frozen=True, slots=True, kw_only=True)
class FeedSettings:
    """How rows are drawn."""

    seed: int = 0
    shuffle: bool = True
    buffer: int = 256
    """Rows of a stream that are held at once, and shuffled with each other."""
    curriculum: CurriculumSettings = field(default_factory=CurriculumSettings)


@dataclass(frozen=True, slots=True)
class Fed:
    """A row that was drawn."""

    row: NormalRow
    source: str
    """Name of the set or task that it is of."""
    key: Any
    """For ``Feed.learn`` and ``Feed.drop``."""


class Feed(ABC):
    """Draws rows; see the top of this file."""

    name: str
    size: int | None = None
    """Rows of one pass, None where there is no such thing."""

    @abstractmethod
    def draw(self) -> Fed:
        """The next row. Raises what reading it raises, and ValueError if none is left."""

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """All that ``load_state_dict`` needs to draw from here on: plain values only."""

    @abstractmethod
    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...

    def learn(self, key: Any, pass_rate: float | None) -> None:
        """Note that the policy solved this share of its tries at a drawn row; None: not known."""
        return

    def drop(self, key: Any) -> None:
        """Note that a drawn row cannot be used."""
        return

    def metrics(self) -> dict[str, float]:
        """What is worth a line in the log."""
        return {}


class SetFeed(Feed):
    """Rows of a set with numbered rows, pass after pass, or by how often they are solved.

    Args:
        rows: with a length.
        settings: ``shuffle`` makes a new order each pass.
    """

    def __init__(self, rows: RowSource, settings: FeedSettings) -> None:
        self.rows, self.settings = rows, settings
        self.name, self.size = rows.name, len(rows)
        self.rates = PassRates(len(rows), settings.curriculum)
        self._place = 0
        """Places of the order that are behind; with a curriculum, rows drawn."""
        self._pending: list[int] = []
        """Rows drawn and not yet learned from."""
        self._order: tuple[int, list[int]] | None = None
        self._weights: list[float] | None = None
        """Kept from draw to draw: there may be many rows."""

    def draw(self) -> Fed:
        if self.rates.count_usable() == 0:
            # A run is not lost because it has learned all there is; the log counts this.
            self.rates.forgive()
            self._weights = None
        if self.rates.count_usable() == 0:
            raise ValueError(
                f"{self.name}: all of its {self.size} prompts are longer than max_prompt_length. "
                "Raise it, or lower the processor's max_pixels"
            )
        index = self._by_rate() if self.settings.curriculum.is_on else self._in_order()
        return Fed(self.rows[index], self.name, index)

    def _in_order(self) -> int:
        while True:
            number, place = divmod(self._place, len(self.rows))
            self._place += 1
            index = self._order_of(number)[place]
            if self.rates.is_usable(index):
                return index

    def _order_of(self, number: int) -> list[int]:
        if self._order is None or self._order[0] != number:
            order = list(range(len(self.rows)))
            if self.settings.shuffle:
                random.Random(f"{self.settings.seed}/{number}").shuffle(order)
            self._order = (number, order)
        return self._order[1]

    def _by_rate(self) -> int:
        dice = random.Random(f"{self.settings.seed}/rate/{self._place}")
        self._place += 1
        weights = self._current_weights()
        (index,) = dice.choices(range(len(weights)), weights)
        self._pending.append(index)
        weights[index] = 0.0
        return index

    def _current_weights(self) -> list[float]:
        """Of every row; 0 for those that were drawn since the last ones were learned from."""
        if self._weights is None:
            self._weights = self.rates.weights()
            for index in self._pending:
                self._weights[index] = 0.0
        if not any(self._weights):  # a window of more rows than there are
            self._pending.clear()
            self._weights = self.rates.weights()
        return self._weights

    def learn(self, key: Any, pass_rate: float | None) -> None:
        self._weights = None
        if pass_rate is not None:
            self.rates.note(key, pass_rate)
        self._pending = [index for index in self._pending if index != key]

    def drop(self, key: Any) -> None:
        self._weights = None
        self.rates.drop(key)

    def state_dict(self) -> dict[str, Any]:
        return {
            "place": self._place,
            "pending": list(self._pending),
            "rates": self.rates.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._place, self._pending = state["place"], list(state["pending"])
        self._weights = None
        self.rates.load_state_dict(state["rates"])

    def metrics(self) -> dict[str, float]:
        return self.rates.metrics()


class TaskFeed(Feed):
    """Rows of a procedural task, each once, at a difficulty that may follow the policy.

    Args:
        task: an object with ``name`` and ``generate(seed, difficulty)``.
        difficulty: of all rows, or where a curriculum begins.
        seed: rows are those of ``foveal.tasks.dataset`` with this seed.
        settings: its curriculum moves the difficulty.
    """

    def __init__(self, task: Any, difficulty: int, seed: int, settings: FeedSettings) -> None:
        self.task, self.seed = task, seed
        self.name = task.name
        self.ladder = Ladder(difficulty, settings.curriculum)
        self._drawn = 0

    def draw(self) -> Fed:
        number, level = self._drawn, self.ladder.level
        self._drawn += 1
        made = self.task.generate(self.seed * _ROWS_PER_SEED + number, level)
        return Fed(normalise_row(made, number), self.name, level)

    def learn(self, key: Any, pass_rate: float | None) -> None:
        if pass_rate is not None:
            self.ladder.note(key, pass_rate)

    def state_dict(self) -> dict[str, Any]:
        return {"drawn": self._drawn, "ladder": self.ladder.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._drawn = state["drawn"]
        self.ladder.load_state_dict(state["ladder"])

    def metrics(self) -> dict[str, float]:
        return self.ladder.metrics()


class MixtureFeed(Feed):
    """Rows of several feeds, each drawn from with its probability.

    Args:
        feeds: with distinct names.
        weights: positive, of any sum.
        seed: of the choice among them.
    """

    def __init__(self, feeds: Sequence[Feed], weights: Sequence[float], seed: int) -> None:
        self.feeds, self.weights, self.seed = list(feeds), list(weights), seed
        self.name = " + ".join(feed.name for feed in feeds)
        self._drawn = 0

    def draw(self) -> Fed:
        dice = random.Random(f"{self.seed}/mixture/{self._drawn}")
        self._drawn += 1
        (place,) = dice.choices(range(len(self.feeds)), self.weights)
        fed = self.feeds[place].draw()
        return Fed(fed.row, fed.source, (place, fed.key))

    def learn(self, key: Any, pass_rate: float | None) -> None:
        self.feeds[key[0]].learn(key[1], pass_rate)

    def drop(self, key: Any) -> None:
        self.feeds[key[0]].drop(key[1])

    def state_dict(self) -> dict[str, Any]:
        return {"drawn": self._drawn, "feeds": [feed.state_dict() for feed in self.feeds]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._drawn = state["drawn"]
        for feed, own in zip(self.feeds, state["feeds"], strict=True):
            feed.load_state_dict(own)

    def metrics(self) -> dict[str, float]:
        return {
            f"{feed.name}/{name}": value
            for feed in self.feeds
            for name, value in feed.metrics().items()
        }
