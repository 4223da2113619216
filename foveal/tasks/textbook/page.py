"""What exercises of the textbook have in common: the record, the pen and numbers as printed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from foveal.tasks.base import plain
from foveal.tasks.canvas import Canvas, Colour, Point
from foveal.tasks.lettering import Look, write

WIDTH, AREA = 404, 176
"""Width of a page, and height of the part of it that holds the figure."""


@dataclass(slots=True)
class Exercise:
    """One exercise before it is printed."""

    what: str
    """Which question of its kind it is; a key of the words."""
    facts: dict[str, Any]
    """What the figure shows; JSON."""
    answer: str
    steps: list[str]
    """The worked solution; see ``steps``."""
    fills: dict[str, Any] = field(default_factory=dict)
    """What stands in the braces of the question."""


@dataclass(frozen=True, slots=True)
class Pen:
    """Canvas, colours, font and words of a page; ``top`` is where the figure begins."""

    canvas: Canvas
    ink: Colour
    mark: Colour
    paper: Colour
    size: float
    look: Look
    top: float
    number: Callable[[float], str]
    words: Any
    printed: list[str]
    """All text of the page so far."""

    def put(
        self,
        at: Point,
        text: str,
        colour: Colour | None = None,
        anchor: str = "m",
        larger: float = 0,
    ) -> None:
        """Text at a place of the figure."""
        place = (at[0], at[1] + self.top)
        size = self.size + larger
        write(self.canvas, place, text, size, colour or self.ink, anchor, self.look)
        self.printed.append(text)

    def line(
        self, points: Sequence[Point], colour: Colour | None = None, width: float = 1.6
    ) -> None:
        self.canvas.line([(x, y + self.top) for x, y in points], colour or self.ink, width)

    def at(self, x: float, y: float) -> tuple[float, float]:
        return x, y + self.top


def signed(value: float) -> str:
    """A number with a real minus, in brackets where it is negative."""
    text = plain(abs(value))
    return f"(−{text})" if value < 0 else text


def unsigned(value: float) -> str:
    """A number with a real minus and no brackets."""
    return plain(value).replace("-", "−")
