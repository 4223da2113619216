"""Worked solutions: lines such as ``x = 180° − {50}° − {60}°``, one of whose numbers is left out.

Braces mark the numbers that may be left out; a left-out number is printed as ``□``. ``solve_line``
finds it again, as the solution of an equation that is linear in the box.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from fractions import Fraction

from foveal.tasks.dice import Dice
from foveal.tasks.lettering import BOX

_BRACED = re.compile(r"\{([^}]*)\}")
_TOKEN = re.compile(rf"\d+(?:\.\d+)?|[A-Za-z]|[-+−·×÷:()=]|{BOX}")


def leave_out(dice: Dice, steps: Sequence[str]) -> tuple[list[str], int, str]:
    """The steps with one number as a box, the index of its line, and the number."""
    places = [(i, match) for i, line in enumerate(steps) for match in _BRACED.finditer(line)]
    at, hidden = dice.pick(places)
    lines = [
        _BRACED.sub(lambda match: match[1], line)
        if i != at
        else _BRACED.sub(lambda m: BOX if m.span() == hidden.span() else m[1], line)
        for i, line in enumerate(steps)
    ]
    return lines, at, hidden[1].replace("−", "-")


def solve_line(line: str, letters: Mapping[str, Fraction]) -> Fraction:
    """The number that belongs in the box of an equation, with decimal points.

    Raises:
        ValueError: if the line has no box, no second side, or is not linear in the box.
    """
    sides = line.split("=")
    boxed = [side for side in sides if BOX in side]
    others = [side for side in sides if BOX not in side]
    if len(boxed) != 1 or not others:
        raise ValueError(f"{line!r} must have one side with a box and one without")
    wanted = evaluate(others[0], letters)
    at = [evaluate(boxed[0], {**letters, BOX: Fraction(box)}) - wanted for box in range(3)]
    if at[1] - at[0] != at[2] - at[1] or at[1] == at[0]:
        raise ValueError(f"{line!r} is not linear in its box")
    return -at[0] / (at[1] - at[0])


def evaluate(text: str, letters: Mapping[str, Fraction]) -> Fraction:
    """A sum of products with brackets; a letter or bracket after a number is multiplied."""
    tokens = _TOKEN.findall(text)
    value, rest = _sum(tokens, letters)
    if rest:
        raise ValueError(f"{text!r} cannot be read from {rest[0]!r} on")
    return value


def _sum(tokens: list[str], letters: Mapping[str, Fraction]) -> tuple[Fraction, list[str]]:
    value, tokens = _product(tokens, letters)
    while tokens and tokens[0] in "+-−":
        sign = 1 if tokens[0] == "+" else -1
        term, tokens = _product(tokens[1:], letters)
        value += sign * term
    return value, tokens


def _product(tokens: list[str], letters: Mapping[str, Fraction]) -> tuple[Fraction, list[str]]:
    value, tokens = _factor(tokens, letters)
    while tokens and tokens[0] not in "+-−)=":
        divides = tokens[0] in "÷:"
        factor, tokens = _factor(tokens[1:] if tokens[0] in "·×÷:" else tokens, letters)
        value = value / factor if divides else value * factor
    return value, tokens


def _factor(tokens: list[str], letters: Mapping[str, Fraction]) -> tuple[Fraction, list[str]]:
    if not tokens:
        raise ValueError("an expression ends where a number should follow")
    first, rest = tokens[0], tokens[1:]
    if first in "-−":
        value, rest = _factor(rest, letters)
        return -value, rest
    if first == "(":
        value, rest = _sum(rest, letters)
        return value, rest[1:]
    if first in letters:
        return letters[first], rest
    if not first[0].isdigit():
        raise ValueError(f"the letter {first!r} has no value; there are {sorted(letters)}")
    return Fraction(first), rest
