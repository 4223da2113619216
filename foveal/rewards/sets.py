"""Sets of items in any order: ``cat, dog``, ``cat; dog``, one a line, or ``["cat", "dog"]``.

Items are compared but for case, spacing and a trailing period. What separates them is a line break
if there is one, else a semicolon, else a comma; a bullet, a number with a period and an "and" in
front of an item are dropped. An item that occurs twice is two items. "cat and dog" without a
comma is one.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from foveal.rewards.extract import (
    completion_texts,
    extract_answer,
    normalised,
    reference_values,
)
from foveal.rewards.json_text import answered_json, decoded, is_number

_IN_FRONT = re.compile(r"\s*(?:[-*•]\s+|\d+[.)]\s+|and\s+)?", re.IGNORECASE)
_PAIRS = {"[": "]", "{": "}"}


def exact_set(completions: Sequence[Any], **columns: Any) -> list[float | None]:
    """1.0 where the answer holds the items of the reference and no others, in any order, else 0.0.

    Columns: ``answer`` (or ``solution``), text or lists. An empty reference list is met by ``[]``.
    Raises ValueError naming a row that has neither, TypeError for a reference that is no list of
    texts and numbers.
    """
    return [float(answer == reference) for answer, reference in _answered(completions, columns)]


@dataclass(frozen=True)
class SetF1:
    """The reward function that ``set_f1`` returns; a class so that it can be pickled."""

    max_extra: int

    __name__ = "set_f1"

    def __call__(self, completions: Sequence[Any], **columns: Any) -> list[float | None]:
        return [self._score(*pair) for pair in _answered(completions, columns)]

    def _score(self, answer: Counter[str] | None, reference: Counter[str]) -> float:
        if answer is None:
            return 0.0
        given, wanted = answer.total(), reference.total()
        if given > wanted + self.max_extra:
            return 0.0
        return 2 * (answer & reference).total() / (given + wanted) if given + wanted else 1.0


def set_f1(max_extra: int = 1) -> SetF1:
    """Reward function: F1 of the answer's items against the reference's, in [0, 1].

    An answer with more than ``max_extra`` items beyond the reference's number earns 0, so that
    listing whatever might be there does not pay. Columns and errors as in ``exact_set``. Raises
    ValueError for a negative ``max_extra``.
    """
    if not isinstance(max_extra, int) or max_extra < 0:
        raise ValueError(f"max_extra is {max_extra}; it must be a whole number from 0 on")
    return SetF1(max_extra)


def _answered(
    completions: Sequence[Any], columns: Mapping[str, Any]
) -> list[tuple[Counter[str] | None, Counter[str]]]:
    references = [
        _reference_items(value, row)
        for row, value in enumerate(reference_values(columns, len(completions)))
    ]
    answers = [items(answered_json(text)) for text in completion_texts(completions)]
    return list(zip(answers, references, strict=True))


def _reference_items(value: Any, row: int) -> Counter[str]:
    if isinstance(value, str):
        found = items(extract_answer(value).text)
    else:
        found = _counted(value if isinstance(value, list | tuple) else [value])
    if found is None:
        raise TypeError(
            f"row {row}: the reference {value!r:.80} is no set of items; give a list of texts and "
            "numbers, or a text like 'cat, dog'"
        )
    return found


def items(text: str) -> Counter[str] | None:
    """The items of ``text`` and how often each occurs; None if it is blank or other JSON."""
    text = text.strip()
    try:
        value = decoded(text)
    except ValueError:
        return _split(text)
    return _counted(value if isinstance(value, list) else [value])


def _counted(values: Sequence[Any]) -> Counter[str] | None:
    if not all(isinstance(value, str) or is_number(value) for value in values):
        return None
    return Counter(_item(value) for value in values)


def _item(value: str | int | float) -> str:
    whole = isinstance(value, float) and value.is_integer()
    return normalised(str(int(value) if whole else value))


def _split(text: str) -> Counter[str] | None:
    if text and _PAIRS.get(text[0]) == text[-1]:
        text = text[1:-1]
    separator = next((mark for mark in "\n;," if mark in text), ",")
    pieces = (_IN_FRONT.sub("", piece, count=1) for piece in text.split(separator))
    return Counter(item for piece in pieces if (item := normalised(piece.strip("\"'`* ")))) or None
