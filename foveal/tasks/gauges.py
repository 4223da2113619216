"""Reading instruments: round gauges, thermometers and rulers.

    gauge        where a needle points on a dial
    thermometer  how high the liquid stands
    ruler        how long a bar beside a ruler is; it need not begin at zero

The reading is drawn first. It may be off by half of the smallest division. With difficulty there
are more divisions, fewer numbers, readings between the ticks, smaller text, and grain.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

from foveal.tasks.base import Drawn, DrawnTask, plain
from foveal.tasks.canvas import INKS, PALETTE, PAPERS, Canvas, Colour
from foveal.tasks.dice import Dice

SIZE = 252
MINOR = (2, 5, 5, 10, 10)
"""Divisions between two numbers, by difficulty."""

TEMPLATES = {
    "gauge": ("What does the gauge read?", "Read the value that the needle points to."),
    "thermometer": ("What temperature is shown?", "Read the thermometer."),
    "ruler": ("How long is the bar, in cm?", "Measure the bar with the ruler, in cm."),
}


class GaugesTask(DrawnTask):
    """The task family "gauges"."""

    name: str = "gauges"
    kinds: ClassVar[tuple[str, ...]] = ("gauge", "thermometer", "ruler")

    def draw(self, dice: Dice, difficulty: int) -> Drawn:
        kind = dice.pick(self.kinds)
        scale, start, value = _reading(dice, kind, difficulty)
        metadata = {"kind": kind, **scale, "tolerance": scale["division"] / 2}
        drawing = {"gauge": _gauge, "thermometer": _thermometer, "ruler": _ruler}[kind]
        look = _Look(dice, difficulty)
        metadata["ends"] = drawing(look, dice, metadata, start, start + value)
        picture = look.canvas.finish(dice, (0, 0, 3, 6, 10)[difficulty - 1])
        return Drawn(picture, dice.pick(TEMPLATES[kind]), plain(value), metadata)

    def reference_answer(self, metadata: dict[str, Any]) -> str:
        """From where the hand or the two ends lie in the picture, and the scale."""
        start, end = metadata["ends"]
        share = (end - start) / (metadata["zero_to_full"])
        value = share * (metadata["high"] - metadata["low"])
        if metadata["kind"] != "ruler":
            value += metadata["low"]
        return plain(round(value / metadata["grain"]) * metadata["grain"])


def _reading(dice: Dice, kind: str, difficulty: int) -> tuple[dict[str, Any], float, float]:
    """The scale, where the reading starts on it, and the reading."""
    minor = MINOR[difficulty - 1]
    if kind == "ruler":
        step, low, marks = 1.0, 0.0, (8, 8, 9, 6, 6)[difficulty - 1]
    else:
        step = float(dice.pick((1, 2, 5, 10, 20, 50) if kind == "gauge" else (5, 10, 20)))
        # A tick of a thermometer needs 3 pixels to be told from the next.
        marks = dice.between(4, 5) if kind == "thermometer" and minor == 10 else dice.between(5, 8)
        low = step * dice.pick((0, 0, 1, 2) if kind == "gauge" else (0, -1, -2, -3))
    division = step / minor
    # Readings lie on ticks at first, then halfway between two of them too.
    halves = 2 if difficulty > 2 else 1
    count = marks * minor * halves
    grain = division / halves
    start = 0.0
    if kind == "ruler":
        units = dice.between(minor, count - 1)
        if difficulty > 1:
            start = dice.below(max(1, (count - units) // halves)) * division
        value = units * grain
    else:
        value = low + dice.between(0, count) * grain
    high = low + marks * step
    scale = {"low": low, "high": high, "step": step, "division": division, "grain": grain}
    return scale, start, value


class _Look:
    """Canvas, colours and sizes of one instrument."""

    def __init__(self, dice: Dice, difficulty: int) -> None:
        self.canvas = Canvas(SIZE, SIZE, dice.pick(PAPERS))
        self.ink: Colour = dice.pick(INKS)
        self.mark: Colour = dice.pick(PALETTE[:6])
        self.size = (14, 13, 12, 11, 10)[difficulty - 1]
        self.sparse = difficulty >= 4
        """Only every second mark has its number."""


def _marks(metadata: dict[str, Any]) -> list[tuple[float, int, str]]:
    """Share of the scale, rank (0 numbered, 1 middle, 2 small) and text of every tick."""
    minor = round(metadata["step"] / metadata["division"])
    total = round((metadata["high"] - metadata["low"]) / metadata["division"])
    marks = []
    for i in range(total + 1):
        rank = 0 if i % minor == 0 else 1 if minor == 10 and i % 5 == 0 else 2
        text = plain(metadata["low"] + i * metadata["division"]) if rank == 0 else ""
        marks.append((i / total, rank, text))
    return marks


def _gauge(
    look: _Look, dice: Dice, metadata: dict[str, Any], _: float, value: float
) -> list[float]:
    """Returns the needle's degrees from the left end of the scale, clockwise."""
    canvas, centre, radius = look.canvas, (SIZE / 2, SIZE / 2 + 6), 108.0
    first, sweep = dice.pick(((135.0, 270.0), (150.0, 240.0), (180.0, 180.0)))
    canvas.disc(centre, radius + 8, (255, 255, 255), look.ink, dice.uniform(1.5, 4))

    def at(degrees: float, r: float) -> tuple[float, float]:
        t = math.radians(degrees)
        return centre[0] + r * math.cos(t), centre[1] + r * math.sin(t)

    for i, (share, rank, text) in enumerate(_marks(metadata)):
        turn = first + sweep * share
        ends = [at(turn, radius), at(turn, radius - (14, 10, 6)[rank])]
        canvas.line(ends, look.ink, (2.2, 1.5, 1.0)[rank])
        minor = round(metadata["step"] / metadata["division"])
        if text and not (look.sparse and (i // minor) % 2):
            canvas.text(at(turn, radius - 28), text, look.size, look.ink)
    turn = sweep * (value - metadata["low"]) / (metadata["high"] - metadata["low"])
    tip, tail = at(first + turn, radius - 9), at(first + turn + 180, 16)
    canvas.line([tail, tip], look.mark, dice.uniform(1.8, 3))
    canvas.disc(centre, 6, look.mark)
    metadata["zero_to_full"] = sweep
    return [0.0, turn]


def _thermometer(
    look: _Look, dice: Dice, metadata: dict[str, Any], _: float, value: float
) -> list[float]:
    canvas, x = look.canvas, SIZE * dice.uniform(0.35, 0.6)
    bottom, top, half = 202.0, 18.0, dice.uniform(5, 8)
    canvas.box([x - half - 2, top - 8, x + half + 2, bottom + 12], (255, 255, 255), look.ink)
    canvas.disc((x, bottom + 22), half * 2.2, look.mark, look.ink)
    share = (value - metadata["low"]) / (metadata["high"] - metadata["low"])
    length = (bottom - top) * share
    canvas.box([x - half + 1, bottom - length, x + half - 1, bottom + 18], look.mark)
    for i, (part, rank, text) in enumerate(_marks(metadata)):
        y = bottom - (bottom - top) * part
        edge = x + half + 3
        canvas.line([(edge, y), (edge + (13, 10, 7)[rank], y)], look.ink, (1.8, 1.3, 0.8)[rank])
        minor = round(metadata["step"] / metadata["division"])
        if text and not (look.sparse and (i // minor) % 2):
            canvas.text((edge + 18, y), text, look.size, look.ink, "lm")
    canvas.text((x - half - 14, 24), "°C", look.size + 2, look.ink, "rm")
    metadata["zero_to_full"] = bottom - top
    return [0.0, length]


def _ruler(
    look: _Look, dice: Dice, metadata: dict[str, Any], start: float, end: float
) -> list[float]:
    canvas, left, right = look.canvas, 16.0, SIZE - 16.0
    top = 110.0 + dice.uniform(-25, 35)
    canvas.box([left - 8, top, right + 8, top + 48], (250, 235, 190), look.ink)
    for i, (share, rank, text) in enumerate(_marks(metadata)):
        x = left + (right - left) * share
        canvas.line([(x, top), (x, top + (16, 11, 7)[rank])], look.ink, (1.4, 1.1, 0.8)[rank])
        minor = round(metadata["step"] / metadata["division"])
        if text and not (look.sparse and (i // minor) % 2):
            canvas.text((x, top + 26), text, min(look.size, 12), look.ink)
    canvas.text((right, top + 40), "cm", 9, look.ink, "rm")
    width = (right - left) / metadata["high"]
    ends = [left + start * width, left + end * width]
    thick = dice.uniform(10, 26)
    canvas.box([ends[0], top - 4 - thick, ends[1], top - 4], look.mark)
    if metadata["division"] < 0.5:
        for x in ends:
            canvas.dashed((x, top - 4 - thick), (x, top), look.mark, 0.8)
    metadata["zero_to_full"] = right - left
    return ends
