"""Length: a gradual penalty before the token budget cuts an answer off."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class SoftOverlong:
    """The reward function that ``soft_overlong`` returns; a class so that it can be pickled."""

    max_completion_length: int
    cache: int

    __name__ = "soft_overlong"

    def __call__(self, completion_ids: Sequence[Sequence[int]], **columns: Any) -> list[float]:
        return [self._penalty(len(ids)) for ids in completion_ids]

    def _penalty(self, length: int) -> float:
        free = self.max_completion_length - self.cache
        if length <= free:
            return 0.0
        if length > self.max_completion_length:
            return -1.0
        return (free - length) / self.cache


def soft_overlong(max_completion_length: int, cache: int) -> SoftOverlong:
    """Reward function: 0 up to ``max_completion_length - cache`` tokens, then linearly to -1.

    DAPO (arXiv:2503.14476), equation 13. It reads ``completion_ids`` and no column. With
    ``cache=0`` it is -1 beyond ``max_completion_length`` and 0 up to it.

    Raises ValueError unless 0 <= cache <= max_completion_length and the latter is positive.
    """
    if max_completion_length < 1:
        raise ValueError(f"max_completion_length is {max_completion_length}; it must be positive")
    if not 0 <= cache <= max_completion_length:
        raise ValueError(
            f"cache is {cache}; it must lie between 0 and "
            f"max_completion_length={max_completion_length}"
        )
    return SoftOverlong(max_completion_length, cache)
