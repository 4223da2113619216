"""Plane geometry from a diagram alone: the givens stand in the picture, not in the question.

    triangle     two angles given, the third asked for; one angle may be "2x+10"
    isosceles    the angle between two equal sides given, or one at the base
    parallel     a line across two parallels: corresponding, alternate or co-interior angles
    circle       an angle at the rim, over the same arc as the one at the centre
    right        two sides of a right triangle: the third one, or the area
    block        the area or the perimeter of an L of right angles

The answer is drawn first and points are placed so that it holds, turned by any angle; pictures are
true to scale. ``reference_answer`` knows nothing of that: it measures the points.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

from foveal.tasks.base import Drawn, DrawnTask, plain
from foveal.tasks.canvas import INKS, PALETTE, PAPERS, Canvas, Colour, Point
from foveal.tasks.dice import Dice

SIZE = 280
MARGIN = 44
TRIPLES = ((3, 4, 5), (5, 12, 13), (8, 15, 17), (7, 24, 25), (20, 21, 29), (9, 40, 41))
LETTERS = "ABCDEFGHKLMNPQRST"

TEMPLATES = {
    "x": ("Find x.", "What is the value of x?", "Solve for x."),
    "angle": (
        "How many degrees is the angle marked with a question mark?",
        "Find the angle marked ?, in degrees.",
    ),
    "length": ("How long is the side marked ?", "Find the length marked with a question mark."),
    "area": ("What is the area of the figure?", "Find the area of the figure."),
    "perimeter": ("What is the perimeter of the figure?", "How long is the way round the figure?"),
}


class GeometryTask(DrawnTask):
    """The task family "geometry"."""

    name: str = "geometry"
    kinds: ClassVar[tuple[str, ...]] = (
        "triangle",
        "isosceles",
        "parallel",
        "circle",
        "right",
        "block",
    )

    def draw(self, dice: Dice, difficulty: int) -> Drawn:
        kind = dice.pick(self.kinds[: 3 + (difficulty > 1) + 2 * (difficulty > 2)])
        figure = {
            "triangle": _triangle,
            "isosceles": _isosceles,
            "parallel": _parallel,
            "circle": _circle,
            "right": _right,
            "block": _block,
        }[kind](dice, difficulty)
        answer = str(figure.pop("answer"))
        _place(dice, figure)
        picture = _draw(dice, figure, difficulty)
        question = dice.pick(TEMPLATES[figure["what"]])
        for name in ("angles", "lengths"):
            figure[name] = [{"points": item[:-1], "text": item[-1]} for item in figure[name]]
        return Drawn(picture, question, answer, {"kind": kind, **figure, "tolerance": 0.0})

    def reference_answer(self, metadata: dict[str, Any]) -> str:
        """Measured on the points of the figure, which are in pixels."""
        points, asked, unit = metadata["points"], metadata["asked"], metadata["unit"]
        if metadata["what"] in ("x", "angle"):
            first, at, last = (points[i] for i in asked)
            a = math.atan2(first[1] - at[1], first[0] - at[0])
            b = math.atan2(last[1] - at[1], last[0] - at[0])
            degrees = abs(math.degrees(a - b)) % 360
            degrees = min(degrees, 360 - degrees)
            factor, shift = metadata["expression"]
            return plain(round((degrees - shift) / factor))
        corners = [points[i] for i in asked]
        sides = list(zip(corners, corners[1:] + corners[:1], strict=True))
        if metadata["what"] == "length":
            return plain(round(math.dist(*corners) / unit))
        if metadata["what"] == "perimeter":
            return plain(round(sum(math.dist(a, b) for a, b in sides) / unit))
        twice = sum(a[0] * b[1] - b[0] * a[1] for a, b in sides)
        return plain(round(abs(twice) / 2 / unit**2))


def _figure(points: Sequence[Point], lines: list[list[int]], **more: Any) -> dict[str, Any]:
    """``angles`` and ``lengths`` are what is written: point indices and the text."""
    parts = {"angles": [], "lengths": [], "right": [], "ticks": [], "arrows": [], "rim": []}
    rest = {"points": list(points), "lines": lines, "expression": [1, 0], "unit": 0.0}
    return {**parts, **rest, **more}


def _expression(dice: Dice, degrees: int, difficulty: int) -> tuple[str, list[int], str, int]:
    """Text, [factor, shift], what is asked, answer: "?" or a linear expression of that angle."""
    if dice.below(6) >= difficulty + 1:
        return "?", [1, 0], "angle", degrees
    options = [(factor, (degrees - x * factor), x) for factor in (2, 3, 4, 5) for x in range(5, 60)]
    factor, shift, x = dice.pick([o for o in options if 0 < abs(o[1]) <= 40])
    return f"{factor}x{shift:+d}°" if shift < 0 else f"{factor}x+{shift}°", [factor, shift], "x", x


def _triangle(dice: Dice, difficulty: int) -> dict[str, Any]:
    step = 10 if difficulty == 1 else 5 if difficulty == 2 else 1
    while True:
        a, b = (dice.between(28 // step + 1, 110 // step) * step for _ in range(2))
        if 28 <= 180 - a - b <= 110:
            break
    c = 180 - a - b
    text, expression, what, answer = _expression(dice, c, difficulty)
    lines = [[0, 1], [1, 2], [2, 0]]
    angles: list[Any] = [[1, 0, 2, f"{a}°"], [0, 1, 2, f"{b}°"], [0, 2, 1, text]]
    points = _triangle_points(a, b)
    if difficulty >= 4 and dice.below(2):
        # The first angle is told by the one outside, on the line through the base.
        points.append((-0.45, 0.0))
        lines.append([0, 3])
        angles[0] = [3, 0, 2, f"{180 - a}°"]
    more = {"what": what, "answer": answer, "expression": expression}
    return _figure(points, lines, angles=angles, asked=[0, 2, 1], **more)


def _triangle_points(a: float, b: float) -> list[Point]:
    """The base from (0, 0) to (1, 0), angles ``a`` and ``b`` at it."""
    c = 180 - a - b
    side = math.sin(math.radians(b)) / math.sin(math.radians(c))
    return [(0.0, 0.0), (1.0, 0.0), (side * math.cos(_rad(a)), side * math.sin(_rad(a)))]


def _rad(degrees: float) -> float:
    return degrees * math.pi / 180


def _isosceles(dice: Dice, difficulty: int) -> dict[str, Any]:
    base = dice.between(35, 72) if difficulty > 2 else dice.between(7, 14) * 5
    apex = 180 - 2 * base
    given_base = dice.below(2) == 1
    text, expression, what, answer = _expression(dice, apex if given_base else base, difficulty)
    angles = [[1, 0, 2, f"{base}°" if given_base else text]]
    angles.append([0, 2, 1, text if given_base else f"{apex}°"])
    asked = [0, 2, 1] if given_base else [1, 0, 2]
    more = {"what": what, "answer": answer, "expression": expression, "ticks": [[0, 2], [1, 2]]}
    lines = [[0, 1], [1, 2], [2, 0]]
    return _figure(_triangle_points(base, base), lines, angles=angles, asked=asked, **more)


def _parallel(dice: Dice, difficulty: int) -> dict[str, Any]:
    """Points: ends of both lines 0-1 and 2-3, ends of the third line 4-5, crossings 6, 7."""
    step = 10 if difficulty == 1 else 5 if difficulty == 2 else 1
    lean = dice.between(40 // step, 140 // step) * step
    if lean == 90:
        lean = 70
    slope = 1 / math.tan(_rad(lean))
    ends = [(-1.0, 0.4), (1.0, 0.4), (-1.0, -0.4), (1.0, -0.4)]
    across = [(0.8 * slope, 0.8), (-0.8 * slope, -0.8), (0.4 * slope, 0.4), (-0.4 * slope, -0.4)]
    corners = [(6, 1, 4, lean), (6, 0, 4, 180 - lean), (6, 0, 5, lean), (6, 1, 5, 180 - lean)]
    lower = [(7, 3, 4, lean), (7, 2, 4, 180 - lean), (7, 2, 5, lean), (7, 3, 5, 180 - lean)]
    known, wanted = dice.pick(corners), dice.pick(lower)
    text, expression, what, answer = _expression(dice, wanted[3], difficulty)
    asked = [wanted[1], wanted[0], wanted[2]]
    angles = [[known[1], known[0], known[2], f"{known[3]}°"], [*asked, text]]
    more = {"what": what, "answer": answer, "expression": expression, "angles": angles}
    figure = _figure([*ends, *across], [[0, 1], [2, 3], [4, 5]], asked=asked, **more)
    return {**figure, "arrows": [[0, 6], [2, 7]]}


def _circle(dice: Dice, difficulty: int) -> dict[str, Any]:
    """Centre 0; 1 and 2 on the rim end the arc; 3 on the rim looks at it."""
    rim = dice.between(22, 80)
    half = 180 - 2 * rim
    points: list[Point] = [(0.0, 0.0)]
    points += [(math.cos(_rad(t)), math.sin(_rad(t))) for t in (90 - rim, 90 + rim)]
    away = 270 + dice.uniform(-0.5, 0.5) * min(half + rim, 90)
    points.append((math.cos(_rad(away)), math.sin(_rad(away))))
    lines = [[0, 1], [0, 2], [3, 1], [3, 2]]
    form = dice.below(3) if difficulty > 2 else dice.below(2)
    asked = [[1, 3, 2], [1, 0, 2], [0, 1, 2]][form]
    value = [rim, 2 * rim, 90 - rim][form]
    text, expression, what, answer = _expression(dice, value, difficulty)
    given = [1, 0, 2, f"{2 * rim}°"] if form == 0 else [1, 3, 2, f"{rim}°"]
    if form == 2:
        lines.append([1, 2])
    more = {"what": what, "answer": answer, "expression": expression, "rim": [0, 1]}
    return _figure(points, lines, angles=[given, [*asked, text]], asked=asked, **more)


def _right(dice: Dice, difficulty: int) -> dict[str, Any]:
    a, b, c = dice.pick(TRIPLES[: 2 + (difficulty > 3)])
    times = dice.between(1, 3 + difficulty * 2)
    a, b, c = a * times, b * times, c * times
    if dice.below(2):
        a, b = b, a
    sides = [[0, 1, str(a)], [0, 2, str(b)], [1, 2, str(c)]]
    more: dict[str, Any] = {"right": [[1, 0, 2]], "unit": 1.0, "lines": [[0, 1], [1, 2], [2, 0]]}
    points = [(0.0, 0.0), (float(a), 0.0), (0.0, float(b))]
    if dice.below(3) == 0:
        # One side stays unsaid: the area needs Pythagoras unless it is the hypotenuse.
        hidden = dice.below(3)
        given = [side for i, side in enumerate(sides) if i != hidden]
        more |= {"what": "area", "answer": a * b // 2, "lengths": given, "asked": [0, 1, 2]}
        return _figure(points, **more)
    hidden = dice.below(3)
    answer = [a, b, c][hidden]
    sides[hidden][2] = "?"
    more |= {"what": "length", "answer": answer, "lengths": sides, "asked": sides[hidden][:2]}
    return _figure(points, **more)


def _block(dice: Dice, difficulty: int) -> dict[str, Any]:
    top = 6 + 2 * difficulty
    width, height = dice.between(6, top), dice.between(6, top)
    inner, step = dice.between(2, width - 3), dice.between(2, height - 3)
    corners = [(0, 0), (width, 0), (width, step), (inner, step), (inner, height), (0, height)]
    lengths = [[0, 1, str(width)], [1, 2, str(step)], [4, 5, str(inner)], [5, 0, str(height)]]
    area = width * height - (width - inner) * (height - step)
    what = dice.pick(("area", "perimeter"))
    answer = area if what == "area" else 2 * (width + height)
    points = [(float(x), float(y)) for x, y in corners]
    lines = [[i, (i + 1) % 6] for i in range(6)]
    right = [[5, 0, 1], [0, 1, 2], [1, 2, 3], [3, 4, 5], [4, 5, 0]]
    more = {"what": what, "answer": answer, "lengths": lengths, "right": right, "unit": 1.0}
    return _figure(points, lines, asked=list(range(6)), **more)


def _place(dice: Dice, figure: dict[str, Any]) -> None:
    """Turn, mirror and scale the points into the picture; ``unit`` becomes pixels a unit."""
    turn, mirror = dice.uniform(0, 2 * math.pi), dice.pick((1, -1))
    cos, sin = math.cos(turn), math.sin(turn)
    points = [(x * cos - y * sin, (x * sin + y * cos) * mirror) for x, y in figure["points"]]
    hull = points
    if figure["rim"]:
        x, y = points[0]
        hull = [(x - 1, y - 1), (x + 1, y + 1)]
    xs, ys = [x for x, _ in hull], [y for _, y in hull]
    scale = (SIZE - 2 * MARGIN) / max(max(xs) - min(xs), max(ys) - min(ys))
    scale *= dice.uniform(0.92, 1.08)
    middle = ((max(xs) + min(xs)) / 2, (max(ys) + min(ys)) / 2)
    figure["points"] = [
        [SIZE / 2 + (x - middle[0]) * scale, SIZE / 2 + (y - middle[1]) * scale] for x, y in points
    ]
    figure["unit"] *= scale


def _draw(dice: Dice, figure: dict[str, Any], difficulty: int) -> Any:
    paper, ink = dice.pick(PAPERS), dice.pick(INKS)
    canvas, mark = Canvas(SIZE, SIZE, paper), dice.pick(PALETTE[:6])
    size = (15, 14, 13, 12, 11)[difficulty - 1]
    points, width = figure["points"], dice.uniform(1.2, 2.4)
    if figure["rim"]:
        canvas.disc(points[0], math.dist(points[0], points[1]), None, ink, width)
        canvas.disc(points[0], 2.5, ink)
    for a, b in figure["lines"]:
        canvas.line([points[a], points[b]], ink, width)
    for a, at, b in figure["right"]:
        u, v = (_toward(points[at], points[i], 11) for i in (a, b))
        corner = [u[0] + v[0] - points[at][0], u[1] + v[1] - points[at][1]]
        canvas.line([u, corner, v], mark, 1.2)
    for a, b in figure["ticks"]:
        _tick(canvas, points[a], points[b], mark)
    for a, b in figure["arrows"]:
        _tick(canvas, points[a], points[b], mark, arrow=True)
    for a, at, b, text in figure["angles"]:
        _angle(canvas, (points[a], points[at], points[b]), text, size, mark, paper)
    centre = [sum(p[i] for p in points) / len(points) for i in (0, 1)]
    for a, b, text in figure["lengths"]:
        _length(canvas, points[a], points[b], centre, text, size, ink, paper)
    return canvas.finish(dice, (0, 0, 2, 5, 9)[difficulty - 1])


def _toward(start: Point, end: Point, pixels: float) -> Point:
    part = pixels / math.dist(start, end)
    return [start[0] + (end[0] - start[0]) * part, start[1] + (end[1] - start[1]) * part]


def _tick(canvas: Canvas, a: Point, b: Point, colour: Colour, arrow: bool = False) -> None:
    """A stroke across the middle: lines with one are equal; with an arrow they are parallel."""
    middle = [(a[0] + b[0]) / 2, (a[1] + b[1]) / 2]
    near, back = _toward(middle, b, 6), _toward(middle, a, 8) if arrow else middle
    dx, dy = near[0] - middle[0], near[1] - middle[1]
    ends = [(back[0] - dy, back[1] + dx), middle, (back[0] + dy, back[1] - dx)]
    canvas.line(ends, colour, 2)


def _angle(
    canvas: Canvas, corner: tuple[Point, Point, Point], text: str, size: float, *looks: Colour
) -> None:
    mark, paper = looks
    first, at, last = corner
    a = math.degrees(math.atan2(first[1] - at[1], first[0] - at[0])) % 360
    b = math.degrees(math.atan2(last[1] - at[1], last[0] - at[0])) % 360
    start, sweep = (a, (b - a) % 360) if (b - a) % 360 <= 180 else (b, (a - b) % 360)
    radius = 16 if sweep > 50 else 22
    canvas.arc(at, radius, (start, start + sweep), mark, 1.5)
    middle = _rad(start + sweep / 2)
    # A narrow angle needs its text further out, where its sides are apart.
    out = radius + 6 + size * (0.55 + 0.16 * len(text)) + max(0, 50 - sweep) * 0.35
    place = (at[0] + out * math.cos(middle), at[1] + out * math.sin(middle))
    canvas.text(place, text, size, mark, halo=paper)


def _length(
    canvas: Canvas,
    a: Point,
    b: Point,
    centre: Point,
    text: str,
    size: float,
    ink: Colour,
    paper: Colour,
) -> None:
    """Beside the middle of the side, away from the centre of the figure."""
    middle = [(a[0] + b[0]) / 2, (a[1] + b[1]) / 2]
    normal = [a[1] - b[1], b[0] - a[0]]
    outward = normal[0] * (middle[0] - centre[0]) + normal[1] * (middle[1] - centre[1])
    part = (6 + size * 0.6) / math.hypot(*normal) * (1 if outward > 0 else -1)
    place = (middle[0] + normal[0] * part, middle[1] + normal[1] * part)
    canvas.text(place, text, size, ink, halo=paper)
