"""Rows of a task that are drawn when they are asked for: a large set costs no time and no memory.

A data loader's workers draw them side by side, ahead of the GPU.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Generate = Callable[[int, int], dict[str, Any]]


class DrawnRows:
    """A sequence of ``n`` rows of one task; row ``i`` is the same whenever it is read.

    Args:
        generate: ``(seed, difficulty) -> row``, a task's.
        n: how many.
        first_seed: of row 0; the next has the next.
        difficulties: taken in turn.
        completion: makes of a row and its number what supervised training is to write; None
            adds no such column.
    """

    draws_rows = True

    def __init__(
        self,
        generate: Generate,
        n: int,
        first_seed: int,
        difficulties: tuple[int, ...],
        completion: Callable[[dict[str, Any], int], str] | None = None,
    ) -> None:
        self.generate, self.n, self.first_seed = generate, n, first_seed
        self.difficulties, self.completion = difficulties, completion

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not 0 <= index < self.n:
            raise IndexError(index)
        level = self.difficulties[index % len(self.difficulties)]
        row = self.generate(self.first_seed + index, level)
        if self.completion is not None:
            row["completion"] = self.completion(row, index)
        return row


def tagged(row: dict[str, Any], index: int) -> str:
    """The bare answer in the tags that the tasks' instruction asks for."""
    return f"<answer>{row['answer']}</answer>"
