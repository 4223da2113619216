"""What the charts share: sizes, words, the axis of values, the axis of categories, the legend."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from foveal.tasks.base import plain
from foveal.tasks.canvas import INKS, PAPERS, Canvas, Colour
from foveal.tasks.dice import Dice

WIDTH, HEIGHT = 364, 280
TICKS = 5
UNITS = (1, 2, 5, 10, 20, 50, 100)
"""What one tick may stand for."""
GRAIN = (0, 0, 2, 4, 7)
CATEGORIES = (
    ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug"),
    ("Apples", "Plums", "Figs", "Pears", "Limes", "Dates", "Kiwis", "Nuts"),
    ("Oslo", "Lima", "Cairo", "Rome", "Delhi", "Quito", "Seoul", "Bern"),
    ("Alpha", "Beta", "Gamma", "Delta", "Zeta", "Theta", "Kappa", "Sigma"),
)
SERIES = (("2021", "2022", "2023"), ("North", "South", "West"), ("Model A", "Model B", "Model C"))
TITLES = ("Sales", "Visitors", "Output", "Rainfall", "Orders", "Energy use")


@dataclass(frozen=True, slots=True)
class Frame:
    """A canvas with a title and an axis of values; places in pixels."""

    canvas: Canvas
    ink: Colour
    size: float
    """Of the print."""
    left: float
    right: float
    bottom: float
    height: float
    """Of one tick."""


def start(dice: Dice, difficulty: int, tick: float, legend: bool) -> Frame:
    """Title, axis of values with ticks, grid lines where it is easy; room for a legend or none."""
    canvas = Canvas(WIDTH, HEIGHT, dice.pick(PAPERS))
    ink, size = dice.pick(INKS), (13, 12, 11, 10, 9)[difficulty - 1] + dice.between(0, 1)
    left, right, top, bottom = 46.0, WIDTH - 12.0, 54.0 if legend else 34.0, HEIGHT - 30.0
    canvas.text((WIDTH / 2, 14), dice.pick(TITLES), size + 2, ink)
    height = (bottom - top) / (TICKS + 0.2)
    for number in range(TICKS + 1):
        y = bottom - number * height
        if number and difficulty < 4:
            canvas.line([(left, y), (right, y)], (208, 212, 218), 0.5 + dice.below(2) * 0.5)
        canvas.line([(left - 4, y), (left, y)], ink, 1)
        canvas.text((left - 7, y), plain(number * tick), size, ink, "rm")
    canvas.line([(left, top - 4), (left, bottom), (right, bottom)], ink, 1)
    return Frame(canvas, ink, size, left, right, bottom, height)


def name_categories(frame: Frame, names: list[str]) -> float:
    """Marks and names beneath the axis; returns the width of one category."""
    step = (frame.right - frame.left) / len(names)
    for i, name in enumerate(names):
        x = frame.left + (i + 0.5) * step
        frame.canvas.line([(x, frame.bottom), (x, frame.bottom + 4)], frame.ink, 1)
        frame.canvas.text((x, frame.bottom + 15), name, min(frame.size, step / 3.6), frame.ink)
    return step


def legend(frame: Frame, names: list[str], key: Any) -> None:
    """``key(i, x, y)`` draws the sign of name ``i`` around its place."""
    widths = [frame.canvas.text_width(name, frame.size) + 30 for name in names]
    x = (WIDTH - sum(widths)) / 2
    for i, (name, width) in enumerate(zip(names, widths, strict=True)):
        key(i, x + 5.5, 36.5)
        frame.canvas.text((x + 16, 37), name, frame.size, frame.ink, "lm")
        x += width
