"""Dimensioned drawings of plates: steps, windows, rows of holes, a hole table, a title block.

    length   the dimension with a question mark, from the others
    area     of the face of a stepped plate, less its windows
    spacing  a distance in a row of equally spaced holes
    holes    how many holes have a diameter, by the letters of a hole table
    scale    how long a side is on the paper (or in reality), by the scale in the title block

Dimensions run in a chain or all from one edge, and with difficulty one more of them is missing
and has to be derived. Pictures are true to scale; ``reference_answer`` measures them.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any, ClassVar

from foveal.tasks.base import Drawn, DrawnTask, plain
from foveal.tasks.canvas import INKS, PALETTE, PAPERS, Canvas, Colour
from foveal.tasks.dice import Dice

WIDTH, HEIGHT = 420, 330
BOX = (22.0, 28.0, 278.0, 214.0)
"""Left, top, right, bottom of the plate; its dimensions stand below and to the left, or to the
right in a mirrored drawing."""
SCALES = ((1, 2), (1, 5), (1, 10), (2, 1), (5, 1), (1, 4), (1, 20), (4, 1), (10, 1))
HOLE_LETTERS = "ABCD"

TEMPLATES = {
    "length": (
        "What is the length marked with a question mark, in mm?",
        "Find the missing dimension (?), in mm.",
    ),
    "area": (
        "What is the area of the face of the plate, in square mm?",
        "Find the area of the shaded face in square mm.",
    ),
    "spacing": (
        "The holes are equally spaced. What is the dimension marked ?, in mm?",
        "All holes are the same distance apart. Find the dimension marked ?, in mm.",
    ),
    "holes": (
        "How many holes of diameter {d} mm does the plate have?",
        "Count the holes with a diameter of {d} mm.",
    ),
    "scale": (
        "The dimensions are the real ones. How many mm long is the side marked ? on the paper?",
        "Dimensions give the real part. By the scale, how long is the side marked ? on the sheet, "
        "in mm?",
    ),
}


class DrawingsTask(DrawnTask):
    """The task family "drawings"."""

    name: str = "drawings"
    kinds: ClassVar[tuple[str, ...]] = ("length", "area", "spacing", "holes", "scale")

    def draw(self, dice: Dice, difficulty: int) -> Drawn:
        kind = dice.pick(self.kinds)
        look = _Look(dice, difficulty)
        make = {"spacing": _row_of_holes, "holes": _hole_table}.get(kind, _stepped)
        answer, facts = make(look, dice, kind, difficulty)
        picture = look.canvas.finish(dice, (0, 0, 3, 6, 10)[difficulty - 1])
        question = dice.pick(TEMPLATES[kind]).format(d=plain(facts.get("diameter", 0)))
        return Drawn(picture, question, plain(answer), {"kind": kind, **facts, "tolerance": 0.0})

    def reference_answer(self, metadata: dict[str, Any]) -> str:
        """Measured on the picture, ``unit`` pixels to a mm; rounded to the grain of the sizes."""
        unit, kind, grain = metadata["unit"], metadata["kind"], metadata["grain"]
        if kind == "holes":
            return str(sum(round(r * 2 / unit) == metadata["diameter"] for r in metadata["radii"]))
        if kind == "area":
            size = sum(_shoelace(ring) * sign for ring, sign in _rings(metadata)) / unit**2
            return plain(round(size / grain**2) * grain**2)
        length = round(math.dist(*metadata["ends"]) / unit / grain) * grain
        over, under = metadata.get("scale") or (1, 1)
        return plain(length * over / under)


def _rings(metadata: dict[str, Any]) -> list[tuple[list[list[float]], int]]:
    return [(metadata["outline"], 1)] + [(window, -1) for window in metadata["windows"]]


def _shoelace(points: list[list[float]]) -> float:
    pairs = zip(points, points[1:] + points[:1], strict=True)
    return abs(sum(a[0] * b[1] - b[0] * a[1] for a, b in pairs)) / 2


class _Look:
    """Canvas, colours, text size and style of arrows of one drawing."""

    def __init__(self, dice: Dice, difficulty: int) -> None:
        self.paper: Colour = dice.pick(PAPERS)
        self.ink: Colour = dice.pick(INKS)
        self.thin: Colour = dice.pick((self.ink, (90, 95, 105), PALETTE[0], (150, 60, 50)))
        self.fill: Colour = dice.pick(((225, 228, 232), (232, 226, 212), (214, 226, 238)))
        self.canvas = Canvas(WIDTH, HEIGHT, self.paper)
        self.size = (13, 13, 12, 11, 10)[difficulty - 1]
        self.edge = dice.uniform(1.6, 2.6)
        self.slash = dice.below(4) == 0
        """Strokes at the ends of dimensions, as in buildings, in place of arrows."""

    def dimension(
        self, a: list[float], b: list[float], away: float, text: str, axis: int = 1
    ) -> None:
        """From ``a`` to ``b`` on the line y = ``away``, or for axis 0 on x = ``away``."""
        ends = []
        for point in (a, b):
            end = list(point)
            end[axis] = away
            ends.append(end)
            sign = 1 if away > point[axis] else -1
            near, far = list(point), list(end)
            near[axis] += 3 * sign
            far[axis] += 4 * sign
            self.canvas.line([near, far], self.thin, 0.7)
        self._arrows(ends[0], ends[1])
        middle = [(ends[0][i] + ends[1][i]) / 2 for i in (0, 1)]
        self.canvas.text(middle, text, self.size, self.ink, halo=self.paper)

    def _arrows(self, a: list[float], b: list[float]) -> None:
        if self.slash:
            self.canvas.line([a, b], self.thin, 0.9)
            for x, y in (a, b):
                self.canvas.line([(x - 4, y + 4), (x + 4, y - 4)], self.thin, 1.4)
            return
        middle = [(a[0] + b[0]) / 2, (a[1] + b[1]) / 2]
        for end in (a, b):
            self.canvas.arrow(middle, end, self.thin, 0.9, min(7, math.dist(a, b) / 3))


def _grain(difficulty: int) -> float:
    """The grain of the dimensions: 10, 5, 1 or half a mm."""
    return (10, 5, 1, 1, 0.5)[difficulty - 1]


def _parts(dice: Dice, n: int, grain: float) -> list[float]:
    """``n`` lengths, none of them much smaller than the others."""
    low, high = (2, 8) if grain >= 5 else (20, 65) if grain == 1 else (25, 110)
    while True:
        parts = [dice.between(low, high) * grain for _ in range(n)]
        if min(parts) >= sum(parts) * (0.3 / n + 0.05):
            return parts


def _stepped(look: _Look, dice: Dice, kind: str, difficulty: int) -> tuple[float, dict[str, Any]]:
    """A plate that falls in steps to the right (or left) and the dimensions of it."""
    grain = _grain(difficulty)
    steps = 2 + (difficulty > 2) + (difficulty > 4)
    while True:
        widths, drops = (_parts(dice, steps, grain) for _ in range(2))
        wide, high = sum(widths), sum(drops)
        unit = min((BOX[2] - BOX[0]) / wide, (BOX[3] - BOX[1]) / high)
        # Room for the number of each part, between its arrows.
        if min(widths) * unit > 26 + 2 * difficulty and min(drops) * unit > 22:
            break
    mirror = dice.below(2) == 1

    def at(x: float, y: float) -> list[float]:
        # The side with the upright dimensions has the room.
        x = BOX[0] + (wide - x) * unit if mirror else WIDTH - BOX[0] - (wide - x) * unit
        return [x, BOX[3] - y * unit]

    corners = [(0.0, 0.0), (wide, 0.0)]
    for i in range(steps):
        y = sum(drops[: i + 1])
        corners += [(sum(widths[: steps - i]), y - drops[i]), (sum(widths[: steps - i]), y)]
    corners.append((0.0, high))
    # The first step begins at the corner that is there already.
    outline = [at(*corner) for i, corner in enumerate(corners) if i != 2]
    look.canvas.polygon(outline, look.fill)
    look.canvas.line([*outline, outline[0], outline[1]], look.ink, look.edge)
    windows = []
    if kind == "area" and difficulty > 2:
        windows.append(_window(look, dice, at, widths, drops, grain))
    ends = _dimensions(look, dice, at, widths, drops, mirror, kind, difficulty)
    facts: dict[str, Any] = {"unit": unit, "grain": grain}
    if kind == "area":
        facts |= {"outline": outline, "windows": [window for window, _ in windows]}
        area = sum(w * sum(drops[: steps - i]) for i, w in enumerate(widths))
        return area - sum(size for _, size in windows), facts
    facts["ends"] = [at(*ends[0]), at(*ends[1])]
    value = math.dist(*ends)
    if kind == "scale":
        over, under = dice.pick(SCALES[: 3 + 2 * (difficulty > 1) + 4 * (difficulty > 3)])
        while round(value * over / under, 2) != value * over / under:
            over, under = dice.pick(SCALES)
        facts["scale"] = [over, under]
        _title(look, [f"SCALE {over}:{under}", "DIMENSIONS IN mm"])
        value = value * over / under
    return value, facts


def _window(
    look: _Look, dice: Dice, at: Any, widths: list[float], drops: list[float], grain: float
) -> tuple[list[list[float]], float]:
    """A rectangular opening in the highest column with its size written in it; and its area."""
    high = sum(drops)
    share = [dice.uniform(0.5, 0.62), dice.uniform(0.28, 0.4)]
    wide, tall = round(widths[0] * share[0] / grain) * grain, round(high * share[1] / grain) * grain
    x, y = (widths[0] - wide) / 2, (high - tall) * dice.uniform(0.35, 0.6)
    corners = [at(x, y), at(x + wide, y), at(x + wide, y + tall), at(x, y + tall)]
    look.canvas.polygon(corners, look.paper, look.ink)
    middle = at(x + wide / 2, y + tall / 2)
    text = (plain(wide), "x", plain(tall))
    for i, line in enumerate(text):
        look.canvas.text((middle[0], middle[1] + (i - 1) * look.size), line, look.size, look.ink)
    return corners, wide * tall


def _dimensions(
    look: _Look,
    dice: Dice,
    at: Any,
    widths: list[float],
    drops: list[float],
    mirror: bool,
    kind: str,
    difficulty: int,
) -> list[tuple[float, float]]:
    """Draw them; returns the ends of the one that has the question mark, in mm."""
    wide, high = sum(widths), sum(drops)
    asked_level = dice.below(2) == 1
    hide = kind == "area" and difficulty > 1
    spans = []
    for level, parts in ((True, widths), (False, drops)):
        asked = dice.below(len(parts)) if kind != "area" and asked_level == level else -1
        missing = (
            dice.below(len(parts)) if hide and (asked_level == level or difficulty > 3) else -1
        )
        # From the edge the first part is a dimension itself.
        from_edge = difficulty > 2 and dice.below(2) == 1 and missing < 0 and asked != 0
        spans.append(_side(look, at, parts, level, mirror, asked, missing, from_edge))
    span = next((span for span in spans if span is not None), (0.0, 0.0))
    return [(v, high) if asked_level else (wide, v) for v in span]


def _side(
    look: _Look,
    at: Any,
    parts: list[float],
    level: bool,
    mirror: bool,
    asked: int,
    missing: int,
    from_edge: bool,
) -> tuple[float, float] | None:
    """The dimensions below the plate (``level``) or beside it; where the asked part lies."""
    total = sum(parts)
    cuts = [sum(parts[:i]) for i in range(len(parts) + 1)]
    spans = list(pairwise(cuts))
    lines: list[list[tuple[float, float, str]]] = [[]]
    for i, (start, end) in enumerate(spans):
        if from_edge and i > 0:
            lines.append([(0.0, end, plain(end))])
        if i == asked:
            lines[0].append((start, end, "?"))
        elif i != missing and (not from_edge or i == 0):
            lines[0].append((start, end, plain(end - start)))
    if not from_edge:
        lines.append([(0.0, total, plain(total))])
    outward, row = (1, 24) if level else (1 if mirror else -1, 31)
    base = BOX[3] if level else at(0, 0)[0]
    for i, line in enumerate(lines):
        away = base + outward * row * (i + 0.9)
        for start, end, text in line:
            if level:
                look.dimension(at(start, 0), at(end, 0), away, text)
            else:
                look.dimension(at(0, start), at(0, end), away, text, 0)
    return spans[asked] if asked >= 0 else None


def _title(look: _Look, lines: list[str]) -> None:
    """The title block in the lower right corner."""
    wide = max(look.canvas.text_width(line, look.size) for line in lines) + 14
    tall = 16 * len(lines) + 4
    left, top = WIDTH - wide - 6, HEIGHT - tall - 6
    look.canvas.box([left, top, WIDTH - 6, HEIGHT - 6], look.paper, look.ink)
    for i, line in enumerate(lines):
        look.canvas.text((left + 7, top + 10 + 16 * i), line, look.size, look.ink, "lm")


def _row_of_holes(
    look: _Look, dice: Dice, kind: str, difficulty: int
) -> tuple[float, dict[str, Any]]:
    """A bar with equally spaced holes: the pitch, an edge distance or a distance across several."""
    grain = _grain(difficulty)
    count = dice.between(3, 4 + difficulty // 2)
    low, high = (2, 9) if grain >= 5 else (12, 40) if grain == 1 else (24, 70)
    while True:
        pitch, edge, far = (dice.between(low, high) * grain for _ in range(3))
        if difficulty < 3:
            far = edge
        if 0.7 < edge / pitch < 1.8 and 0.7 < far / pitch < 1.8:
            break
    total = edge + far + pitch * (count - 1)
    unit = (WIDTH - 70) / total
    top, bottom = 84.0, 84.0 + dice.between(70, 100)
    middle = (top + bottom) / 2
    holes = [35 + (edge + pitch * i) * unit for i in range(count)]
    left, right = [35.0, bottom], [35 + total * unit, bottom]
    look.canvas.box([left[0], top, right[0], bottom], look.fill, look.ink)
    radius = dice.uniform(7, min(12, pitch * unit * 0.3))
    for x in holes:
        look.canvas.disc((x, middle), radius, look.paper, look.ink, look.edge)
        look.canvas.line([(x - radius - 4, middle), (x + radius + 4, middle)], look.thin, 0.7)
        look.canvas.line([(x, middle - radius - 4), (x, middle + radius + 4)], look.thin, 0.7)
    asked = dice.pick(("pitch", "edge", "several"))
    first, last = [holes[0], middle], [holes[-1], middle]
    n = dice.between(2, count - 2) if count > 3 else 0
    spans = {
        "pitch": (holes[0], holes[1], pitch),
        "edge": (left[0], holes[0], edge),
        "several": (holes[0], holes[n or 2], pitch * (n or 2)),
    }
    start, end, value = spans[asked]
    # The question mark stands above the bar, what is known below it.
    look.dimension([start, middle - radius], [end, middle - radius], top - 26, "?")
    if asked == "edge":
        look.dimension([holes[1], middle], [holes[2], middle], bottom + 26, plain(pitch))
    else:
        look.dimension(left, first, bottom + 26, plain(edge))
    look.dimension(last, right, bottom + 26, plain(far))
    look.dimension(left, right, bottom + 56, plain(total))
    ends = [[start, middle], [end, middle]]
    return value, {"unit": unit, "grain": grain, "ends": ends}


def _hole_table(
    look: _Look, dice: Dice, kind: str, difficulty: int
) -> tuple[float, dict[str, Any]]:
    """A plate with lettered holes of some diameters, which a table gives."""
    sizes = 2 + (difficulty > 1) + (difficulty > 3)
    diameters = dice.sample(range(4, 14), sizes)
    counts = [dice.between(1, 6) for _ in diameters]
    asked = dice.below(sizes)
    # Two letters may share a diameter: both have to be counted.
    if difficulty > 2 and dice.below(2):
        diameters[(asked + 1) % sizes] = diameters[asked]
    corners = (40.0, 26.0, WIDTH - 40.0, 216.0)
    look.canvas.box(corners, look.fill, look.ink)
    unit = 1.7
    columns, rows = 7, 4
    cells = dice.sample([(x, y) for x in range(columns) for y in range(rows)], sum(counts))
    kinds = [i for i, n in enumerate(counts) for _ in range(n)]
    radii = []
    for (column, row), i in zip(cells, kinds, strict=True):
        x = corners[0] + (column + 0.5) * (corners[2] - corners[0]) / columns - 7
        y = corners[1] + (row + 0.5) * (corners[3] - corners[1]) / rows + 4
        radius = diameters[i] * unit / 2
        radii.append(radius)
        look.canvas.disc((x, y), radius, look.paper, look.ink, 1.4)
        look.canvas.text((x + radius + 8, y - radius - 3), HOLE_LETTERS[i], look.size, look.ink)
    left, wide = 60.0, 76.0
    look.canvas.text((left, 250), "HOLE", look.size, look.ink, "lm")
    look.canvas.text((left, 274), "DIA (mm)", look.size, look.ink, "lm")
    for i, diameter in enumerate(diameters):
        x = left + 80 + i * wide
        look.canvas.text((x, 250), HOLE_LETTERS[i], look.size, look.ink)
        look.canvas.text((x, 274), str(diameter), look.size, look.ink)
    look.canvas.line([(left - 6, 262), (left + 46 + sizes * wide, 262)], look.thin, 1)
    look.canvas.box([left - 6, 238, left + 46 + sizes * wide, 286], None, look.ink)
    answer = sum(n for n, d in zip(counts, diameters, strict=True) if d == diameters[asked])
    return answer, {"unit": unit, "grain": 1, "diameter": diameters[asked], "radii": radii}
