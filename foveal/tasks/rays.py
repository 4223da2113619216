"""How rays, angles and notes of the optics task are drawn."""

from __future__ import annotations

import math

from foveal.tasks.canvas import INKS, PALETTE, PAPERS, Canvas, Colour
from foveal.tasks.dice import Dice

WIDTH, HEIGHT = 400, 290
Vector = tuple[float, float]


class Look:
    """Canvas, colours and sizes of one picture."""

    def __init__(self, dice: Dice, difficulty: int) -> None:
        self.paper: Colour = dice.pick(PAPERS)
        self.ink: Colour = dice.pick(INKS)
        self.mark: Colour = dice.pick(PALETTE[:6])
        self.canvas = Canvas(WIDTH, HEIGHT, self.paper)
        self.size = (15, 14, 13, 12, 11)[difficulty - 1]
        self.width = dice.uniform(1.6, 2.4)
        self.tints = [(222, 236, 248), (240, 232, 214), (226, 240, 226), (238, 226, 240)]

    def ray(self, start: Vector, end: Vector) -> None:
        """With its arrow in the middle."""
        middle = ((start[0] + end[0]) / 2, (start[1] + end[1]) / 2)
        self.canvas.arrow(start, middle, self.mark, self.width, 10)
        self.canvas.line([middle, end], self.mark, self.width)

    def note(self, at: Vector, text: str, anchor: str = "mm") -> None:
        self.canvas.text(at, text, self.size, self.ink, anchor, halo=self.paper)

    def angle(self, at: Vector, first: Vector, second: Vector, text: str) -> None:
        """An arc between two directions, which are less than 180 degrees apart, and its text."""
        a, b = (math.degrees(math.atan2(d[1], d[0])) % 360 for d in (first, second))
        start, sweep = (a, (b - a) % 360) if (b - a) % 360 <= 180 else (b, (a - b) % 360)
        radius = 24 + max(0, 34 - sweep) * 0.5
        self.canvas.arc(at, radius, (start, start + sweep), self.ink, 1.3)
        middle = math.radians(start + sweep / 2)
        out = radius + 9 + self.size * 0.24 * len(text) + max(0, 30 - sweep) * 0.8
        place = (at[0] + out * math.cos(middle), at[1] + out * math.sin(middle))
        self.note(place, text)


def shifted(point: Vector, direction: Vector, length: float) -> Vector:
    """``point``, moved by ``length`` pixels in ``direction``."""
    return point[0] + direction[0] * length, point[1] + direction[1] * length


def turned(degrees: float) -> Vector:
    """Direction in the picture, counted counter-clockwise from the right."""
    t = math.radians(degrees)
    return math.cos(t), -math.sin(t)
