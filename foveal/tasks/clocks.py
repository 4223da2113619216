"""Analogue clocks: the time, or the minutes from one clock to another.

    time     what the clock shows, as 7:35
    elapsed  minutes from the left clock to the right one, less than twelve hours

The time is drawn first. With difficulty minutes need not be multiples of five, numerals and small
ticks vanish, a second hand distracts and grain is added.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

from foveal.tasks.base import Drawn, DrawnTask
from foveal.tasks.canvas import INKS, PALETTE, PAPERS, Canvas
from foveal.tasks.dice import Dice

CELL = 196
DAY = 12 * 60

TEMPLATES = {
    "time": (
        "What time does the clock show? Answer like 7:35.",
        "Read the clock. Answer like 7:35.",
    ),
    "elapsed": (
        "How many minutes pass from the left clock to the right one, in less than 12 hours?",
        "The left clock is the start, the right one the end, within 12 hours. How many minutes?",
    ),
}


class ClocksTask(DrawnTask):
    """The task family "clocks"."""

    name: str = "clocks"
    kinds: ClassVar[tuple[str, ...]] = ("time", "elapsed")

    def draw(self, dice: Dice, difficulty: int) -> Drawn:
        kind = dice.pick(self.kinds)
        step = 5 if difficulty < 3 else 1
        start = dice.below(DAY // step) * step
        passed = dice.between(1, (DAY - 1) // step) * step
        times = [start] if kind == "time" else [start, (start + passed) % DAY]
        answer = f"{start // 60 or 12}:{start % 60:02d}" if kind == "time" else str(passed)
        canvas = Canvas(CELL * len(times), CELL, dice.pick(PAPERS))
        hands = [_draw_clock(canvas, dice, i, time, difficulty) for i, time in enumerate(times)]
        picture = canvas.finish(dice, (0, 0, 3, 6, 10)[difficulty - 1])
        metadata = {"kind": kind, "hands": hands, "tolerance": 0.0}
        return Drawn(picture, dice.pick(TEMPLATES[kind]), answer, metadata)

    def reference_answer(self, metadata: dict[str, Any]) -> str:
        """From the degrees of the hour and minute hand of each clock, clockwise from the top."""
        times = []
        for hour, minute in metadata["hands"]:
            minutes = round(minute / 6) % 60
            hours = round((hour - minutes / 2) / 30) % 12
            times.append((hours, minutes))
        if metadata["kind"] == "time":
            return f"{times[0][0] or 12}:{times[0][1]:02d}"
        (h0, m0), (h1, m1) = times
        return str(((h1 - h0) * 60 + m1 - m0) % DAY)


def _draw_clock(canvas: Canvas, dice: Dice, column: int, time: int, difficulty: int) -> list[float]:
    """Returns the degrees of the hour and the minute hand."""
    centre, radius = (CELL * (column + 0.5), CELL / 2), dice.uniform(80, 90)
    ink, mark = dice.pick(INKS), dice.pick(PALETTE[:6])

    def at(degrees: float, share: float) -> tuple[float, float]:
        t = math.radians(degrees)
        return centre[0] + radius * share * math.sin(t), centre[1] - radius * share * math.cos(t)

    canvas.disc(centre, radius, (255, 255, 255), ink, dice.uniform(1.5, 4))
    for minute in range(60):
        is_hour = minute % 5 == 0
        if is_hour or difficulty < 5:
            inner = 0.86 if is_hour else 0.91
            ends = [at(minute * 6, 0.95), at(minute * 6, inner)]
            canvas.line(ends, ink, 2.2 if is_hour else 0.8)
        if is_hour and (difficulty < 3 or (difficulty == 3 and minute % 15 == 0)):
            canvas.text(at(minute * 6, 0.74), str(minute // 5 or 12), 13, ink)
    hands = [time / 2, time % 60 * 6.0]
    canvas.line([at(hands[0] + 180, 0.1), at(hands[0], 0.48)], ink, dice.uniform(4, 6))
    canvas.line([at(hands[1] + 180, 0.1), at(hands[1], 0.82)], ink, dice.uniform(2, 3))
    if difficulty >= 4:
        second = dice.uniform(0, 360)
        canvas.line([at(second + 180, 0.2), at(second, 0.88)], (205, 45, 50), 1.0)
    canvas.disc(centre, 4.5, mark)
    return hands
