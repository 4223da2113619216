"""Counting cells under a microscope: soft, overlapping bodies of two stains, with grain.

    count     all cells
    stain     cells whose nucleus has one of the two stains
    quadrant  the quarter of the picture with most cells
    locate    the square of a grid, such as B3, with the one cell that has no nucleus
    classify  whether the cell that the arrow points to is round, elongated, spiky, dividing or
              without a nucleus

The count, the quarter, the square or the shape is drawn first. With difficulty cells multiply and
overlap more, the stains come closer, the focus gets worse and the grain stronger.
"""

from __future__ import annotations

import math
from collections import Counter
from typing import Any, ClassVar

from foveal.tasks.base import Drawn, DrawnTask
from foveal.tasks.canvas import Canvas, Colour, with_noise
from foveal.tasks.dice import Dice

SIZE = 252
MARGIN = 20
"""Left and top of a grid, for its letters and numbers."""
QUADRANTS = ("top left", "top right", "bottom left", "bottom right")
STAINS = {
    "pink and blue": ((200, 60, 130), (50, 80, 190)),
    "green and red": ((40, 140, 70), (200, 60, 50)),
    "brown and violet": ((130, 80, 30), (120, 60, 190)),
}
MOST = (5, 8, 12, 16, 20)
SPACING = (2.2, 1.9, 1.6, 1.45, 1.3)
"""Least distance of two centres, in mean radii: below 2 they may overlap."""
SHAPES = ("round", "elongated", "spiky", "dividing", "empty")
COLUMNS = "ABCDE"
BLUR = (0.6, 0.9, 1.3, 1.7, 2.2)
GRAIN = (2, 4, 7, 10, 14)

TEMPLATES = {
    "count": ("How many cells are there?", "Count the cells.", "What is the number of cells?"),
    "stain": (
        "How many cells have a {stain} nucleus?",
        "Count the cells whose nucleus is {stain}.",
    ),
    "locate": (
        "Which square of the grid holds the centre of the one cell without a nucleus? "
        "Answer with letter and number, like {example}.",
        "One cell has no nucleus. In which square is its centre? Answer like {example}.",
    ),
    "classify": (
        "Is the cell at the arrow round, elongated, spiky, dividing (two nuclei in a waist) or "
        "empty (no nucleus)? Answer with one word.",
        "The arrow points to a cell. Which is it: round, elongated, spiky, dividing (two nuclei "
        "in a waist) or empty (no nucleus)?",
    ),
    "quadrant": (
        "Which quarter holds most cell centres: top or bottom, left or right?",
        "Where are most cell centres: top or bottom, left or right?",
    ),
}


