"""Counting: full marks for the exact count, some for a near one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from foveal.rewards.extract import completion_texts, extract_answer, reference_texts
from foveal.rewards.number import the_number


@dataclass(frozen=True)
class CountShaped:
    """The reward function that ``count_shaped`` returns; a class so that it can be pickled."""

    max_off: int
    near: float

    __name__ = "count_shaped"

    def __call__(self, completions: Sequence[Any], **columns: Any) -> list[float | None]:
        references = [the_count(text) for text in reference_texts(columns, len(completions))]
        answers = [the_count(extract_answer(t).text) for t in completion_texts(completions)]
        return [
            None if reference is None else 0.0 if answer is None else self._score(answer, reference)
            for answer, reference in zip(answers, references, strict=True)
        ]

    def _score(self, answer: int, reference: int) -> float:
        off = abs(answer - reference)
        if off == 0:
            return 1.0
        # "None" for something that is there, and something where there is none, are no near misses.
        if off > self.max_off or not (answer and reference):
            return 0.0
        return self.near * (1 - (off - 1) / self.max_off)


def the_count(text: str) -> int | None:
    """The one whole number from 0 on in ``text``, or None."""
    number = the_number(text)
    if number is None or number.percent or number.bare < 0 or number.bare % 1:
        return None
    return int(number.bare)


def count_shaped(max_off: int = 2, near: float = 0.3) -> CountShaped:
    """Reward function: 1.0 for the exact count, ``near`` for one off, linearly to 0 past max_off.

    With off = |answer - reference| from 1 to ``max_off``: near * (1 - (off - 1) / max_off). An
    answer of 0 for objects that are there, or of objects for a reference of 0, earns 0; so do
    several different numbers, fractions and percentages. None where the reference is no count (a
    mixed data set).

    Shaping pays a policy that always says the commonest count up to ``near`` of the rows next to
    it: keep ``near`` small, and use ``number_answer`` once exact counts are common.

    Columns: ``answer`` (or ``solution``). Raises ValueError unless ``max_off`` is a whole number
    from 1 on and 0 < near <= 0.5, and for a row without a reference.
    """
    if not isinstance(max_off, int) or max_off < 1:
        raise ValueError(f"max_off is {max_off}; it must be a whole number from 1 on")
    if not 0 < near <= 0.5:
        raise ValueError(f"near is {near}; it must be above 0 and at most 0.5, so exactness pays")
    return CountShaped(max_off, float(near))
