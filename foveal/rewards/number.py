r"""Numbers within a tolerance.

Read as one number: ``1,234.5``, ``-3``, ``−3``, ``.5``, ``2e3``, ``2 \times 10^{3}``, ``10^-3``,
``3/4``, ``\frac{3}{4}``, ``12%``, ``$12``, ``12 cm^2``, ``x = 12``. A text with two different
numbers in it (``2 or 3``, ``1 + 2 = 3``), with a power, a root or pi names none.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from foveal.rewards.extract import completion_texts, extract_answer, reference_texts

_MINUS = str.maketrans({"−": "-"})
_NOT_PLAIN = re.compile(r"\\(?:pi|sqrt|log|ln|sin|cos|tan|exp|infty)\b|[π√∞]")
_RAISED = "\u00b2\u00b3\u00b9\u2070-\u207e"
_FRACTIONS = "\u00bc-\u00be\u2150-\u215e\u2189"
_DECIMAL = r"(?:\d{1,3}(?:(?:,|\{,\})\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+"
_NUMBER = re.compile(
    rf"""(?<![\w.^/])(?<!\^\{{)              # not inside a word, an exponent or a date
    (?<!\^[-+])(?<!\^\{{[-+])
    (?P<sign>[-+]?)(?:\\?[$€£¥])?
    (?:
        \\[dt]?frac\{{\s*(?P<over>-?(?:{_DECIMAL}))\s*\}}\{{\s*(?P<under>-?(?:{_DECIMAL}))\s*\}}
      | 10\s*(?:\^|\*\*)\s*\{{?(?P<power>[-+]?\d+)\}}?
      | (?P<digits>{_DECIMAL})
        (?: [eE](?P<exponent>[-+]?\d+)
          | \s*(?:\\times|\\cdot|[x×*·])\s*10\s*(?:\^|\*\*)\s*\{{?(?P<times>[-+]?\d+)\}}?
          | \s*/\s*(?P<divisor>{_DECIMAL})
        )?
    )
    (?!\.?\d|\s*\*\*\s*\d|\s*/\s*\d)     # nor cut short, raised or divided once more
    (?!\s*\^(?!\s*\{{?\s*\\circ\b))       # 12^2; but 12^\circ
    (?![{_RAISED}]|\s*[{_FRACTIONS}])         # as one sign: 12², 12½
    (?P<percent>\s*(?:\\?%|per\s?cent\b))?""",
    re.VERBOSE,
)


@dataclass(frozen=True, slots=True)
class Number:
    """``12%`` has ``bare`` 12, ``percent`` True and ``value`` 0.12."""

    bare: float
    percent: bool = False

    @property
    def value(self) -> float:
        return self.bare / 100 if self.percent else self.bare


def the_number(text: str) -> Number | None:
    """The one finite number in ``text`` (repeated is fine), or None if there is none or several."""
    text = text.translate(_MINUS)
    if _NOT_PLAIN.search(text):
        return None
    found = {_read(match) for match in _NUMBER.finditer(text)}
    return found.pop() if len(found) == 1 else None


def number_and_rest(text: str) -> tuple[Number, str] | None:
    """The one number in ``text``, written once, and the text after it; else None."""
    text = text.translate(_MINUS)
    matches = list(_NUMBER.finditer(text))
    number = the_number(text)
    return None if number is None or len(matches) > 1 else (number, text[matches[0].end() :])


def _read(match: re.Match[str]) -> Number | None:
    """A match as a number; None if it divides by zero or overflows."""
    if match["power"]:
        value = float(f"1e{match['power']}")
    elif match["over"]:
        value = _ratio(_decimal(match["over"]), _decimal(match["under"]))
    else:
        exponent = match["exponent"] or match["times"] or "0"
        divisor = _decimal(match["divisor"]) if match["divisor"] else 1.0
        value = _ratio(float(f"{_digits(match['digits'])}e{exponent}"), divisor)
    if not math.isfinite(value):
        return None
    return Number(-value if match["sign"] == "-" else value, percent=bool(match["percent"]))


def _digits(text: str) -> str:
    return text.replace("{,}", "").replace(",", "")


def _decimal(text: str) -> float:
    return float(_digits(text))


def _ratio(over: float, under: float) -> float:
    return over / under if under else math.nan


@dataclass(frozen=True)
class NumberWithin:
    """The reward function that ``number_within`` returns; a class so that it can be pickled."""

    rel_tol: float
    abs_tol: float
    name: str

    @property
    def __name__(self) -> str:
        """What the metrics call it."""
        return self.name

    def __call__(self, completions: Sequence[Any], **columns: Any) -> list[float | None]:
        references = [the_number(text) for text in reference_texts(columns, len(completions))]
        answers = [the_number(extract_answer(t).text) for t in completion_texts(completions)]
        return [
            None if reference is None else float(self.accepts(answer, reference))
            for answer, reference in zip(answers, references, strict=True)
        ]

    def accepts(self, answer: Number | None, reference: Number) -> bool:
        if answer is None:
            return False
        # The second differs from the first only where one side alone has a percent sign.
        return self._close(answer.value, reference.value) or self._close(
            answer.bare, reference.bare
        )

    def _close(self, answer: float, reference: float) -> bool:
        return abs(answer - reference) <= max(self.abs_tol, self.rel_tol * abs(reference))


def number_within(rel_tol: float = 0.0, abs_tol: float = 0.0) -> NumberWithin:
    """Reward function: 1.0 if |answer - reference| <= max(abs_tol, rel_tol * |reference|).

    ``number_within(rel_tol=0.05)`` is the "relaxed accuracy" of ChartQA (arXiv:2203.10244,
    section 5). Else 0.0; None where the reference is not one number (a mixed data set). A percent
    sign divides by 100; where only one side has it, the numbers as written may match too, since
    data sets often leave it out. Several different numbers in the answer, or in a text without
    tags, box or "answer is", earn nothing.

    Columns: ``answer`` (or ``solution``). Raises ValueError for a tolerance that is negative or
    not finite, and when called for a row that has no reference.
    """
    for name, value in {"rel_tol": rel_tol, "abs_tol": abs_tol}.items():
        if not (math.isfinite(value) and value >= 0):
            raise ValueError(f"{name} is {value}; it must be finite and at least 0")
    return NumberWithin(rel_tol, abs_tol, f"number_within_{rel_tol:g}_{abs_tol:g}")


number_answer = NumberWithin(rel_tol=1e-4, abs_tol=1e-9, name="number_answer")
"""``number_within`` for rounding differences only: whole numbers below 10,000 must be exact."""