class CellsTask(DrawnTask):
    """The task family "cells"."""

    name: str = "cells"
    kinds: ClassVar[tuple[str, ...]] = ("count", "stain", "quadrant", "locate", "classify")

    def draw(self, dice: Dice, difficulty: int) -> Drawn:
        kind, most = dice.pick(self.kinds), MOST[difficulty - 1]
        names = dice.pick(tuple(STAINS))
        asked = dice.below(2)
        if kind in ("locate", "classify"):
            return self._one_cell(dice, kind, names, difficulty)
        if kind == "quadrant":
            winner = dice.below(4)
            answer, numbers = QUADRANTS[winner], _quarters(dice, winner, difficulty)
        else:
            total = dice.between(1, most)
            matching = dice.between(0, most) if kind == "stain" else dice.between(0, total)
            answer = str(matching if kind == "stain" else total)
            total = dice.between(matching, most) if kind == "stain" else total
            numbers = [0] * 4
            for _ in range(total):
                numbers[dice.pick([q for q in range(4) if numbers[q] < most / 3 + 1])] += 1
        cells = _cells(dice, numbers, difficulty)
        stains = [dice.below(2) for _ in cells]
        if kind == "stain":
            chosen = dice.sample(range(len(cells)), int(answer))
            stains = [asked if i in chosen else 1 - asked for i in range(len(cells))]
        for cell, stain in zip(cells, stains, strict=True):
            cell |= {"stain": names.split(" and ")[stain], "shape": "round"}
        stain = names.split(" and ")[asked]
        metadata = {"kind": kind, "stain": stain, "cells": cells, "size": SIZE, "tolerance": 0.0}
        metadata |= {"grid": 0, "arrow": []}
        picture = _draw(dice, metadata, names, difficulty)
        return Drawn(picture, dice.pick(TEMPLATES[kind]).format(stain=stain), answer, metadata)

    def _one_cell(self, dice: Dice, kind: str, names: str, difficulty: int) -> Drawn:
        """A picture in which one cell is looked for, or looked at."""
        grid = (3, 3, 4, 4, 5)[difficulty - 1] if kind == "locate" else 0
        answer = dice.pick(SHAPES)
        cells = _spread(dice, MOST[difficulty - 1] * 2 // 3 + 1, grid)
        for cell in cells[1:]:
            cell["shape"] = dice.pick(SHAPES[: 2 if grid else 5])
        cells[0]["shape"] = "empty" if grid else answer
        if grid:
            answer = _square(cells[0]["x"], cells[0]["y"], grid)
        for cell in cells:
            cell["stain"] = dice.pick(names.split(" and "))
        arrow = [] if grid else _arrow(dice, cells)
        metadata = {
            "kind": kind, "stain": "", "cells": dice.shuffled(cells), "size": SIZE,
            "tolerance": 0.0, "grid": grid, "arrow": arrow,
        }  # fmt: skip
        picture = _draw(dice, metadata, names, difficulty)
        example = dice.pick([f"{a}{b + 1}" for a in COLUMNS[:grid] for b in range(grid)] or [""])
        return Drawn(picture, dice.pick(TEMPLATES[kind]).format(example=example), answer, metadata)

    def reference_answer(self, metadata: dict[str, Any]) -> str:
        """Counted from the cells' centres and stains."""
        cells, half = metadata["cells"], metadata["size"] / 2
        if metadata["kind"] == "count":
            return str(len(cells))
        if metadata["kind"] == "stain":
            return str(sum(cell["stain"] == metadata["stain"] for cell in cells))
        if metadata["kind"] == "locate":
            (odd,) = [cell for cell in cells if cell["shape"] == "empty"]
            return _square(odd["x"], odd["y"], metadata["grid"])
        if metadata["kind"] == "classify":
            tip = metadata["arrow"][1]
            return min(cells, key=lambda cell: math.dist(tip, (cell["x"], cell["y"])))["shape"]
        counts = Counter(QUADRANTS[2 * (c["y"] > half) + (c["x"] > half)] for c in cells)
        return counts.most_common(1)[0][0]


def _quarters(dice: Dice, winner: int, difficulty: int) -> list[int]:
    """Cells in each quarter; the winner leads by one at the least, by more where it is easy."""
    best = dice.between(3, 3 + difficulty // 2)
    lead = 2 if difficulty < 3 else 1
    return [best if q == winner else dice.between(0, best - lead) for q in range(4)]


def _cells(dice: Dice, numbers: list[int], difficulty: int) -> list[dict[str, Any]]:
    """As many cells in each quarter as ``numbers`` says, away from the middle lines."""
    cells: list[dict[str, Any]] = []
    radius = dice.uniform(15, 18) - difficulty * 0.9
    spacing = SPACING[difficulty - 1]
    quarters = [q for q, n in enumerate(numbers) for _ in range(n)]
    for quarter in quarters:
        gap = spacing * radius
        while True:
            x, y = (dice.uniform(14, SIZE / 2 - 5) for _ in range(2))
            x, y = (SIZE - x if quarter % 2 else x), (SIZE - y if quarter > 1 else y)
            if all(math.dist((x, y), (c["x"], c["y"])) >= gap for c in cells):
                break
            gap *= 0.995  # a crowded quarter takes cells closer together
        size = radius * dice.uniform(0.85, 1.15)
        cells.append({"x": round(x, 2), "y": round(y, 2), "radius": round(size, 2)})
    return dice.shuffled(cells)


def _spread(dice: Dice, n: int, grid: int) -> list[dict[str, Any]]:
    """Cells that do not touch, their centres clear of the lines of the grid."""
    cells: list[dict[str, Any]] = []
    radius = dice.uniform(11, 12.5)
    low = MARGIN if grid else 0
    span = (SIZE - low) / max(grid, 1)
    while len(cells) < n:
        x, y = (dice.uniform(low + 18, SIZE - 18) for _ in range(2))
        clear = not grid or all(7 < (v - low) % span < span - 7 for v in (x, y))
        if clear and all(math.dist((x, y), (c["x"], c["y"])) > 33 for c in cells):
            size = radius * dice.uniform(0.9, 1.1)
            cells.append({"x": round(x, 2), "y": round(y, 2), "radius": round(size, 2)})
    return cells


def _square(x: float, y: float, grid: int) -> str:
    span = (SIZE - MARGIN) / grid
    return f"{COLUMNS[int((x - MARGIN) / span)]}{int((y - MARGIN) / span) + 1}"


def _arrow(dice: Dice, cells: list[dict[str, Any]]) -> list[list[float]]:
    """Tail and tip of an arrow to the rim of the first cell, as far from others as may be."""
    cell, others = cells[0], [(c["x"], c["y"]) for c in cells[1:]]
    ends = [cell["radius"] * 1.45 + 22, cell["radius"] * 1.45]
    start, best, clearest = dice.uniform(0, math.tau), [], -1.0
    for i in range(12):
        cos, sin = math.cos(start + i * math.tau / 12), math.sin(start + i * math.tau / 12)
        arrow = [[round(cell["x"] + r * cos, 2), round(cell["y"] + r * sin, 2)] for r in ends]
        tail = arrow[0]
        gap = min(math.dist(tail, other) for other in others)
        if all(6 < v < SIZE - 6 for v in tail) and gap > clearest:
            best, clearest = arrow, gap
    return best


def _draw(dice: Dice, facts: dict[str, Any], names: str, difficulty: int) -> Any:
    from PIL import ImageFilter

    paper = dice.pick(((238, 232, 240), (240, 238, 228), (228, 236, 240)))
    canvas = Canvas(SIZE, SIZE, paper)
    for _ in range(difficulty * 3):
        # Debris: smaller than a nucleus and grey.
        at = (dice.uniform(0, SIZE), dice.uniform(0, SIZE))
        canvas.disc(at, dice.uniform(0.8, 2), (178, 174, 178))
    # Stains come closer with difficulty, never to one.
    mix = 0.06 * (difficulty - 1)
    inks = dict(zip(names.split(" and "), STAINS[names], strict=True))
    for cell in facts["cells"]:
        _draw_cell(canvas, dice, cell, _mixed(inks[cell["stain"]], (120, 90, 130), mix), paper)
    blur = BLUR[difficulty - 1]
    if facts["grid"] or facts["arrow"]:
        blur = min(blur, 1.4)  # more would make forms alike
    if facts["grid"]:
        _draw_grid(canvas, facts["grid"])
    if facts["arrow"]:
        tail, tip = facts["arrow"]
        canvas.arrow(tail, tip, (20, 20, 20), 2, 9)
    picture = canvas.finish().filter(ImageFilter.GaussianBlur(blur))
    return with_noise(picture, dice, GRAIN[difficulty - 1])


def _draw_grid(canvas: Canvas, grid: int) -> None:
    """Letters above the columns and numbers beside the rows, as on a counting chamber."""
    span = (SIZE - MARGIN) / grid
    for i in range(grid):
        at = MARGIN + i * span
        canvas.line([(at, 0), (at, SIZE)], (120, 120, 130), 0.8)
        canvas.line([(0, at), (SIZE, at)], (120, 120, 130), 0.8)
        canvas.text((at + span / 2, MARGIN / 2), COLUMNS[i], 13, (30, 30, 40))
        canvas.text((MARGIN / 2, at + span / 2), str(i + 1), 13, (30, 30, 40))


def _draw_cell(
    canvas: Canvas, dice: Dice, cell: dict[str, Any], ink: Colour, paper: Colour
) -> None:
    """A wobbly body with a dark rim, and a nucleus near its middle, by its ``shape``."""
    x, y, radius, shape = cell["x"], cell["y"], cell["radius"], cell["shape"]
    waves = [(k, dice.uniform(0, 0.07), dice.uniform(0, 2 * math.pi)) for k in (2, 3, 4)]
    turn, rim = dice.uniform(0, math.pi), []
    for i in range(40):
        t = 2 * math.pi * i / 40
        wobble = sum(a * math.sin(k * t + phase) for k, a, phase in waves)
        along, across = _outline(shape, t, wobble)
        at = (radius * along * math.cos(t), radius * across * math.sin(t))
        rim.append(_turned((x, y), at, turn))
    canvas.polygon(rim, _mixed(ink, paper, dice.uniform(0.6, 0.72)), _mixed(ink, paper, 0.35))
    size = radius * dice.uniform(0.34, 0.46)
    if shape == "dividing":
        for side in (-1, 1):
            canvas.disc(_turned((x, y), (side * radius * 0.72, 0), turn), radius * 0.33, ink)
    elif shape != "empty":
        off = radius * 0.2
        canvas.disc((x + dice.uniform(-off, off), y + dice.uniform(-off, off)), size, ink)


def _outline(shape: str, t: float, wobble: float) -> tuple[float, float]:
    """Factors of the radius along and across the cell at the angle ``t``."""
    if shape == "elongated":
        return 1.4 + wobble * 0.5, 0.62 + wobble * 0.3
    if shape == "spiky":
        r = 0.95 + 0.32 * math.cos(8 * t)
        return r, r
    if shape == "dividing":
        # A waist: narrow where the cosine is 0, and longer than wide.
        return 1.4, 0.45 + 0.95 * math.cos(t) ** 2
    return 1 + wobble, 1 + wobble


def _turned(
    centre: tuple[float, float], at: tuple[float, float], turn: float
) -> tuple[float, float]:
    cos, sin = math.cos(turn), math.sin(turn)
    return centre[0] + at[0] * cos - at[1] * sin, centre[1] + at[0] * sin + at[1] * cos


def _mixed(a: Colour, b: Colour, part: float) -> Colour:
    red, green, blue = (round(p + (q - p) * part) for p, q in zip(a, b, strict=True))
    return red, green, blue
