"""Exercises whose figure is measured: a triangle, a number line, a straight line on a grid.

Each is three functions: ``make_*`` draws an exercise from the dice, ``draw_*`` prints its figure,
``letters_*`` measures the unknowns on the figure's points, without the answer.
"""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

from foveal.tasks.base import plain
from foveal.tasks.dice import Dice
from foveal.tasks.textbook.page import AREA, WIDTH, Exercise, Pen, signed, unsigned

Letters = dict[str, Fraction]


def make_triangle(dice: Dice, difficulty: int) -> Exercise:
    step = (10, 5, 1, 1, 1)[difficulty - 1]
    while True:
        a, b = (dice.between(30 // step, 105 // step) * step for _ in range(2))
        x = 180 - a - b
        if 30 <= x <= 105:
            break
    outside = difficulty > 2 and dice.below(2) == 1
    side = math.sin(math.radians(b)) / math.sin(math.radians(x))
    raw = [(0.0, 0.0), (1.0, 0.0), (side * _cos(a), side * _sin(a))]
    # The base may lean, and either corner may be left: x stays at the top.
    lean, mirror = math.radians(dice.uniform(-12, 12)), dice.pick((1, -1))
    if outside:
        raw.append((-0.35, 0.0))
    turned = [
        (
            mirror * (u * math.cos(lean) - v * math.sin(lean)),
            -u * math.sin(lean) - v * math.cos(lean),
        )
        for u, v in raw
    ]
    facts = {"points": _fitted(turned), "asked": [0, 2, 1], "outside": outside, "angles": [a, b]}
    steps = [f"x = 180° − {{{a}}}° − {{{b}}}°", f"x = 180° − {{{a + b}}}°", f"x = {{{x}}}°"]
    if outside:
        steps.insert(0, f"180° − {{{180 - a}}}° = {{{a}}}°")
    return Exercise("x", facts, str(x), steps)


def _cos(degrees: float) -> float:
    return math.cos(math.radians(degrees))


def _sin(degrees: float) -> float:
    return math.sin(math.radians(degrees))


def _fitted(points: list[tuple[float, float]]) -> list[list[float]]:
    """Scaled and moved into the middle of the figure."""
    xs, ys = zip(*points, strict=True)
    width, height = max(xs) - min(xs), max(ys) - min(ys)
    scale = min((WIDTH - 90) / width, (AREA - 26) / height)
    left, top = (WIDTH - width * scale) / 2, (AREA - height * scale) / 2
    return [[left + (x - min(xs)) * scale, top + (y - min(ys)) * scale] for x, y in points]


def draw_triangle(pen: Pen, facts: dict[str, Any]) -> None:
    points = facts["points"]
    pen.line([*points[:3], points[0]])
    if facts["outside"]:
        pen.line([points[0], points[3]])
        _angle(pen, points[3], points[0], points[2], f"{180 - facts['angles'][0]}°")
    else:
        _angle(pen, points[1], points[0], points[2], f"{facts['angles'][0]}°")
    _angle(pen, points[0], points[1], points[2], f"{facts['angles'][1]}°")
    _angle(pen, points[0], points[2], points[1], "x")


def _angle(pen: Pen, first: Any, at: Any, last: Any, text: str) -> None:
    a = math.degrees(math.atan2(first[1] - at[1], first[0] - at[0])) % 360
    b = math.degrees(math.atan2(last[1] - at[1], last[0] - at[0])) % 360
    start, sweep = (a, (b - a) % 360) if (b - a) % 360 <= 180 else (b, (a - b) % 360)
    pen.canvas.arc(pen.at(*at), 19, (start, start + sweep), pen.mark, 1.5)
    out = 24 + pen.size * 0.3 * (1 + len(text)) + max(0, 60 - sweep) * 0.4
    middle = start + sweep / 2
    pen.put((at[0] + out * _cos(middle), at[1] + out * _sin(middle)), text, pen.mark)


def letters_triangle(facts: dict[str, Any]) -> Letters:
    first, at, last = (facts["points"][i] for i in facts["asked"])
    a = math.atan2(first[1] - at[1], first[0] - at[0])
    b = math.atan2(last[1] - at[1], last[0] - at[0])
    turn = abs(math.degrees(a - b)) % 360
    return {"x": Fraction(round(min(turn, 360 - turn)))}


def make_line(dice: Dice, difficulty: int) -> Exercise:
    """Two marks of the line have numbers; the arrow points to another one, or to half a part."""
    parts = dice.pick(((5, 10), (4, 5), (4, 5, 8), (5, 8), (4, 8))[difficulty - 1])
    step = Fraction(dice.pick((1, 2, 5, 10, 20) if difficulty < 3 else (1, 2, 3, 4, 5, 6, 15)))
    if difficulty > 1:
        step /= dice.pick((1, 2, 5, 10))
    low = dice.between(-2 * parts if difficulty > 2 else 0, 12) * step
    total = parts + dice.between(1, 3)
    at = dice.pick([i for i in range(1, total) if i != parts])
    value, high = low + at * step, low + parts * step
    facts = {
        "from": float(low),
        "to": float(high),
        "parts": parts,
        "total": total,
        "left": 34.0,
        "width": (WIDTH - 68.0) / total,
        "arrow": 34.0 + at * (WIDTH - 68.0) / total,
    }
    texts = {name: unsigned(float(v)) for name, v in (("s", step), ("v", value), ("d", high - low))}
    steps = [
        f"{unsigned(float(high))} − {signed(float(low))} = {{{texts['d']}}}",
        f"{texts['d']} ÷ {parts} = {{{texts['s']}}}",
        f"A = {unsigned(float(low))} + {{{at}}} · {texts['s']}",
        f"A = {{{texts['v']}}}",
    ]
    return Exercise("A", facts, plain(float(value)), steps)


def draw_line(pen: Pen, facts: dict[str, Any]) -> None:
    y, left, width = AREA * 0.56, facts["left"], facts["width"]
    right = left + width * facts["total"]
    pen.line([(left - 14, y), (right + 16, y)])
    pen.line([(right + 9, y - 5), (right + 16, y), (right + 9, y + 5)])
    for i in range(facts["total"] + 1):
        named = i in (0, facts["parts"])
        x, reach = left + i * width, 10 if named else 7
        pen.line([(x, y - reach), (x, y + reach)], width=2 if named else 1.2)
        if named:
            pen.put((x, y + 26), pen.number(facts["to"] if i else facts["from"]))
    x = facts["arrow"]
    pen.line([(x, y - 52), (x, y - 4)], pen.mark, 2)
    pen.line([(x - 5, y - 12), (x, y - 3), (x + 5, y - 12)], pen.mark, 2)
    pen.put((x, y - 64), "A", pen.mark, larger=3)


def letters_line(facts: dict[str, Any]) -> Letters:
    share = (facts["arrow"] - facts["left"]) / (facts["width"] * facts["parts"])
    value = facts["from"] + share * (facts["to"] - facts["from"])
    return {"A": Fraction(round(value * 1000), 1000)}


CELL = 16.0
COLUMNS, ROWS = 12, 10


def make_slope(dice: Dice, difficulty: int) -> Exercise:
    """A line through two marked points of the grid; its y intercept may lie outside."""
    while True:
        run = dice.pick((1, 2, 4) if difficulty < 3 else (2, 4, 5))
        rise = dice.pick([n for n in range(-6, 7) if n and (difficulty > 1 or n > 0)])
        x1, y1 = dice.between(-4, 5), dice.between(-4, 4)
        slope = Fraction(rise, run)
        crossing = y1 - slope * x1
        if x1 + run <= 7 and -4 <= y1 + rise <= 5 and (crossing * 10).denominator == 1:
            break
    what = "b" if dice.below(2) else "m"
    points = [[_place(x1, y1)[0], _place(x1, y1)[1]], [*_place(x1 + run, y1 + rise)]]
    m, b = unsigned(float(slope)), unsigned(float(crossing))
    steps = [
        f"m = ({{{unsigned(y1 + rise)}}} − {_braced(y1)}) ÷ ({unsigned(x1 + run)} − {signed(x1)})",
        f"m = {{{unsigned(rise)}}} ÷ {run}",
        f"m = {{{m}}}",
    ]
    if what == "b":
        steps = [steps[0], steps[2]]
        steps += [f"b = {unsigned(y1)} − {signed(float(slope))} · {_braced(x1)}", f"b = {{{b}}}"]
    facts = {"points": points, "origin": list(_place(0, 0)), "cell": CELL}
    return Exercise(what, facts, plain(float(slope if what == "m" else crossing)), steps)


def _braced(value: float) -> str:
    """A number that may be left out; its brackets stay."""
    text = unsigned(value)
    return f"({{{text}}})" if value < 0 else f"{{{text}}}"


def _place(x: float, y: float) -> tuple[float, float]:
    """Pixels of a point; x from -5 to 7, y from -5 to 5."""
    left = (WIDTH - COLUMNS * CELL) / 2
    return left + (x + 5) * CELL, 8 + (5 - y) * CELL


def draw_slope(pen: Pen, facts: dict[str, Any]) -> None:
    left, top = _place(-5, 5)
    right, bottom = _place(7, -5)
    grey = (205, 210, 216)
    for i in range(COLUMNS + 1):
        pen.line([(left + i * CELL, top), (left + i * CELL, bottom)], grey, 0.7)
    for i in range(ROWS + 1):
        pen.line([(left, top + i * CELL), (right, top + i * CELL)], grey, 0.7)
    x0, y0 = facts["origin"]
    pen.line([(left, y0), (right + 8, y0)], width=1.4)
    pen.line([(x0, bottom), (x0, top - 6)], width=1.4)
    pen.put((right + 14, y0), "x")
    pen.put((x0 + 11, top - 4), "y")
    _through(pen, facts["points"], (left, top, right, bottom))
    for point in facts["points"]:
        pen.canvas.disc(pen.at(*point), 3.6, pen.mark)
    # Over the line, which would cross some of them out.
    for n in (-4, -2, 2, 4, 6):
        pen.put((x0 + n * CELL, y0 + 8), unsigned(n), larger=-3)
        if n < 6:
            pen.put((x0 - 5, y0 - n * CELL), unsigned(n), anchor="r", larger=-3)


def _through(pen: Pen, points: Any, frame: tuple[float, float, float, float]) -> None:
    """The line through two points as far as the frame."""
    (x1, y1), (x2, y2) = points
    left, top, right, bottom = frame
    ends = []
    for share in sorted(
        (edge - start) / (end - start)
        for start, end, edges in ((x1, x2, (left, right)), (y1, y2, (top, bottom)))
        for edge in edges
    ):
        ends.append((x1 + share * (x2 - x1), y1 + share * (y2 - y1)))
    # Of the four crossings with the frame's lines, the middle two lie on the frame.
    pen.line(ends[1:3], pen.mark, 1.8)


def letters_slope(facts: dict[str, Any]) -> Letters:
    (x1, y1), (x2, y2) = facts["points"]
    x0, y0 = facts["origin"]
    slope = -(y2 - y1) / (x2 - x1)
    crossing = (y0 - (y1 + (x0 - x1) * -slope)) / facts["cell"]
    return {"m": Fraction(round(slope * 1000), 1000), "b": Fraction(round(crossing * 1000), 1000)}
