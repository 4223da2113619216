"""Quantities: a number and its unit, in any unit of the same kind."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from foveal.rewards.extract import completion_texts, extract_answer, reference_texts
from foveal.rewards.number import number_and_rest
from foveal.rewards.units import Unit, read_unit


@dataclass(frozen=True, slots=True)
class Quantity:
    """``value`` times ``unit``; ``bare`` if no unit and no percent sign is written."""

    value: float
    unit: Unit
    bare: bool


def the_quantity(text: str) -> Quantity | None:
    """The one quantity that ``text`` ends with; None for several numbers or an unknown unit."""
    found = number_and_rest(text)
    unit = None if found is None else read_unit(found[1])
    if found is None or unit is None:
        return None
    return Quantity(found[0].value, unit, bare=unit == Unit() and not found[0].percent)


@dataclass(frozen=True)
class QuantityWithin:
    """The reward function that ``quantity_within`` returns; a class so that it can be pickled."""

    rel_tol: float
    abs_tol: float
    needs_unit: bool

    __name__ = "quantity_within"

    def __call__(self, completions: Sequence[Any], **columns: Any) -> list[float | None]:
        references = [the_quantity(text) for text in reference_texts(columns, len(completions))]
        answers = [the_quantity(extract_answer(t).text) for t in completion_texts(completions)]
        return [
            None if reference is None else float(self._accepts(answer, reference))
            for answer, reference in zip(answers, references, strict=True)
        ]

    def _accepts(self, answer: Quantity | None, reference: Quantity) -> bool:
        if answer is None:
            return False
        if answer.bare and not self.needs_unit:
            value = answer.value
        elif answer.unit.exponents != reference.unit.exponents:
            return False
        else:
            value = answer.value * answer.unit.factor / reference.unit.factor
        allowed = max(self.abs_tol, self.rel_tol * abs(reference.value))
        return abs(value - reference.value) <= allowed


def quantity_within(
    rel_tol: float = 0.01, abs_tol: float = 0.0, needs_unit: bool = True
) -> QuantityWithin:
    """Reward function: 1.0 for the reference's quantity in any unit of the same kind, else 0.0.

    ``0.12 m`` answers ``12 cm``: the answer is converted to the reference's unit, and right if
    |answer - reference| <= max(abs_tol, rel_tol * |reference|) there. A unit of another kind, an
    unknown one, two numbers, or words after the unit earn 0. So does a number without its unit,
    unless ``needs_unit=False``: then it counts as given in the reference's. Percent divide by 100,
    and 12 is not 12 %. None where the reference is no number with a known unit or none (a mixed
    data set). ``units`` says which are known.

    Columns: ``answer`` (or ``solution``). Raises ValueError for a tolerance that is negative or
    not finite, and for a row without a reference.
    """
    for name, value in {"rel_tol": rel_tol, "abs_tol": abs_tol}.items():
        if not (math.isfinite(value) and value >= 0):
            raise ValueError(f"{name} is {value}; it must be finite and at least 0")
    return QuantityWithin(float(rel_tol), float(abs_tol), bool(needs_unit))
