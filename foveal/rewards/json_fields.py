"""A JSON object, field by field: receipts, forms, attributes."""

from __future__ import annotations

import math
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

_Fields = dict[tuple[str | int, ...], Any]
"""Path of keys and list places -> text, number, bool, None, or an empty object or list."""


@dataclass(frozen=True)
class JsonFields:
    """The reward function that ``json_fields`` returns; a class so that it can be pickled."""

    rel_tol: float
    abs_tol: float

    __name__ = "json_fields"

    def __call__(self, completions: Sequence[Any], **columns: Any) -> list[float | None]:
        references = [
            _reference_fields(value) for value in reference_values(columns, len(completions))
        ]
        answers = [_parsed(answered_json(text)) for text in completion_texts(completions)]
        return [
            None if reference is None else 0.0 if answer is None else self._score(answer, reference)
            for answer, reference in zip(answers, references, strict=True)
        ]

    def _score(self, answer: _Fields, reference: _Fields) -> float:
        shared = answer.keys() & reference.keys()
        right = sum(self._equal(answer[path], reference[path]) for path in shared)
        return right / len(answer.keys() | reference.keys())

    def _equal(self, answer: Any, reference: Any) -> bool:
        if is_number(reference):
            return is_number(answer) and self._close(answer, reference)
        if isinstance(reference, str):
            # 12 for "12" is a matter of quotes; a bool or an object is not.
            text = str(answer) if is_number(answer) else answer
            return isinstance(text, str) and normalised(text) == normalised(reference)
        return type(answer) is type(reference) and answer == reference

    def _close(self, answer: float, reference: float) -> bool:
        if answer == reference:
            return True
        try:
            off = abs(float(answer) - float(reference))
        except OverflowError:  # a whole number beyond every float
            return False
        return off <= max(self.abs_tol, self.rel_tol * abs(reference))


def json_fields(rel_tol: float = 1e-4, abs_tol: float = 1e-9) -> JsonFields:
    """Reward function: fields of a JSON object that are right / fields in either object, in [0, 1].

    A field is a value at the end of its keys, so ``{"total": {"net": 3, "tax": 1}, "items": [7]}``
    has three; the places of a list count as keys. Numbers are right where |answer - reference| <=
    max(abs_tol, rel_tol * |reference|), text where it is equal but for case, spacing and a
    trailing period, anything else where it is the same. A field that the reference does not have
    costs as much as one that is missing. What is no JSON object, or gives a key twice, earns 0.

    Columns: ``answer`` (or ``solution``), JSON text or the decoded object; None where that is no
    object (a mixed data set). Prefer text: a data set of objects gives every row the keys of all
    the others, filled with None, and those would count. Raises ValueError for a tolerance that is
    negative or not finite, and for a row without a reference.
    """
    for name, value in {"rel_tol": rel_tol, "abs_tol": abs_tol}.items():
        if not (math.isfinite(value) and value >= 0):
            raise ValueError(f"{name} is {value}; it must be finite and at least 0")
    return JsonFields(float(rel_tol), float(abs_tol))


def _reference_fields(value: Any) -> _Fields | None:
    return _parsed(extract_answer(value).text) if isinstance(value, str) else _fields(value)


def _parsed(text: str) -> _Fields | None:
    try:
        return _fields(decoded(text))
    except ValueError:
        return None


def _fields(value: Any) -> _Fields | None:
    """The fields of an object, None if it is none. A loop: the answer may be nested deeply."""
    if not isinstance(value, Mapping):
        return None
    fields: _Fields = {}
    waiting: list[tuple[tuple[str | int, ...], Any]] = [((), value)]
    while waiting:
        path, value = waiting.pop()
        if isinstance(value, Mapping) and value:
            waiting.extend(((*path, str(key)), inner) for key, inner in value.items())
        elif isinstance(value, list | tuple) and value:
            waiting.extend(((*path, place), inner) for place, inner in enumerate(value))
        else:
            fields[path] = list(value) if isinstance(value, tuple) else value
    return fields
