"""Which prompts each micro-step works on: a list of small integers, known before training.

A *window* is what one rollout serves: its prompts are answered once, and then pass through
``iterations`` x ``slots`` micro-steps. Because every micro-step names its window in full, nothing
has to be remembered when training is resumed in the middle of one.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from torch.utils.data import DataLoader, Dataset


@dataclass(frozen=True, slots=True)
class MicroStep:
    """One backward pass of the trainer's loop."""

    epoch: int
    window: int
    """Number of the window within its epoch."""
    iteration: int
    """Which pass over the window's completions this is, from 0."""
    slot: int
    """Which of its equal parts, from 0."""
    prompt_indices: tuple[int, ...]
    """Rows of the data set that the whole window answers."""

    @property
    def window_id(self) -> tuple[int, int]:
        return (self.epoch, self.window)


class Schedule(Dataset[MicroStep]):
    """All micro-steps of one epoch, in order. ``epoch`` may be set before iteration.

    Args:
        prompt_indices: rows of the data set that may be used.
        prompts_per_slot: unique prompts of one micro-step.
        slots: micro-steps that share one rollout.
        iterations: how often a rollout is passed through.
        shuffle: a new order each epoch, from ``seed`` and the epoch alone.
        seed: of the order.

    Raises:
        ValueError: if there are fewer prompts than one window takes.
    """

    def __init__(
        self,
        prompt_indices: Sequence[int],
        *,
        prompts_per_slot: int,
        slots: int,
        iterations: int,
        shuffle: bool,
        seed: int,
    ) -> None:
        self.prompt_indices = list(prompt_indices)
        self.prompts_per_slot = prompts_per_slot
        self.slots = slots
        self.iterations = iterations
        self.shuffle = shuffle
        self.seed = seed
        self.epoch = 0
        self.windows = len(self.prompt_indices) // self.prompts_per_window
        if self.windows == 0:
            raise _too_few(self.prompts_per_window, len(self.prompt_indices))
        self._order: tuple[int, list[int]] | None = None

    @property
    def prompts_per_window(self) -> int:
        return self.prompts_per_slot * self.slots

    def __len__(self) -> int:
        return self.windows * self.iterations * self.slots

    def __getitem__(self, index: int) -> MicroStep:
        if not 0 <= index < len(self):
            raise IndexError(index)
        window, inside = divmod(index, self.iterations * self.slots)
        iteration, slot = divmod(inside, self.slots)
        start = window * self.prompts_per_window
        prompts = self._epoch_order()[start : start + self.prompts_per_window]
        return MicroStep(self.epoch, window, iteration, slot, tuple(prompts))

    def _epoch_order(self) -> list[int]:
        if self._order is None or self._order[0] != self.epoch:
            order = list(self.prompt_indices)
            if self.shuffle:
                random.Random(f"{self.seed}/{self.epoch}").shuffle(order)
            self._order = (self.epoch, order)
        return self._order[1]

    def loader(self) -> DataLoader[MicroStep]:
        """A loader of single micro-steps; pictures are read later, when a window begins."""
        return DataLoader(self, batch_size=1, shuffle=False, collate_fn=_only)


class OpenSchedule(Schedule):
    """Micro-steps whose prompts are drawn when their window begins: ``prompt_indices`` is empty.

    Args:
        windows: of one epoch.
        rows: of the data set, for the error message.
        prompts_per_slot, slots, iterations: as in ``Schedule``.

    Raises:
        ValueError: if there is no window.
    """

    def __init__(
        self, windows: int, *, rows: int | None, prompts_per_slot: int, slots: int, iterations: int
    ) -> None:
        if windows < 1:
            raise _too_few(prompts_per_slot * slots, rows or 0)
        super().__init__(
            range(windows * prompts_per_slot * slots),
            prompts_per_slot=prompts_per_slot,
            slots=slots,
            iterations=iterations,
            shuffle=False,
            seed=0,
        )
        self.prompt_indices = []

    def _epoch_order(self) -> list[int]:
        return []


def _too_few(needed: int, rows: int) -> ValueError:
    return ValueError(
        f"one rollout takes {needed} prompts, but the training set has {rows}; add rows, or lower "
        "per_device_train_batch_size x steps_per_generation"
    )


def _only(batch: list[MicroStep]) -> MicroStep:
    return batch[0]
