"""Answers about charts: numbers within 5 %, everything else exactly."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from foveal.rewards.extract import completion_texts, extract_answer, normalised, reference_texts
from foveal.rewards.number import NumberWithin, the_number

_WHOLLY_NUMBER = re.compile(
    r"[-+−]?\s*[$€£¥]?\s*[-+−]?(?:\d{1,3}(?:,\d{3})+|\d+)?(?:\.\d+)?(?:e[-+]?\d+)?\s*%?",
    re.IGNORECASE,
)
_YEAR = re.compile(r"(?:1[89]|20)\d\d|2100")


@dataclass(frozen=True)
class ChartRelaxed:
    """The reward function that ``chart_relaxed`` returns; a class so that it can be pickled."""

    rel_tol: float
    years_exact: bool

    __name__ = "chart_relaxed"

    def __call__(self, completions: Sequence[Any], **columns: Any) -> list[float | None]:
        references = reference_texts(columns, len(completions))
        answers = [extract_answer(text).text for text in completion_texts(completions)]
        return [float(self._accepts(*pair)) for pair in zip(answers, references, strict=True)]

    def _accepts(self, answer: str, reference: str) -> bool:
        reference = normalised(reference)
        number = the_number(reference) if _WHOLLY_NUMBER.fullmatch(reference) else None
        if number is None:
            # No answer must not equal a reference of periods alone.
            return bool(answer) and normalised(answer) == reference
        is_year = self.years_exact and _YEAR.fullmatch(reference)
        within = NumberWithin(0.0 if is_year else self.rel_tol, 0.0, self.__name__)
        return within.accepts(the_number(answer), number)


def chart_relaxed(rel_tol: float = 0.05, years_exact: bool = True) -> ChartRelaxed:
    """Reward function: the "relaxed accuracy" of ChartQA (arXiv:2203.10244, section 5).

    Where the whole reference is a number (``1,234``, ``$12``, ``12%``), 1.0 if the answer names
    one number and |answer - reference| <= rel_tol * |reference|, by the reading of ``number``: a
    percent sign that one side leaves out does not matter. Where it is text, also text with a
    number in it ("Galaxy 7"), 1.0 if equal but for case, spacing and a trailing period. Else 0.0.

    The published metric gives 5 % to years as well, so that any recent year passes for any other.
    A reference of four digits from 1800 to 2100 must therefore be met exactly, unless
    ``years_exact=False``, which is for numbers to set beside published ones.

    Columns: ``answer`` (or ``solution``). Raises ValueError unless 0 <= rel_tol < 1, and for a
    row without a reference.
    """
    if not (math.isfinite(rel_tol) and 0 <= rel_tol < 1):
        raise ValueError(f"rel_tol is {rel_tol}; it must be at least 0 and below 1 (0.05 is 5 %)")
    return ChartRelaxed(float(rel_tol), bool(years_exact))
