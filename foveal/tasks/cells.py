"""Counting cells under a microscope: soft, overlapping bodies of two stains, with grain.

    count     all cells
    stain     cells whose nucleus has one of the two stains
    quadrant  the quarter of the picture with most cells

The count, or the quadrant, is drawn first. With difficulty cells multiply and overlap more, the
stains come closer, the focus gets worse and the grain stronger.
"""

from __future__ import annotations

import math
from collections import Counter
from typing import Any, ClassVar

from foveal.tasks.base import Drawn, DrawnTask
from foveal.tasks.canvas import Canvas, Colour, with_noise
from foveal.tasks.dice import Dice

SIZE = 252
QUADRANTS = ("top left", "top right", "bottom left", "bottom right")
STAINS = {
    "pink and blue": ((200, 60, 130), (50, 80, 190)),
    "green and red": ((40, 140, 70), (200, 60, 50)),
    "brown and violet": ((130, 80, 30), (120, 60, 190)),
}
MOST = (5, 8, 12, 16, 20)
SPACING = (2.2, 1.9, 1.6, 1.45, 1.3)
"""Least distance of two centres, in mean radii: below 2 they may overlap."""
BLUR = (0.6, 0.9, 1.3, 1.7, 2.2)
GRAIN = (2, 4, 7, 10, 14)

TEMPLATES = {
    "count": ("How many cells are there?", "Count the cells.", "What is the number of cells?"),
    "stain": (
        "How many cells have a {stain} nucleus?",
        "Count the cells whose nucleus is {stain}.",
    ),
    "quadrant": (
        "Which quarter holds most cell centres: top or bottom, left or right?",
        "Where are most cell centres: top or bottom, left or right?",
    ),
}


class CellsTask(DrawnTask):
    """The task family "cells"."""

    name: str = "cells"
    kinds: ClassVar[tuple[str, ...]] = ("count", "stain", "quadrant")

    def draw(self, dice: Dice, difficulty: int) -> Drawn:
        kind, most = dice.pick(self.kinds), MOST[difficulty - 1]
        names = dice.pick(tuple(STAINS))
        asked = dice.below(2)
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
            cell["stain"] = names.split(" and ")[stain]
        stain = names.split(" and ")[asked]
        metadata = {"kind": kind, "stain": stain, "cells": cells, "size": SIZE, "tolerance": 0.0}
        picture = _draw(dice, cells, names, difficulty)
        return Drawn(picture, dice.pick(TEMPLATES[kind]).format(stain=stain), answer, metadata)

    def reference_answer(self, metadata: dict[str, Any]) -> str:
        """Counted from the cells' centres and stains."""
        cells, half = metadata["cells"], metadata["size"] / 2
        if metadata["kind"] == "count":
            return str(len(cells))
        if metadata["kind"] == "stain":
            return str(sum(cell["stain"] == metadata["stain"] for cell in cells))
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


def _draw(dice: Dice, cells: list[dict[str, Any]], names: str, difficulty: int) -> Any:
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
    for cell in cells:
        _draw_cell(canvas, dice, cell, _mixed(inks[cell["stain"]], (120, 90, 130), mix), paper)
    picture = canvas.finish().filter(ImageFilter.GaussianBlur(BLUR[difficulty - 1]))
    return with_noise(picture, dice, GRAIN[difficulty - 1])


def _draw_cell(
    canvas: Canvas, dice: Dice, cell: dict[str, Any], ink: Colour, paper: Colour
) -> None:
    """A wobbly body with a dark rim, and a nucleus near its middle."""
    x, y, radius = cell["x"], cell["y"], cell["radius"]
    waves = [(k, dice.uniform(0, 0.07), dice.uniform(0, 2 * math.pi)) for k in (2, 3, 4)]
    rim = []
    for i in range(40):
        t = 2 * math.pi * i / 40
        r = radius * (1 + sum(a * math.sin(k * t + phase) for k, a, phase in waves))
        rim.append((x + r * math.cos(t), y + r * math.sin(t)))
    canvas.polygon(rim, _mixed(ink, paper, dice.uniform(0.6, 0.72)), _mixed(ink, paper, 0.35))
    off = radius * 0.2
    nucleus = (x + dice.uniform(-off, off), y + dice.uniform(-off, off))
    canvas.disc(nucleus, radius * dice.uniform(0.34, 0.46), ink)


def _mixed(a: Colour, b: Colour, part: float) -> Colour:
    red, green, blue = (round(p + (q - p) * part) for p, q in zip(a, b, strict=True))
    return red, green, blue
